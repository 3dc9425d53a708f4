"""Trusted prompts that a feature keeps, as the model was given them."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from offkey.data import Batch
from offkey.errors import NotEnoughData

__all__ = ["Kept", "from_state", "joined", "to_state"]


class Kept:
    """A few of the trusted prompts that a feature is shown: those whose ids hash lowest.

    Args:
        feature: its name, for messages.
        count: how many are kept at most.
    """

    def __init__(self, feature: str, count: int) -> None:
        self.feature, self.count = feature, count
        self._rows: list[Batch] = []

    def see(self, batch: Batch) -> None:
        """Keeps some of a batch, and of what was kept before; in whatever order they come."""
        batch = batch.to("cpu")
        rows = [*self._rows, *(batch.alone(row) for row in range(len(batch)))]
        self._rows = sorted(rows, key=_rank)[: self.count]

    def taken(self) -> list[Batch]:
        """What was kept, a prompt a batch; nothing is held afterwards.

        Raises:
            NotEnoughData: no prompt was shown.
        """
        if not self._rows:
            raise NotEnoughData("it has seen no trusted prompts", where=f"feature {self.feature}")
        rows, self._rows = self._rows, []

        return rows


def joined(rows: Sequence[Batch]) -> Batch:
    """One batch of single rows, padded on the left where they hold tokens."""
    ids = tuple(row.ids[0] for row in rows)
    first = rows[0]
    choices = None
    if any(row.choices is not None for row in rows):
        given = [_choices(row) for row in rows]
        width = max(len(row) for row in given)
        choices = torch.stack([_filled(row, width, -1, left=False) for row in given])
    if first.mask is None:
        inputs = {name: torch.cat([r.inputs[name] for r in rows]) for name in first.inputs}
        return Batch(inputs, ids, choices=choices)
    width = max(row.inputs["input_ids"].shape[1] for row in rows)
    inputs = {
        name: torch.stack([_filled(row.inputs[name][0], width, 0) for row in rows])
        for name in first.inputs
    }
    mask = torch.stack(
        [_filled(row.mask[0], width, False) for row in rows if row.mask is not None]
    )

    return Batch(inputs, ids, mask=mask, positions=(mask.long().cumsum(1) - 1).clamp(min=0),
                 choices=choices)  # fmt: skip


def to_state(batch: Batch) -> dict[str, Any]:
    """A batch as plain values and tensors."""
    told: dict[str, Any] = {"ids": list(batch.ids), "inputs": dict(batch.inputs)}

    return told | {
        name: value for name in ("mask", "choices") if (value := getattr(batch, name)) is not None
    }


def from_state(state: Mapping[str, Any]) -> Batch:
    """The batch that :func:`to_state` described."""
    mask: Tensor | None = state.get("mask")
    positions = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)

    return Batch(dict(state["inputs"]), tuple(state["ids"]), mask=mask, positions=positions,
                 choices=state.get("choices"))  # fmt: skip


def _rank(row: Batch) -> bytes:
    return blake2b(row.ids[0].encode(), digest_size=8).digest()


def _choices(row: Batch) -> Tensor:
    return torch.empty(0, dtype=torch.long) if row.choices is None else row.choices[0]


def _filled(x: Tensor, width: int, fill: int | bool, *, left: bool = True) -> Tensor:
    empty = x.new_full((width - len(x),), fill)

    return torch.cat([empty, x] if left else [x, empty])
