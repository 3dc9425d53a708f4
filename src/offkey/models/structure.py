"""The parts of a decoder that no table row describes, found by watching one small pass.

A module's role follows from what flows through it: the norm before attention is the child whose
output attention is given, the residual after it is the sum that the next norm is given, and so on.
That the residual is a plain sum is checked, so that a scaled one is not taken for it.
"""

import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offkey.errors import UnmappedModel
from offkey.models.families import Family
from offkey.models.hooks import tensor_of

__all__ = ["detect_family"]


@dataclass(frozen=True)
class _WatchedCall:
    """One module's turn in the pass; it holds the tensors, so that they can be told apart.

    The value is copied, because some blocks add into a sublayer's output in place.
    """

    path: str
    module: nn.Module
    given: Tensor
    made: Tensor
    value: Tensor


class _WatchedBlock:
    """The first block's turn, seen from inside."""

    def __init__(self, calls: list[_WatchedCall], where: str) -> None:
        self.whole = next(call for call in calls if not call.path)
        self.calls = [call for call in calls if call.path]
        self.children = [call for call in self.calls if "." not in call.path]
        self.where = where

    def attention(self) -> _WatchedCall:
        for call in self.children:
            names = f"{call.path} {type(call.module).__name__}"
            if re.search(r"att(n|ention)", names, re.IGNORECASE) and not _is_norm(call.module):
                return call
        raise self.missing("no attention module among the block's children")

    def mlp(self, attention: _WatchedCall) -> _WatchedCall:
        for call in self.children:
            if call is attention or _is_linear(call.module) or _is_norm(call.module):
                continue
            if any(_is_linear(part) for part in call.module.modules()):
                return call
        raise self.missing("no MLP module among the block's children")

    def before(self, call: _WatchedCall) -> _WatchedCall | None:
        """The child that made what ``call`` was given."""
        return next((each for each in self.children if each.made is call.given), None)

    def added(self, call: _WatchedCall) -> _WatchedCall:
        """The last of ``call`` and the norms and dropouts after it: what joins the residual.

        A dropout that serves both sublayers is no place for either.
        """
        for each in self.children:
            follows = each.given is call.made and each is not call
            once = sum(other.module is each.module for other in self.children) == 1
            if follows and once and not any(_is_linear(part) for part in each.module.modules()):
                return self.added(each)
        return call

    def projections(self, part: _WatchedCall) -> list[_WatchedCall]:
        """The linear layers inside a child, in order."""
        return [
            call
            for call in self.calls
            if call.path.startswith(f"{part.path}.") and _is_linear(call.module)
        ]

    def missing(self, what: str) -> UnmappedModel:
        names = ", ".join(call.path for call in self.children)
        return UnmappedModel(f"{what} ({names})", where=self.where)


def detect_family(top: nn.Module) -> Family:
    """Finds the parts of a decoder by a pass over four tokens.

    Raises:
        UnmappedModel: names the part that was not found, or does not add up.
    """
    config: Any = top.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    list_path, blocks = _blocks(top, config)
    decoder_path, _, list_name = list_path.rpartition(".")
    decoder = top.get_submodule(decoder_path)
    where = f"{type(top).__name__} {list_path}.0"

    inside, outside = _watched(top, decoder, blocks)
    block = _WatchedBlock(inside, where)
    attention = block.attention()
    mlp = block.mlp(attention)
    attn_added, mlp_added = block.added(attention), block.added(mlp)
    attn_norm, mlp_norm = block.before(attention), block.before(mlp)
    middle = mlp_norm.given if mlp_norm else mlp.given
    parallel = middle is block.whole.given or mlp.given is attention.given
    _check_sums(block, attn_added, mlp_added, None if parallel else middle)

    output = _last(block.projections(attention))
    if output is None:
        raise block.missing("no output projection in the attention module")
    inputs = [call for call in block.projections(attention) if call.given is attention.given]
    down = _last(block.projections(mlp))
    final = next((c for c in outside if c.given is outside[0].made and c is not outside[0]), None)
    base = cast(PreTrainedModel, top)
    head = base.get_output_embeddings()

    return Family(
        name=f"detected:{config.model_type}",
        model_types=(config.model_type,),
        attention=attention.path,
        attn_norm=attn_norm.path if attn_norm else None,
        attn_out=attn_added.path,
        o_proj=output.path,
        qkv=tuple(call.path for call in sorted(inputs, key=_qkv_rank)),
        qkv_layout="split" if len(inputs) == 3 else "unknown",
        mlp=mlp.path,
        mlp_norm=mlp_norm.path if mlp_norm and middle is mlp_norm.given else None,
        mlp_out=mlp_added.path,
        down_proj=down.path if down and down.made is mlp.made else None,
        blocks=list_name,
        final_norm=final.path if final else None,
        embedding=_path_of(decoder, base.get_input_embeddings(), where),
        decoder=(decoder_path,),
        unembedding=() if head is None else (_path_of(top, head, where),),
        parallel=parallel,
        softcap=_setting(config, "final_logit_softcapping"),
        logit_scale=_setting(config, "logit_scale", "lm_head_multiplier"),
        logit_divisor=_setting(config, "logits_scaling"),
        interface=_has_interface(attention.module),
    )


def _blocks(top: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        (path, part)
        for path, part in top.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == count and _has_parts(part)
    ]
    if len(lists) != 1:
        raise UnmappedModel(
            f"{len(lists)} lists of {count} blocks were found, and one is needed",
            where=type(top).__name__,
        )

    return lists[0]


def _has_parts(blocks: nn.ModuleList) -> bool:
    return len(blocks) > 0 and any(True for _ in blocks[0].children())


def _watched(
    top: nn.Module, decoder: nn.Module, blocks: nn.ModuleList
) -> tuple[list[_WatchedCall], list[_WatchedCall]]:
    """The calls inside the first block; and the last block's, with those of the decoder after."""
    inside: list[_WatchedCall] = []
    outside: list[_WatchedCall] = []
    last = blocks[len(blocks) - 1]

    def watch(path: str, part: nn.Module, calls: list[_WatchedCall], stack: ExitStack) -> None:
        def seen(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            if given:
                made = tensor_of(output)
                calls.append(_WatchedCall(path, part, given[0], made, made.clone()))

        stack.callback(part.register_forward_hook(seen, with_kwargs=True).remove)

    with ExitStack() as stack, torch.no_grad():
        for path, part in blocks[0].named_modules():
            watch(path, part, inside, stack)
        watch("", last, outside, stack)
        for path, part in decoder.named_children():
            watch(path, part, outside, stack)
        weight = next(top.parameters())
        tokens = torch.arange(4, device=weight.device)[None]
        try:
            top(input_ids=tokens, use_cache=False)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnmappedModel(
                f"a trial pass over four tokens failed ({error})", where=type(top).__name__
            ) from error
    start = next(place for place, call in enumerate(outside) if call.module is last)

    return inside, outside[start:]


def _check_sums(
    block: _WatchedBlock, attention: _WatchedCall, mlp: _WatchedCall, middle: Tensor | None
) -> None:
    """Checks that the residual is the sum of what the sublayers add."""
    start, end = block.whole.given, block.whole.made
    if middle is None:
        _check_sum(
            start + attention.value + mlp.value, end, "attention and MLP in parallel", block
        )
        return
    _check_sum(start + attention.value, middle, f"its input plus {attention.path}", block)
    _check_sum(middle + mlp.value, end, f"that plus {mlp.path}", block)


def _check_sum(total: Tensor, residual: Tensor, what: str, block: _WatchedBlock) -> None:
    slack = 32 * torch.finfo(residual.dtype).eps * float(residual.abs().max())
    if total.shape != residual.shape or not torch.allclose(total, residual, rtol=0, atol=slack):
        raise UnmappedModel(
            f"the residual of the block is not {what}; is it scaled?", where=block.where
        )


def _setting(config: Any, *names: str) -> str | None:
    """The first of some settings that a configuration has."""
    return next((name for name in names if hasattr(config, name)), None)


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(
        module, "weight", getattr(getattr(module, "base_layer", None), "weight", None)
    )
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _last(calls: list[_WatchedCall]) -> _WatchedCall | None:
    return calls[-1] if calls else None


def _qkv_rank(call: _WatchedCall) -> int:
    name = call.path.rpartition(".")[2].lower()
    return next((place for place, letter in enumerate("qkv") if name.startswith(letter)), 3)


def _path_of(root: nn.Module, part: nn.Module, where: str) -> str:
    modules: dict[str, nn.Module] = dict(root.named_modules())
    for path, each in modules.items():
        if each is part:
            return path
    raise UnmappedModel(f"the {type(part).__name__} of the vocabulary is elsewhere", where=where)


def _has_interface(attention: nn.Module) -> bool:
    home = sys.modules[type(attention).__module__]
    return hasattr(attention, "config") and all(
        hasattr(home, name) for name in ("ALL_ATTENTION_FUNCTIONS", "eager_attention_forward")
    )
