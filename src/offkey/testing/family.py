"""What holds of every language model whose parts are mapped.

Each check takes a model and a batch padded on the left, and can be run on a family of one's own::

    @pytest.mark.parametrize("check", FAMILY_CONTRACT)
    def test_my_family(check):
        check(Model(my_module, name="mine"), my_batch)

They compare sites with sums of other sites, with the module's own parts, and with what
transformers returns by itself.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from offkey.data import Batch
from offkey.models import Model, Reading, Site, TopLogProb
from offkey.testing.random_models import outputs

__all__ = ["FAMILY_CONTRACT", "close", "hook_count", "visible"]

ModelCheck = Callable[[Model, Batch], None]


def close(actual: Tensor, expected: Tensor, *, loosen: float = 1) -> None:
    """Equal up to rounding: some ulps of the dtype, relative to the largest value."""
    slack = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}[expected.dtype]
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=loosen * slack * scale)


def hook_count(module: nn.Module) -> int:
    """How many hooks are on the module and its parts."""
    return sum(len(p._forward_hooks) + len(p._forward_pre_hooks) for p in module.modules())


def visible(model: Model) -> list[Site]:
    """The sites that can be read under the model's kernel."""
    eager = model.module.config._attn_implementation == "eager"
    return [site for site in model.sites if eager or site.kind != "pattern"]


def blocks(model: Model) -> Iterator[tuple[int, Any]]:
    yield from enumerate(model.wiring.blocks)


def read_all(model: Model, batch: Batch) -> Reading:
    return model.read(batch, visible(model), positions="all", logits=True)


def real(x: Tensor, batch: Batch) -> Tensor:
    """The rows of real tokens."""
    return x[batch.mask]


def reading_changes_nothing(model: Model, batch: Batch) -> None:
    kernel, hooks = model.module.config._attn_implementation, hook_count(model.module)
    before = outputs(model, batch).logits

    reading = read_all(model, batch)

    assert torch.equal(reading.logits, before)
    assert torch.equal(outputs(model, batch).logits, before)
    assert hook_count(model.module) == hooks
    assert model.module.config._attn_implementation == kernel


def shapes_are_as_named(model: Model, batch: Batch) -> None:
    values = read_all(model, batch).values
    for site in visible(model):
        assert tuple(values[site].shape[:2]) == tuple(batch.mask.shape), site
        if site.kind == "pattern":
            assert values[site].shape[2:] == (model.n_heads, batch.mask.shape[1])
        else:
            assert tuple(values[site].shape[2:]) == site.shape, site


def residual_is_the_hidden_states(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    hidden = outputs(model, batch, output_hidden_states=True).hidden_states

    assert torch.equal(reading["embed"], hidden[0])
    for number, _ in blocks(model):
        assert torch.equal(reading[f"resid_pre.{number}"], hidden[number])
        if number + 1 < model.n_blocks:
            assert torch.equal(reading[f"resid_post.{number}"], hidden[number + 1])
    assert torch.equal(reading["final"], hidden[-1])


def contributions_add_up(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    total = reading["embed"]
    for number, _ in blocks(model):
        attn, mlp = reading[f"attn_out.{number}"], reading[f"mlp_out.{number}"]
        if not model.wiring.parallel:
            middle = reading[f"resid_mid.{number}"]
            assert torch.equal(reading[f"resid_pre.{number}"] + attn, middle)
            assert torch.equal(middle + mlp, reading[f"resid_post.{number}"])
        total = total + attn + mlp
    close(real(total, batch), real(reading[f"resid_post.{model.n_blocks - 1}"], batch))


def heads_make_attn_out(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    for number, block in blocks(model):
        with torch.no_grad():
            made = block.o_proj(reading[f"z.{number}"].flatten(-2))
            if block.attn_out is not block.attention:
                made = block.attn_out(made)
        close(real(made, batch), real(reading[f"attn_out.{number}"], batch))


def parts_of_heads_make_attn_out(model: Model, batch: Batch) -> None:
    """Each is what attention adds by one head alone; with the biases they sum to the whole."""
    reading = read_all(model, batch)
    for number, block in blocks(model):
        z, parts = reading[f"z.{number}"], reading[f"head_out.{number}"]
        with torch.no_grad():
            alone = torch.zeros_like(z)
            biases = block.o_proj(alone.flatten(-2))
            whole = block.o_proj(z.flatten(-2))
            projected = []
            for head in range(model.n_heads):
                alone = torch.zeros_like(z)
                alone[..., head, :] = z[..., head, :]
                projected.append(block.o_proj(alone.flatten(-2)) - biases)
            norm = block.attn_out if "norm" in type(block.attn_out).__name__.lower() else None
            through = partial(frozen_norm, norm, whole) if norm else lambda x: x
            for head, each in enumerate(projected):
                close(real(parts[..., head, :], batch), real(through(each), batch), loosen=8)
            total = parts.sum(-2) + through(biases.expand_as(whole))
        close(real(total, batch), real(reading[f"attn_out.{number}"], batch), loosen=8)


def frozen_norm(norm: nn.Module, whole: Tensor, x: Tensor) -> Tensor:
    """An RMS norm of a summand, with the scale that it has on the whole."""
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    shift = 1 if type(norm).__name__.startswith("Gemma") else 0
    scale = (whole.float().square().mean(-1, keepdim=True) + eps).rsqrt()

    return (x.float() * scale * (norm.weight.float() + shift)).to(x.dtype)


def attention_is_given_its_norm(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    for number, block in blocks(model):
        given = reading[f"attn_in.{number}"]
        if model.family.attn_norm is not None:
            norm = block.module.get_submodule(model.family.attn_norm)
            with torch.no_grad():
                assert torch.equal(norm(reading[f"resid_pre.{number}"]), given)
        else:
            assert torch.equal(reading[f"resid_pre.{number}"], given)


def unembedding_gives_the_logits(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    last = reading[f"resid_post.{model.n_blocks - 1}"]
    with torch.no_grad():
        assert torch.equal(model.unembed(last), reading.logits)
        close(model.unembed(last[:, -1]), reading.logits[:, -1])


def mlp_sites_make_mlp_out(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    for number, block in blocks(model):
        with torch.no_grad():
            after = block.mlp_out if block.mlp_out is not block.mlp else nn.Identity()
            from_input = after(block.mlp(reading[f"mlp_in.{number}"]))
            if block.mlp_norm is not None:
                source = "resid_pre" if model.wiring.parallel else "resid_mid"
                normed = block.mlp_norm(reading[f"{source}.{number}"])
                assert torch.equal(normed, reading[f"mlp_in.{number}"])
            assert torch.equal(from_input, reading[f"mlp_out.{number}"])
            if block.down_proj is not None:
                from_act = after(block.down_proj(reading[f"mlp_act.{number}"]))
                assert torch.equal(from_act, reading[f"mlp_out.{number}"])


def final_makes_the_logits(model: Model, batch: Batch) -> None:
    reading = read_all(model, batch)
    with torch.no_grad():
        made = model.wiring.unembedding(reading["final"])
        if model.wiring.softcap:
            made = model.wiring.softcap * torch.tanh(made / model.wiring.softcap)
    close(real(made, batch), real(reading["logits"], batch))
    assert torch.equal(reading["logits"], reading.logits)


def patterns_follow_from_queries_and_keys(model: Model, batch: Batch) -> None:
    if not model.family.interface or model.module.config._attn_implementation != "eager":
        return
    reading = read_all(model, batch)
    attentions = outputs(model, batch, output_attentions=True).attentions
    for number, block in blocks(model):
        q, k, v = (reading[f"{slot}.{number}"] for slot in "qkv")
        pattern = reading[f"pattern.{number}"]
        assert torch.equal(pattern, attentions[number].transpose(1, 2))
        close(real(pattern, batch).sum(-1), torch.ones_like(real(pattern, batch)[..., 0]))

        k = k.repeat_interleave(model.n_heads // k.shape[2], dim=2)
        v = v.repeat_interleave(model.n_heads // v.shape[2], dim=2)
        raw = torch.einsum("bqhd,bkhd->bqhk", q, k) * block.attention.scaling
        if cap := getattr(block.attention, "attn_logit_softcapping", None):
            raw = cap * torch.tanh(raw / cap)
        made = raw.masked_fill(pattern == 0, -torch.inf).softmax(-1)
        close(real(made, batch), real(pattern, batch), loosen=4)
        z = torch.einsum("bqhk,bkhd->bqhd", pattern, v)
        close(real(z, batch), real(reading[f"z.{number}"], batch))


def rows_do_not_depend_on_their_batch(model: Model, batch: Batch) -> None:
    """Each prompt alone, without padding, gives what it gives in the batch."""
    together = read_all(model, batch)
    for row, name in enumerate(batch.ids):
        keep = batch.mask[row]
        alone = Batch(
            {"input_ids": batch.inputs["input_ids"][row : row + 1, keep]},
            ids=(name,),
            mask=batch.mask[row : row + 1, keep],
            positions=batch.positions[row : row + 1, keep],
        )
        reading = read_all(model, alone)
        for site in visible(model):
            if site.kind != "pattern":
                close(reading[site][0], together[site][row, keep], loosen=10)


def gradients_are_those_of_a_trainable_model(model: Model, batch: Batch) -> None:
    kinds = [kind for kind in model.wiring.kinds if kind in ("resid_pre", "attn_out", "mlp_act")]
    sites = model.sites_at([*(f"{kind}.*" for kind in kinds), "resid_post.*", "final"])
    metric = TopLogProb()
    trainable = [weight.requires_grad for weight in model.module.parameters()]
    reading = model.read(batch, sites, gradients=sites, metric=metric, positions="all")

    twin = Model(copy.deepcopy(model.module), name="twin")
    twin.wiring.embedding.weight.requires_grad_(True)
    kept: dict[Site, Tensor] = {}
    with twin.hooked({site: partial(kept.__setitem__, site) for site in sites}):
        logits = twin.forward(batch, logits_to_keep=1).logits[:, -1]
    expected = torch.autograd.grad(metric(logits, batch).sum(), [kept[site] for site in sites])

    for site, grad in zip(sites, expected, strict=True):
        assert torch.equal(reading.grads[site], grad), site
        assert not reading.grads[site].requires_grad
    assert [weight.requires_grad for weight in model.module.parameters()] == trainable


FAMILY_CONTRACT: tuple[ModelCheck, ...] = (
    reading_changes_nothing,
    shapes_are_as_named,
    residual_is_the_hidden_states,
    contributions_add_up,
    heads_make_attn_out,
    parts_of_heads_make_attn_out,
    attention_is_given_its_norm,
    unembedding_gives_the_logits,
    mlp_sites_make_mlp_out,
    final_makes_the_logits,
    patterns_follow_from_queries_and_keys,
    rows_do_not_depend_on_their_batch,
    gradients_are_those_of_a_trainable_model,
)
