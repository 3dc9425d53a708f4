"""How far a model's answers moved at each strength of a perturbation, and summaries of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadValue, Mismatch, NonFinite, UnknownName, check
from offkey.models import kl, log_probabilities, preferred_answer
from offkey.storage import load_artefact, save_artefact

__all__ = ["Curve", "ReferenceOutputs", "Summary", "load_curves", "measured", "summarise"]

Array = np.ndarray
Summary = Literal["auc", "at", "strength_at", "slope", "volume"]
KIND = "sensitivity-curve"


@dataclass(frozen=True, eq=False)
class ReferenceOutputs:
    """The answers of the unperturbed model to a batch.

    Attributes:
        log_p: log-probabilities of the next token, in nats, in float64.
        answer: token of the answer that each row prefers: the likeliest of its choices, or the
            likeliest token where it has none.
        batch: the prompts.
    """

    log_p: Float[Tensor, "batch vocab"]
    answer: Int[Tensor, " batch"]
    batch: Batch

    @classmethod
    def of(cls, logits: Float[Tensor, "batch vocab"], batch: Batch) -> Self:
        """From the logits of the unperturbed model at the last token."""
        batch, logits = batch.to("cpu"), _double(logits)

        return cls(log_probabilities(logits), preferred_answer(logits, batch).token, batch)

    def compare(
        self, logits: Float[Tensor, "batch vocab"]
    ) -> Mapping[str, Float[Tensor, " batch"]]:
        r"""How far other logits are from these, row by row.

        ``kl`` is :math:`D(p \| q)` in nats, with p of the unperturbed model; ``drop`` is the fall
        of the probability of its preferred answer; ``right`` is 1 where the choice now preferred
        is the target and 0 where it is another, NaN for a row without choices or target.

        Raises:
            NonFinite: the perturbed model's logits are NaN or infinite.
        """
        finite = logits.isfinite().all(1).tolist()
        if not all(finite):
            raise NonFinite(
                "the perturbed model's logits are not finite",
                where=f"prompt {self.batch.ids[finite.index(False)]}",
            )
        logits = _double(logits)
        log_q = log_probabilities(logits)
        rows = torch.arange(len(logits))

        return {
            "kl": kl(self.log_p, logits),
            "drop": self.log_p[rows, self.answer].exp() - log_q[rows, self.answer].exp(),
            "right": self._right(logits),
        }

    def _right(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        choices, target = self.batch.choices, self.batch.target
        missing = torch.full((len(logits),), torch.nan, dtype=torch.float64)
        if choices is None or target is None:
            return missing
        chosen = preferred_answer(logits, self.batch).choice
        known = (choices >= 0).any(1) & (target >= 0)

        return torch.where(known, (chosen == target).double(), missing)


@dataclass(frozen=True, eq=False)
class Curve:
    r"""How a model's answers moved, at each strength of a perturbation, for each draw of it.

    Attributes:
        strengths: ``[strength]``, as asked for: a coefficient, a radius or a KL in nats.
        norms: ``[strength, draw]``, Euclidean norm of the perturbation.
        relative: ``[strength, draw]``, the same as a share of the norm of what was perturbed.
        values: ``[strength, draw, prompt]`` by metric: ``kl`` (nats, from the unperturbed model to
            the perturbed one, at the last token), ``drop`` (fall of the probability of the answer
            that the unperturbed model prefers, from −1 to 1), and, if a prompt has a target,
            ``right`` (1 where the preferred choice is the target; NaN for a prompt without one).
        ids: ids of the prompts.
        about: what was perturbed, and how: plain values.
    """

    strengths: Float64[Array, " strength"]
    norms: Float64[Array, "strength draw"]
    relative: Float64[Array, "strength draw"]
    values: Mapping[str, Float64[Array, "strength draw prompt"]]
    ids: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (*self.norms.shape, len(self.ids))
        for name, value in self.values.items():
            check(
                value.shape == shape,
                f"values of shape {value.shape} where {shape} was expected",
                where=f"metric {name}",
                error=Mismatch,
            )
        check(
            self.relative.shape == self.norms.shape and len(self.strengths) == len(self.norms),
            "strengths and norms do not belong together",
            where="Curve",
            error=Mismatch,
        )

    def metric(self, name: str) -> Float64[Array, "strength draw prompt"]:
        """The values of a metric; NaN for prompts that have none.

        Raises:
            UnknownName: it was not measured.
        """
        if name not in self.values:
            raise UnknownName("metric", name, self.values)

        return self.values[name]

    def missing(self, metric: str) -> int:
        """How many prompts have no value of a metric, and are left out of its means."""
        return int(np.isnan(self.metric(metric)).all(axis=(0, 1)).sum())

    def mean(self, metric: str) -> Float64[Array, " strength"]:
        """Mean over draws and the prompts that have a value."""
        return np.asarray(np.nanmean(self.metric(metric), axis=(1, 2)))

    def draw_means(self, metric: str) -> Float64[Array, "strength draw"]:
        """Mean over the prompts that have a value, for each draw."""
        return np.asarray(np.nanmean(self.metric(metric), axis=2))

    def spread(self, metric: str) -> Float64[Array, " strength"]:
        """Standard error over draws of the mean over prompts; NaN with a single draw."""
        means = self.draw_means(metric)
        if means.shape[1] < 2:
            return np.full(len(means), np.nan)
        error: Array = means.std(axis=1, ddof=1) / means.shape[1] ** 0.5

        return error

    def save(self, folder: str | Path) -> None:
        """Writes the curve to a folder, as tensors and JSON."""
        tensors = {
            "strengths": self.strengths,
            "norms": self.norms,
            "relative": self.relative,
            **{f"values.{name}": value for name, value in self.values.items()},
        }
        save_artefact(
            folder,
            {"ids": list(self.ids), "about": dict(self.about)},
            {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in tensors.items()},
            kind=KIND,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The curve that :meth:`save` wrote.

        Raises:
            Damaged: a file is missing, truncated or edited.
        """
        saved = load_artefact(folder, kind=KIND)
        arrays = {name: tensor.numpy() for name, tensor in saved.tensors.items()}
        values = {n.removeprefix("values."): a for n, a in arrays.items() if "." in n}

        return cls(
            arrays["strengths"],
            arrays["norms"],
            arrays["relative"],
            values,
            tuple(saved.settings["ids"]),
            saved.settings["about"],
        )


def load_curves(folders: Sequence[str | Path]) -> dict[str, Curve]:
    """Saved curves by the names of their folders.

    Raises:
        BadValue: two folders have the same name.
        Damaged: a curve cannot be read.
    """
    names = [Path(folder).name for folder in folders]
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise BadValue(
            f"two folders are named {repeated[0]!r}",
            where="curves",
            mend="Give each model's curve a name of its own",
        )

    return {name: Curve.load(folder) for name, folder in zip(names, folders, strict=True)}


def measured(
    values: Mapping[str, Float64[Array, "strength draw prompt"]],
) -> dict[str, Float64[Array, "strength draw prompt"]]:
    """The metrics that at least one prompt has."""
    return {name: value for name, value in values.items() if not np.isnan(value).all()}


def summarise(
    curve: Curve, how: Summary = "auc", *, metric: str = "kl", at: float | None = None
) -> float:
    r"""One number for a curve; higher means that the model moves more.

    ``"auc"``: mean height of the averaged metric over the range of strengths (trapezoids).
    ``"at"``: its height at the strength ``at``, by linear interpolation. ``"strength_at"``: minus
    the logarithm of the strength at which it first reaches ``at``, interpolated in the logarithms
    of both; minus that of the greatest strength where it never does. ``"slope"``:
    :math:`d \ln \text{metric} / d \ln \text{strength}`, by least squares. ``"volume"``: minus the
    mean over draws of the logarithm of the length at which each first reaches ``at``; for weight
    noise this is, up to a constant, minus the log local volume along typical rays per parameter.

    Raises:
        UnknownName: there is no such summary or metric.
        BadValue: ``at`` is missing, or outside the strengths measured.
    """
    if how not in get_args(Summary):
        raise UnknownName("summary", how, get_args(Summary), where="how")
    x, y = curve.strengths, curve.mean(metric)
    if how == "auc":
        return float(np.trapezoid(y, x) / (x[-1] - x[0]))
    if how == "slope":
        ok = (x > 0) & (y > 0)
        return float(np.polyfit(np.log(x[ok]), np.log(y[ok]), 1)[0])
    if at is None:
        raise BadValue(f"'{how}' needs a value", where="at")
    if how == "at":
        check(x[0] <= at <= x[-1], f"{at} is outside {x[0]} … {x[-1]}", where="at")
        return float(np.interp(at, x, y))
    if how == "volume":
        draws = zip(curve.norms.T, curve.draw_means(metric).T, strict=True)
        return -float(np.mean([_log_strength_at(length, each, at) for length, each in draws]))

    return -_log_strength_at(x, y, at)


def _log_strength_at(x: Array, y: Array, level: float) -> float:
    check(level > 0, f"{level} is not positive", where="at")
    reached = np.flatnonzero((y >= level) & (x > 0))
    if not len(reached):
        return float(np.log(x[-1]))
    right = int(reached[0])
    left = right - 1
    if left < 0 or x[left] <= 0 or y[left] <= 0:
        return float(np.log(x[right]))
    share = (np.log(level) - np.log(y[left])) / (np.log(y[right]) - np.log(y[left]))

    return float(np.log(x[left]) + share * (np.log(x[right]) - np.log(x[left])))


def _double(logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    return logits.detach().cpu().double()
