"""Small random models of every family, and batches for them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from offkey.data import Batch, Role
from offkey.models import Model

VOCAB = 61
WIDTH = 32
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 4}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=12),
    "phi3": Phi3Config(**GROUPED),
    "gemma2": Gemma2Config(**GEMMA),
    "gemma3": Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 4}, final_logit_softcapping=5.0),
    "gpt2": GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_layer=3,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=None,
    ),
    "gpt_neox": GPTNeoXConfig(**SMALL, use_parallel_residual=True),
    "gpt_neox_serial": GPTNeoXConfig(**SMALL, use_parallel_residual=False),
}
UNLISTED: dict[str, PreTrainedConfig] = {
    "starcoder2": Starcoder2Config(**GROUPED),
    "olmo2": Olmo2Config(**GROUPED),
    "phi": PhiConfig(**SMALL),
    "falcon": FalconConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        alibi=False,
        new_decoder_architecture=False,
        bos_token_id=1,
        eos_token_id=None,
    ),
}
EXPERTS = {"mixtral": MixtralConfig(**GROUPED, num_local_experts=4)}
FAMILIES = tuple(CONFIGS)
DETECTED = tuple(UNLISTED)


def random_module(
    name: str, *, kernel: str = "eager", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A random model whose norms, biases and scales are all away from their defaults."""
    config = copy.deepcopy({**CONFIGS, **UNLISTED, **EXPERTS}[name])
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module: nn.Module = AutoModelForCausalLM.from_config(
        config, attn_implementation=kernel, dtype=dtype
    )
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_((0.15 * noise).to(dtype))

    return module.eval()


def random_model(name: str, *, kernel: str = "eager", dtype: torch.dtype = torch.float32) -> Model:
    """The random model of a family, as a :class:`Model`."""
    return Model(random_module(name, kernel=kernel, dtype=dtype), name=name)


def batch_of(
    rows: Sequence[Sequence[int]], *, width: int | None = None, choices: bool = True
) -> Batch:
    """Token ids padded on the left; each row's name is made of its tokens."""
    width = width or max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = torch.tensor(row)
        mask[number, width - len(row) :] = True

    return Batch(
        {"input_ids": tokens},
        ids=tuple("-".join(map(str, row)) for row in rows),
        mask=mask,
        positions=(mask.long().cumsum(1) - 1).clamp(min=0),
        roles=torch.where(mask, Role.PROMPT, Role.PADDING),
        choices=torch.tensor([[3, 5]] * len(rows)) if choices else None,
        target=torch.tensor([1] * len(rows)) if choices else None,
    )


def padded_batch() -> Batch:
    """Three prompts of five, seven and eight tokens."""
    return batch_of([[7, 11, 3, 9, 2], [4, 8, 15, 16, 23, 42, 6], [10, 20, 30, 40, 50, 60, 1, 2]])


def even_batch() -> Batch:
    """Two prompts of six tokens."""
    return batch_of([[5, 6, 7, 8, 9, 10], [31, 30, 29, 28, 27, 26]])


def outputs(model: Model, batch: Batch, **extra: object) -> Any:
    """What transformers itself makes of a batch."""
    assert batch.mask is not None
    with torch.no_grad():
        return model.module(
            input_ids=batch.inputs["input_ids"],
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            use_cache=False,
            **extra,
        )
