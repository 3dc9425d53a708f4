"""Where the parts of a decoder are, one table row a family.

To add a family, add a row: paths are attribute paths, those of a block's parts relative to the
block, those of the decoder's parts relative to the decoder. ``offkey.testing.FAMILY_CONTRACT``
proves a row on a small random model, ``offkey doctor`` on a real one.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["FAMILIES", "Family", "family_named"]


@dataclass(frozen=True)
class Family:
    """Where the parts of a decoder are.

    Attributes:
        name: what the family is called.
        model_types: values of ``config.model_type`` that belong to it.
        attention: the attention module of a block.
        attn_norm: the norm before attention; ``None`` where there is none.
        attn_out: the module whose output attention adds to the residual: attention itself, or a
            norm or dropout after it.
        o_proj: the projection out of the heads.
        qkv: the projections into them, q, k, v, or one that is fused.
        qkv_layout: ``"split"``: three projections; ``"concat"``: one, q then k then v;
            ``"interleaved"``: one, q, k and v of each head in turn.
        mlp: the MLP of a block.
        mlp_norm: the norm before the MLP, whose input is the residual between attention and MLP,
            or in parallel blocks the block's input; ``None`` where there is none.
        mlp_out: the module whose output the MLP adds to the residual.
        down_proj: the last projection of the MLP; ``None`` where there is no single one.
        blocks: the list of blocks.
        final_norm: the norm after the last block.
        embedding: the token embedding.
        decoder: where the decoder may be, seen from the causal language model.
        unembedding: where the projection to the vocabulary may be, seen from there too.
        parallel: attention and MLP read the same input; or the setting that says so.
        softcap: the setting that holds the cap of the logits, where there is one.
        logit_scale: the setting that logits are multiplied by, where there is one.
        logit_divisor: the setting that they are divided by, where there is one.
        interface: attention goes through the attention interface of transformers, so that q, k, v
            and patterns can be reached.
    """

    name: str
    model_types: tuple[str, ...]
    attention: str = "self_attn"
    attn_norm: str | None = "input_layernorm"
    attn_out: str = "self_attn"
    o_proj: str = "self_attn.o_proj"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_layout: Literal["split", "concat", "interleaved", "unknown"] = "split"
    mlp: str = "mlp"
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_out: str = "mlp"
    down_proj: str | None = "mlp.down_proj"
    blocks: str = "layers"
    final_norm: str | None = "norm"
    embedding: str = "embed_tokens"
    decoder: tuple[str, ...] = ("model", "model.language_model", "language_model", "")
    unembedding: tuple[str, ...] = ("lm_head", "embed_out")
    parallel: bool | str = False
    softcap: str | None = None
    logit_scale: str | None = None
    logit_divisor: str | None = None
    interface: bool = True


FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama", "mistral", "qwen2", "qwen3")),
    Family(
        "phi3",
        ("phi3",),
        attn_out="resid_attn_dropout",
        qkv=("self_attn.qkv_proj",),
        qkv_layout="concat",
        mlp_out="resid_mlp_dropout",
    ),
    Family(
        "gemma",
        ("gemma2", "gemma3", "gemma3_text"),
        attn_out="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
        softcap="final_logit_softcapping",
    ),
    Family(
        "gpt2",
        ("gpt2",),
        attention="attn",
        attn_norm="ln_1",
        attn_out="attn",
        o_proj="attn.c_proj",
        qkv=("attn.c_attn",),
        qkv_layout="concat",
        mlp_norm="ln_2",
        down_proj="mlp.c_proj",
        blocks="h",
        final_norm="ln_f",
        embedding="wte",
        decoder=("transformer", ""),
    ),
    Family(
        "gpt_neox",
        ("gpt_neox",),
        attention="attention",
        attn_out="post_attention_dropout",
        o_proj="attention.dense",
        qkv=("attention.query_key_value",),
        qkv_layout="interleaved",
        mlp_out="post_mlp_dropout",
        down_proj="mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        embedding="embed_in",
        decoder=("gpt_neox", ""),
        parallel="use_parallel_residual",
    ),
)


def family_named(model_type: str) -> Family | None:
    """The row of the table that holds ``config.model_type``, or ``None``."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
