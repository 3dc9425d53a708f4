"""Trusted prompts that a feature keeps, as the model was given them."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from offkey.data import Batch
from offkey.errors import NotEnoughData

__all__ = ["TrustedSample", "batch_from_state", "batch_state", "joined"]


class TrustedSample:
    """A sample of the trusted prompts: those whose ids hash lowest, in whatever order they come.

    Args:
        feature: name of the feature that keeps them, for messages.
        count: how many are kept at most.
    """

    def __init__(self, feature: str, count: int) -> None:
        self.feature, self.count = feature, count
        self._rows: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Keeps those prompts of a batch, and of the ones before, that belong to the sample."""
        batch = batch.to("cpu")
        rows = [*self._rows, *(batch.alone(row) for row in range(len(batch)))]
        self._rows = sorted(rows, key=_rank)[: self.count]

    def rows(self) -> list[Batch]:
        """The sample, one prompt a batch.

        Raises:
            NotEnoughData: no prompt was added.
        """
        if not self._rows:
            raise NotEnoughData("it has seen no trusted prompts", where=f"feature {self.feature}")

        return self._rows


def joined(rows: Sequence[Batch]) -> Batch:
    """One batch of single rows, padded on the left where they hold tokens."""
    ids = tuple(row.ids[0] for row in rows)
    first = rows[0]
    choices = None
    if any(row.choices is not None for row in rows):
        given = [_choices(row) for row in rows]
        width = max(len(row) for row in given)
        choices = torch.stack([_padded(row, width, -1, left=False) for row in given])
    if first.mask is None:
        inputs = {name: torch.cat([r.inputs[name] for r in rows]) for name in first.inputs}
        return Batch(inputs, ids, choices=choices)
    width = max(row.inputs["input_ids"].shape[1] for row in rows)
    inputs = {
        name: torch.stack([_padded(row.inputs[name][0], width, 0) for row in rows])
        for name in first.inputs
    }
    mask = torch.stack(
        [_padded(row.mask[0], width, False) for row in rows if row.mask is not None]
    )

    return Batch(inputs, ids, mask=mask, positions=_positions(mask), choices=choices)


def batch_state(batch: Batch) -> dict[str, Any]:
    """A batch as plain values and tensors."""
    state: dict[str, Any] = {"ids": list(batch.ids), "inputs": dict(batch.inputs)}

    return state | {
        name: value for name in ("mask", "choices") if (value := getattr(batch, name)) is not None
    }


def batch_from_state(state: Mapping[str, Any]) -> Batch:
    """The batch that :func:`batch_state` described."""
    mask: Tensor | None = state.get("mask")

    return Batch(
        dict(state["inputs"]),
        tuple(state["ids"]),
        mask=mask,
        positions=None if mask is None else _positions(mask),
        choices=state.get("choices"),
    )


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _rank(row: Batch) -> bytes:
    return blake2b(row.ids[0].encode(), digest_size=8).digest()


def _choices(row: Batch) -> Tensor:
    return torch.empty(0, dtype=torch.long) if row.choices is None else row.choices[0]


def _padded(x: Tensor, width: int, fill: int | bool, *, left: bool = True) -> Tensor:
    padding = x.new_full((width - len(x),), fill)

    return torch.cat([padding, x] if left else [x, padding])
