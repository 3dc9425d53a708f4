"""The parameters that move, and how patterns choose them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Self

import torch
from torch import Tensor

from offkey.errors import NoMatchingParameters, nearest

__all__ = ["Space", "dot"]

BLOCK = 1 << 16


@dataclass(frozen=True)
class Space:
    """Parameters that move together, by name, in the model's order.

    Attributes:
        anchors: their values; the live tensors, which are read while nothing is perturbed.
    """

    anchors: Mapping[str, Tensor]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], patterns: str | Sequence[str]) -> Self:
        """The parameters whose names match; patterns are shell-like, commas part several.

        Raises:
            NoMatchingParameters: a pattern matches none.
        """
        wanted = patterns.split(",") if isinstance(patterns, str) else list(patterns)
        wanted = [pattern.strip() for pattern in wanted]
        chosen = set()
        for pattern in wanted or [""]:
            found = [name for name in parameters if name == pattern or fnmatchcase(name, pattern)]
            if not found:
                close = nearest(pattern.strip("*"), parameters) or list(parameters)[:3]
                raise NoMatchingParameters(
                    f"no parameter matches {pattern!r}",
                    where="params",
                    mend="There are for example " + ", ".join(close),
                )
            chosen.update(found)

        return cls({name: value.detach() for name, value in parameters.items() if name in chosen})

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the model's order."""
        return tuple(self.anchors)

    @cached_property
    def dimensions(self) -> int:
        """How many numbers move."""
        return sum(prod(value.shape) for value in self.anchors.values())

    @cached_property
    def squared(self) -> float:
        """Squared length of the anchor, in float64."""
        return sum(dot(value, value) for value in self.anchors.values())

    @property
    def bytes(self) -> int:
        """What the parameters take in memory."""
        return sum(value.numel() * value.element_size() for value in self.anchors.values())


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product in float64, a block at a time."""
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    if len(a) <= BLOCK:
        return float(a.double() @ b.double())
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK].double()
        other = part if b is a else b[start : start + BLOCK].double()
        total += part @ other

    return float(total)
