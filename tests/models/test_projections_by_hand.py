"""Queries, keys and values written out from the weights, family by family."""

import pytest
import torch
from torch import Tensor

from offkey.testing.family import close
from offkey.testing.random_models import FAMILIES, outputs, padded_batch, random_model


def rotated(x: Tensor, positions: Tensor, theta: float, share: float) -> Tensor:
    """Turns pairs (i, i + r/2) of the first r = share · d entries by position · theta^(-2i/r)."""
    width = int(x.shape[-1] * share)
    half = width // 2
    angle = positions[..., None, None] * theta ** (-2 * torch.arange(half) / width)
    a, b, rest = x[..., :half], x[..., half:width], x[..., width:]
    turned = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest]

    return torch.cat(turned, dim=-1)


def rope_settings(config, number: int) -> tuple[float, float]:
    settings = config.rope_parameters
    if "rope_theta" not in settings:
        settings = settings[config.layer_types[number]]

    return settings["rope_theta"], settings.get("partial_rotary_factor", 1.0)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def split_by_hand(name: str, model, attention, x: Tensor) -> list[Tensor]:
    """q, k and v, ``[batch, token, head, d_head]``, before any rotation."""
    heads, kv_heads = model.n_heads, model.wiring.n_kv_heads
    d = model.d_head
    if name == "gpt2":
        parts = (x @ attention.c_attn.weight + attention.c_attn.bias).split(heads * d, dim=-1)
        return [part.unflatten(-1, (heads, d)) for part in parts]
    if name.startswith("gpt_neox"):
        fused = x @ attention.query_key_value.weight.T + attention.query_key_value.bias
        return list(fused.unflatten(-1, (heads, 3, d)).unbind(-2))
    if name == "phi3":
        fused = x @ attention.qkv_proj.weight.T
        sizes = [heads * d, kv_heads * d, kv_heads * d]
        return [part.unflatten(-1, (-1, d)) for part in fused.split(sizes, dim=-1)]

    made = []
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        flat = x @ part.weight.T + (0 if part.bias is None else part.bias)
        made.append(flat.unflatten(-1, (-1, d)))
    if name in ("qwen3", "gemma3"):
        shift = 1 if name == "gemma3" else 0
        for place, norm in enumerate((attention.q_norm, attention.k_norm)):
            made[place] = rms(made[place], norm.weight + shift, 1e-6)

    return made


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_queries_keys_and_values(name):
    model, batch = random_model(name), padded_batch()
    hidden = outputs(model, batch, output_hidden_states=True).hidden_states
    reading = model.read(batch, ["q.*", "k.*", "v.*"], positions="all")
    config = model.module.config

    for number, block in enumerate(model.wiring.blocks):
        norm = block.module.ln_1 if name == "gpt2" else block.module.input_layernorm
        q, k, v = split_by_hand(name, model, block.attention, norm(hidden[number]))
        if name != "gpt2":
            theta, share = rope_settings(config, number)
            q, k = (rotated(x, batch.positions, theta, share) for x in (q, k))
        for slot, expected in (("q", q), ("k", k), ("v", v)):
            actual = reading[f"{slot}.{number}"]
            close(actual[batch.mask], expected[batch.mask], loosen=4)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_scaled_and_placed(name):
    model, batch = random_model(name), padded_batch()
    weight = model.wiring.embedding.weight
    expected = weight[batch.inputs["input_ids"]]
    if name.startswith("gemma"):
        expected = expected * model.width**0.5
    if name == "gpt2":
        expected = expected + model.module.transformer.wpe.weight[batch.positions]

    close(model.read(batch, "embed", positions="all")["embed"], expected)


@torch.no_grad()
def test_mlp_of_llama_from_its_weights():
    model, batch = random_model("llama"), padded_batch()
    reading = model.read(batch, ["mlp_in.1", "mlp_act.1", "mlp_out.1"])
    mlp, x = model.module.model.layers[1].mlp, reading["mlp_in.1"]
    gate = x @ mlp.gate_proj.weight.T
    act = gate * gate.sigmoid() * (x @ mlp.up_proj.weight.T)

    close(reading["mlp_act.1"], act)
    close(reading["mlp_out.1"], act @ mlp.down_proj.weight.T)
