"""Queries, keys, values and patterns, through the attention interface of transformers."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from offkey.errors import BadValue, UnmappedModel, check
from offkey.models.hooks import Hook, Side, call_hooks, hooks_at

__all__ = ["AttentionPort"]

_STOCK: dict[str, str] = {}
"""The kernel of transformers behind each name of ours."""


@dataclass
class _Switched:
    config: Any
    before: str
    users: int = 0


_SWITCHED: dict[int, _Switched] = {}
"""Configurations that hold a name of ours for a while, by identity."""


class AttentionPort:
    """The way to queries, keys, values and patterns: the attention interface of transformers.

    A function is registered there under a name of ours. It shows q, k and v to the hooks, and then
    calls the kernel that the model would have called, so that its result is bitwise the same. The
    name stands in the model's configuration only while some pass needs it.

    Args:
        configs: every configuration object in which the model looks up its kernel.
    """

    def __init__(self, configs: Iterable[Any]) -> None:
        self.configs = list({id(config): config for config in configs}.values())

    @property
    def kernel(self) -> str:
        """The name of the kernel that the model uses: ``eager``, ``sdpa``, …."""
        name = self.configs[0]._attn_implementation or "eager"
        return _STOCK.get(name, name)

    def check(self, side: Side) -> None:
        """Refuses what the model's kernel does not show.

        Raises:
            BadValue: patterns outside the eager kernel, or anything under a flash kernel.
        """
        check(
            side != "pattern" or self.kernel == "eager",
            f"attention patterns do not exist under the {self.kernel!r} kernel",
            where="site pattern",
            mend='Load the model with attn_implementation="eager"',
            error=BadValue,
        )
        check(
            "flash" not in self.kernel and "flex" not in self.kernel,
            f"queries, keys and values cannot be reached under the {self.kernel!r} kernel",
            where=f"site {side}",
            mend='Load the model with attn_implementation="sdpa" or "eager"',
            error=BadValue,
        )

    def switched(self) -> Callable[[], None]:
        """Puts our name into the configurations; what it returns puts theirs back."""
        name = _registered(self.kernel)
        for config in self.configs:
            before = config._attn_implementation_internal
            entry = _SWITCHED.setdefault(id(config), _Switched(config, before))
            entry.users += 1
            config._attn_implementation_internal = name

        return self._switch_back

    def _switch_back(self) -> None:
        for config in self.configs:
            entry = _SWITCHED[id(config)]
            entry.users -= 1
            if not entry.users:
                config._attn_implementation_internal = entry.before
                del _SWITCHED[id(config)]


def _registered(kernel: str) -> str:
    # Gemma 2 refuses a name that contains "sdpa".
    name = "offkey_" + kernel.replace("sdpa", "fused")
    if name not in _STOCK:
        AttentionInterface.register(name, partial(_attention, kernel))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
        _STOCK[name] = kernel

    return name


def _attention(
    kernel: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    query = _seen_by(hooks_at(module, "q"), query)
    key = _seen_by(hooks_at(module, "k"), key)
    value = _seen_by(hooks_at(module, "v"), value)
    stock = _stock_kernel(kernel, module)
    output, pattern = stock(module, query, key, value, attention_mask, **settings)

    hooks = hooks_at(module, "pattern")
    if hooks is None:
        return output, pattern
    if pattern is None:
        raise UnmappedModel("attention returns no pattern", where=type(module).__name__)
    new = _seen_by(hooks, pattern)
    if new is pattern:
        return output, pattern
    # From here on as in every eager kernel of transformers, after its softmax.
    groups = new.shape[1] // value.shape[1]
    if groups > 1:
        value = value.repeat_interleave(groups, dim=1)

    return (new @ value).transpose(1, 2).contiguous(), new


def _seen_by(hooks: list[Hook] | None, x: Tensor) -> Tensor:
    """Shows ``[batch, head, token, …]`` to hooks as ``[batch, token, head, …]``."""
    if hooks is None:
        return x
    new = call_hooks(hooks, x.transpose(1, 2))
    if new is None:
        return x
    new = new.transpose(1, 2)

    # The kernels' last bits depend on how their inputs lie in memory.
    return new if new.stride() == x.stride() else torch.empty_like(x).copy_(new)


def _stock_kernel(kernel: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if kernel == "eager" and getattr(module, "reorder_and_upcast_attn", False):
        return _upcast_gpt2

    home = sys.modules[type(module).__module__]
    stock: Callable[..., tuple[Tensor, Tensor | None]] = (
        home.eager_attention_forward
        if kernel == "eager"
        else getattr(home, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)[kernel]
    )

    return stock


def _upcast_gpt2(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, Tensor | None]:
    result: tuple[Tensor, Tensor | None] = module._upcast_and_reordered_attn(
        query, key, value, mask
    )

    return result
