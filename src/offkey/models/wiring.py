"""A family's parts found on one model, and how each site is reached there."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from offkey.errors import BadValue, UnmappedModel
from offkey.models.attention import AttentionPort
from offkey.models.families import Family
from offkey.models.heads import HeadParts
from offkey.models.hooks import Hook, HookSet, Place, Side, unhooked
from offkey.models.sites import BLOCK_KINDS, GLOBAL_KINDS, Site

__all__ = ["Block", "Wiring", "unwrapped", "wire"]


@dataclass(frozen=True)
class Block:
    """The parts of one block, as objects; wrapping changes their paths, not what they are."""

    module: nn.Module
    attention: nn.Module
    attn_out: nn.Module
    o_proj: nn.Module
    qkv: tuple[nn.Module, ...]
    mlp: nn.Module
    mlp_norm: nn.Module | None
    mlp_out: nn.Module
    down_proj: nn.Module | None


@dataclass(frozen=True)
class Wiring:
    """Where the sites of one decoder are.

    Attributes:
        family: the table row, or what structural detection found.
        top: the causal language model, without adapters' wrapping.
        decoder: the module that holds the blocks.
        config: the configuration of the text decoder.
        blocks: the parts of each block.
        embedding: the token embedding.
        final_norm: the norm after the last block.
        unembedding: the projection to the vocabulary; ``None`` for a bare decoder.
        parallel: attention and MLP read the same input, so that no ``resid_mid`` exists.
        softcap: the cap of the logits, where there is one.
        logit_scale: what logits are multiplied by before that.
    """

    family: Family
    top: nn.Module
    decoder: nn.Module
    config: Any
    blocks: tuple[Block, ...]
    embedding: nn.Module
    final_norm: nn.Module | None
    unembedding: nn.Module | None
    parallel: bool
    softcap: float | None
    logit_scale: float = 1.0

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @cached_property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @cached_property
    def n_heads(self) -> int:
        """Number of query heads."""
        return int(self.config.num_attention_heads)

    @cached_property
    def n_kv_heads(self) -> int:
        """Number of key and value heads."""
        return int(getattr(self.config, "num_key_value_heads", None) or self.n_heads)

    @cached_property
    def d_head(self) -> int:
        """Width of a head."""
        return int(getattr(self.config, "head_dim", None) or self.width // self.n_heads)

    @cached_property
    def port(self) -> AttentionPort:
        """The way to q, k, v and patterns."""
        configs = [getattr(block.attention, "config", self.config) for block in self.blocks]
        holder = getattr(self.decoder, "config", self.config)

        return AttentionPort([self.config, *configs, holder])

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of site that every block has."""
        absent = {
            "resid_mid": self.parallel,
            "mlp_act": self.blocks[0].down_proj is None,
            **dict.fromkeys(("q", "k", "v", "pattern"), not self.family.interface),
        }
        return tuple(kind for kind in BLOCK_KINDS if not absent.get(kind, False))

    @cached_property
    def global_kinds(self) -> tuple[str, ...]:
        """The kinds of site that a model has once."""
        absent = {"final": self.final_norm is None, "logits": self.unembedding is None}
        return tuple(kind for kind in GLOBAL_KINDS if not absent.get(kind, False))

    def sites(self) -> Iterator[Site]:
        """Every named site, with shapes."""
        yield self.site("embed")
        for number in range(len(self.blocks)):
            yield from (self.site(kind, number) for kind in self.kinds)
        yield from (self.site(kind) for kind in self.global_kinds if kind != "embed")

    def site(self, kind: str, block: int | None = None) -> Site:
        """The site with its shape.

        Raises:
            BadValue: the model has no such block, or no such site.
        """
        name = kind if block is None else f"{kind}.{block}"
        if kind not in (self.global_kinds if block is None else self.kinds):
            raise BadValue(self._why_absent(kind), where=f"site {name}")
        if block is not None and not 0 <= block < len(self.blocks):
            last = len(self.blocks) - 1
            raise BadValue(
                f"this model has blocks 0-{last}",
                where=f"site {name}",
                mend=f"Use --sites '{kind}.*' or a number up to {last}",
            )
        return Site(kind, block=block, shape=self._shape(kind, block))

    def add_hook(self, hooks: HookSet, site: Site, hook: Hook) -> None:
        """Adds a hook at a named site."""
        if site.kind == "head_out":
            self.head_parts[site.block or 0].add_hook(hooks, hook)
        else:
            hooks.add(self._place(site), hook)

    @cached_property
    def head_parts(self) -> tuple[HeadParts, ...]:
        """What each head of each block adds to the residual."""
        return tuple(
            HeadParts(block.o_proj, block.attention, block.attn_out, self.n_heads)
            for block in self.blocks
        )

    def unembed(self, h: Tensor) -> Tensor:
        """Logits that the model would give if ``h`` were the residual after the last block.

        Final norm, projection with its bias, logit scale and soft cap, as in the model itself.
        """
        if self.unembedding is None:
            raise BadValue(self._why_absent("logits"), where="unembed")
        with unhooked():
            normed = h if self.final_norm is None else self.final_norm(h)
            logits: Tensor = self.unembedding(normed.contiguous())

        return self.capped(logits)

    def capped(self, logits: Tensor) -> Tensor:
        """What the model makes of its projection's output: scaled, and with the soft cap."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)

        return logits

    def _place(self, site: Site) -> Place:
        if site.block is None:
            return self._global_place(site.kind)
        block = self.blocks[site.block]
        match site.kind:
            case "resid_pre":
                return Place(block.module, "in")
            case "resid_mid":
                return Place(block.mlp_norm or block.mlp, "in", shared=True)
            case "resid_post":
                return Place(block.module, "out")
            case "attn_in":
                return Place(block.attention, "in")
            case "attn_out":
                return Place(block.attn_out, "out")
            case "mlp_in":
                return Place(block.mlp, "in")
            case "mlp_out":
                return Place(block.mlp_out, "out")
            case "mlp_act":
                return Place(cast(nn.Module, block.down_proj), "in")
            case "z":
                return Place(block.o_proj, "in", heads=self.n_heads)
            case slot:
                return Place(block.attention, cast(Side, slot), port=self.port)

    def _global_place(self, kind: str) -> Place:
        if kind == "embed":
            return Place(self.blocks[0].module, "in")
        if kind == "final":
            return Place(cast(nn.Module, self.final_norm), "out")
        return Place(self.top, "out")

    def _shape(self, kind: str, block: int | None) -> tuple[int, ...]:
        match kind:
            case "q":
                return (self.n_heads, self.d_head)
            case "z":
                inputs = _in_features(self.blocks[block or 0].o_proj)
                return (self.n_heads, inputs // self.n_heads)
            case "head_out":
                return (self.n_heads, self.width)
            case "k" | "v":
                return (self.n_kv_heads, self.d_head)
            case "pattern":
                return ()
            case "mlp_act":
                return (_in_features(self.blocks[block or 0].down_proj),)
            case "logits":
                return (_out_features(self.unembedding),)
            case _:
                return (self.width,)

    def _why_absent(self, kind: str) -> str:
        if kind == "resid_mid":
            return "attention and MLP run in parallel here, so there is no residual between them"
        return {
            "mlp_act": "the MLP has no single down projection",
            "final": "there is no norm after the last block",
            "logits": "the model has no unembedding; load it as a causal language model",
        }.get(kind, "attention does not go through the attention interface of transformers")


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside an adapter's wrapping."""
    base = getattr(module, "get_base_model", None)
    return cast(nn.Module, base()) if callable(base) else module


def wire(family: Family, top: nn.Module) -> Wiring:
    """Finds the family's parts on a model.

    Raises:
        UnmappedModel: names the part that is not where the family has it.
    """
    decoder = _decoder(family, top)
    config = _text_config(top)
    blocks = tuple(
        _block(family, module, f"{family.blocks}.{number}")
        for number, module in enumerate(cast(nn.ModuleList, _part(decoder, family.blocks)))
    )
    if len({block.module for block in blocks}) != len(blocks):
        raise UnmappedModel("a block runs more than once", where=type(top).__name__)
    flag = family.parallel
    parallel = bool(getattr(config, flag)) if isinstance(flag, str) else flag
    heads = (head for name in family.unembedding if (head := _attribute(top, name)) is not None)

    return Wiring(
        family=family,
        top=top,
        decoder=decoder,
        config=config,
        blocks=blocks,
        embedding=_part(decoder, family.embedding),
        final_norm=_optional(decoder, family.final_norm),
        unembedding=next(heads, None),
        parallel=parallel,
        softcap=getattr(config, family.softcap, None) if family.softcap else None,
        logit_scale=_logit_scale(family, config),
    )


def _logit_scale(family: Family, config: Any) -> float:
    factor = getattr(config, family.logit_scale, None) if family.logit_scale else None
    divisor = getattr(config, family.logit_divisor, None) if family.logit_divisor else None

    return float(1.0 if factor is None else factor) / float(divisor or 1.0)


def _decoder(family: Family, top: nn.Module) -> nn.Module:
    for path in family.decoder:
        decoder = _attribute(top, path)
        if decoder is not None and _attribute(decoder, family.blocks) is not None:
            return decoder
    where = " or ".join(f"{path}.{family.blocks}".lstrip(".") for path in family.decoder)
    raise UnmappedModel(
        f"no list of blocks at {where}", where=f"{type(top).__name__} as {family.name}"
    )


def _block(family: Family, block: nn.Module, where: str) -> Block:
    return Block(
        module=block,
        attention=_part(block, family.attention, where),
        attn_out=_part(block, family.attn_out, where),
        o_proj=_part(block, family.o_proj, where),
        qkv=tuple(_part(block, path, where) for path in family.qkv),
        mlp=_part(block, family.mlp, where),
        mlp_norm=_optional(block, family.mlp_norm, where),
        mlp_out=_part(block, family.mlp_out, where),
        down_proj=_optional(block, family.down_proj, where),
    )


def _part(parent: nn.Module, path: str, where: str = "") -> nn.Module:
    part = _attribute(parent, path)
    if part is None:
        raise UnmappedModel(
            f"no module {path!r}", where=f"{type(parent).__name__} {where}".rstrip()
        )
    return part


def _optional(parent: nn.Module, path: str | None, where: str = "") -> nn.Module | None:
    return None if path is None else _part(parent, path, where)


def _attribute(parent: nn.Module, path: str) -> nn.Module | None:
    part: Any = parent
    for name in path.split(".") if path else ():
        part = getattr(part, name, None)

    return part if isinstance(part, nn.Module) else None


def _text_config(top: nn.Module) -> Any:
    config: Any = top.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _size(
    module: nn.Module | None, name: Literal["in_features", "out_features"], axis: int
) -> int:
    inner = getattr(module, "base_layer", module)
    size = getattr(inner, name, None)

    # GPT-2's Conv1D keeps its weight as [in, out].
    return int(size if size is not None else inner.weight.shape[axis])  # type: ignore[union-attr, index]


def _in_features(module: nn.Module | None) -> int:
    return _size(module, "in_features", 0)


def _out_features(module: nn.Module | None) -> int:
    return _size(module, "out_features", 1)
