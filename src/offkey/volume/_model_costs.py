"""What moving a model's weights costs on given batches, whatever is held against the anchor."""

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadInput, BadValue, NonFiniteCost
from offkey.models import Model
from offkey.volume._costs import Cost
from offkey.volume._derivative import bending
from offkey.volume._outputs import Rows, logits_of
from offkey.volume._tail import Tail
from offkey.volume._warnings import DuplicateExamples

__all__ = ["ModelCost", "Reduce"]

Array = np.ndarray
Reduce = Literal["mean", "per_example"]


class ModelCost(Cost):
    """A cost of a model's outputs on batches, against what they are at the anchor.

    The anchor's outputs are computed once, when they are first needed, and kept.

    Args:
        model: whose weights move; evaluated through :meth:`offkey.models.Model.perturbed`.
        batches: what it is given.
        reduce: the mean over tokens (over rows without a token axis), or a number for each
            example, the mean over its tokens.
        start: a block of a decoder; the earlier ones are run once and their states kept, so only
            parameters of this block and later ones may move.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        reduce: Reduce = "mean",
        start: int | None = None,
    ) -> None:
        if not batches:
            raise BadInput("there are no batches", where="cost")
        if reduce not in ("mean", "per_example"):
            raise BadValue(f"{reduce!r} is not known", where="reduce",
                           mend="Use mean or per_example")  # fmt: skip
        self.model, self.reduce = model, reduce
        self.batches = [batch.to(model.device) for batch in batches]
        self.tail = None if start is None else Tail(model, start)
        self._anchors: list[Tensor] = []
        self._counts: list[Tensor] = []
        if reduce == "mean":
            self._warn_of_duplicates()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the examples, in order."""
        return tuple(name for batch in self.batches for name in batch.ids)

    @property
    def is_single(self) -> bool:
        """Whether it gives one number."""
        return self.reduce == "mean"

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The model's floating-point weights."""
        return {
            name: weight
            for name, weight in self.model.module.named_parameters()
            if weight.is_floating_point()
        }

    @property
    def anchors(self) -> list[Tensor]:
        """What the tokens of each batch are held against."""
        if not self._anchors:
            made, self._counts = [], []
            for number, batch in enumerate(self.batches):
                rows = self._rows(number, batch, first=True)
                self._counts.append(torch.from_numpy(self.counted(rows, batch).counts))
                told = self.anchor(rows, batch)
                finite = told.isfinite().view(len(told), -1).all(1)
                if not bool(finite.all()):
                    bad = self.counted(rows, batch).owner(int(finite.long().argmin()))
                    raise NonFiniteCost("NaN or infinity in the anchor's output",
                                        where=f"prompt {batch.ids[bad]}",
                                        mend="Load the model in float32")  # fmt: skip
                made.append(told)
            self._anchors = made

        return self._anchors

    def evaluate(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """The cost of one perturbation; examples that are not asked for are not run."""
        anchors = self.anchors
        totals, counts = [], []
        with self.model.perturbed(delta):
            for number, batch, keep in self._asked(among):
                rows = self._rows(number, batch, keep)
                anchor = anchors[number]
                if keep is not None:
                    anchor = anchor[keep.repeat_interleave(self._counts[number]).to(anchor.device)]
                told = self.compare(anchor, rows, batch).cpu().double().numpy()
                count = self.counted(rows, batch).counts
                owners = np.repeat(np.arange(len(count)), count)
                totals.append(np.bincount(owners, told, minlength=len(count)))
                counts.append(count)
        total, each = np.concatenate(totals), np.concatenate(counts)
        if self.is_single:
            return np.array([total.sum() / each.sum()])
        told = total / each

        return np.asarray(told, dtype=np.float64)

    @abstractmethod
    def anchor(self, rows: Rows, batch: Batch) -> Tensor:
        """What is kept of a batch's logits at the anchor."""

    @abstractmethod
    def compare(self, anchor: Tensor, rows: Rows, batch: Batch) -> Float[Tensor, " token"]:
        """The cost at each token of a batch."""

    def counted(self, rows: Rows, batch: Batch) -> Rows:
        """The tokens that have a cost."""
        return rows

    @property
    def only_last(self) -> bool:
        """Whether only the logits of the last token are needed."""
        return False

    def fingerprint(self) -> dict[str, Any]:
        """Model, data and settings."""
        hasher = hashlib.sha256()
        for batch in self.batches:
            named = {**batch.inputs, "mask": batch.mask, "target": batch.target}
            for name, value in sorted(named.items()):
                if value is not None:
                    hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                    hasher.update(value.cpu().contiguous().numpy().tobytes())

        return {
            "cost": type(self).__name__, "model": self.model.fingerprint, "reduce": self.reduce,
            "start": None if self.tail is None else self.tail.block, "data": hasher.hexdigest(),
        }  # fmt: skip

    def check_moving(self, names: tuple[str, ...]) -> None:
        """Refuses parameters that the earlier blocks use, if those are not run again.

        Raises:
            BadValue: names one.
        """
        if self.tail is None:
            return
        hidden = set(names) - set(self.tail.sees(names))
        if hidden:
            raise BadValue(f"it is used before block {self.tail.block}",
                           where=f"parameter {min(hidden)}",
                           mend="Choose later parameters, or leave start out")  # fmt: skip

    def curvature(self, delta: Mapping[str, Tensor]) -> float:
        r"""Twice the cost of a small perturbation per squared multiple of it, by one derivative.

        .. math:: \delta^\top F \delta = \mathrm{mean}_t\,\mathrm{Var}_{p_t}(J\delta)

        with F the Fisher information of the outputs; exact for the KL cost.

        Raises:
            BadValue: a part of the model has no forward-mode derivative.
        """
        total, count = 0.0, 0
        for batch in self.batches:
            told, tokens = bending(
                self.model, batch, self.parameters, delta, only_last=self.only_last
            )
            self.forwards += 1
            total, count = total + told, count + tokens

        return total / count

    def outputs(self, batch: Batch) -> Iterator[Tensor]:
        """Logits of each example's tokens, by a plain pass of each alone."""
        for number in range(len(batch)):
            one = batch.select(torch.arange(len(batch)) == number)
            self.forwards += 1
            logits = logits_of(self.model.forward(one, **self._extra))
            yield Rows.of(logits, one, only_last=self.only_last).logits

    @property
    def _extra(self) -> dict[str, int]:
        return {"logits_to_keep": 1} if self.only_last else {}

    def _asked(
        self, among: Bool[Array, " n"] | None
    ) -> Iterator[tuple[int, Batch, Bool[Tensor, " batch"] | None]]:
        """What is run of each batch, and which of its examples those are; None for all."""
        start = 0
        for number, batch in enumerate(self.batches):
            stop = start + len(batch)
            keep = None if among is None else torch.from_numpy(among[start:stop])
            start = stop
            if keep is None or bool(keep.all()):
                yield number, batch, None
            elif bool(keep.any()):
                yield number, batch.select(keep), keep

    def _rows(
        self,
        number: int,
        batch: Batch,
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        first: bool = False,
    ) -> Rows:
        """Logits of the tokens that count."""
        self.forwards += 1
        with torch.inference_mode():
            if self.tail is None:
                raw = self.model.forward(batch, **self._extra)
            elif first:
                raw = self.tail.first(number, batch, **self._extra)
            else:
                raw = self.tail.again(number, batch, keep, **self._extra)

            return Rows.of(logits_of(raw), batch, only_last=self.only_last)

    def _warn_of_duplicates(self) -> None:
        seen: dict[bytes, str] = {}
        for batch in self.batches:
            for i, name in enumerate(batch.ids):
                row = b"".join(_bytes(value[i], batch, i) for value in batch.inputs.values())
                if row in seen:
                    warnings.warn(f"prompts {seen[row]} and {name} are the same",
                                  DuplicateExamples, stacklevel=4)  # fmt: skip
                    return
                seen[row] = name


def _bytes(row: Tensor, batch: Batch, number: int) -> bytes:
    if batch.mask is not None and row.shape[:1] == batch.mask.shape[1:]:
        row = row[batch.mask[number]]

    return row.detach().cpu().contiguous().numpy().tobytes() + b"|"
