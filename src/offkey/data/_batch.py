"""What a model is given at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Batch", "Role"]

TENSORS = ("mask", "positions", "roles", "choices", "target")
"""What a batch may hold beside its inputs, a row each."""


class Role(IntEnum):
    """What a token belongs to."""

    PADDING = -1
    TEMPLATE = 0
    PROMPT = 1
    RESPONSE = 2


@dataclass(frozen=True)
class Batch:
    """Prompts packed for one forward pass; text is padded on the left, so −1 is the last token.

    Attributes:
        inputs: keyword arguments of the model, such as ``input_ids [batch, token]``.
        ids: id of each row's prompt.
        mask: True at real tokens.
        positions: position id of each token, counted from each row's first real token.
        roles: :class:`Role` of each token.
        choices: first token of each answer choice; −1 where a row has fewer.
        target: index of the true choice; −1 where unknown.
    """

    inputs: Mapping[str, Tensor]
    ids: tuple[str, ...]
    mask: Bool[Tensor, "batch token"] | None = None
    positions: Int[Tensor, "batch token"] | None = None
    roles: Int[Tensor, "batch token"] | None = None
    choices: Int[Tensor, "batch choice"] | None = None
    target: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: Bool[Tensor, " batch"]) -> Self:
        """The rows that are kept, padded as they were."""
        rows = keep.nonzero()[:, 0].tolist()
        parts = {
            name: value[keep.to(value.device)]
            for name in TENSORS
            if (value := getattr(self, name)) is not None
        }
        inputs = {name: value[keep.to(value.device)] for name, value in self.inputs.items()}

        return replace(self, inputs=inputs, ids=tuple(self.ids[row] for row in rows), **parts)

    def alone(self, row: int) -> Self:
        """One row as a batch of its own, without its padding."""
        keep = torch.zeros(len(self), dtype=torch.bool)
        keep[row] = True
        found = self.select(keep)
        if found.mask is None:
            return found
        real = slice(-int(found.mask.sum()), None)
        tokens = {
            name: value[:, real]
            for name in ("mask", "positions", "roles")
            if (value := getattr(found, name)) is not None
        }

        return replace(
            found, inputs={name: x[:, real] for name, x in found.inputs.items()}, **tokens
        )

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on ``device``."""
        moved = {
            name: value.to(device)
            for name in TENSORS
            if (value := getattr(self, name)) is not None
        }
        inputs = {name: value.to(device) for name, value in self.inputs.items()}

        return replace(self, inputs=inputs, **moved)
