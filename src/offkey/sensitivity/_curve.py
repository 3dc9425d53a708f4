"""What a perturbation did, strength by strength; and how a curve is summed up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float64

from offkey.errors import BadValue, Mismatch, UnknownName
from offkey.storage import load_artefact, save_artefact

__all__ = ["Curve", "Summary", "summarise"]

Array = np.ndarray
Summary = Literal["auc", "at", "strength_at", "slope", "volume"]
KIND = "sensitivity-curve"


@dataclass(frozen=True, eq=False)
class Curve:
    r"""How a model's answers moved, at each strength of a perturbation, for each draw of it.

    Attributes:
        strengths: ``[strength]``, what was asked for: a coefficient, a radius or a KL in nats.
        norms: ``[strength, draw]``, Euclidean norm of the perturbation.
        relative: ``[strength, draw]``, the same as a share of the norm of what was perturbed.
        values: ``[strength, draw, prompt]`` by metric: ``kl`` (nats, from the undisturbed model to
            the disturbed one, at the last token), ``drop`` (fall of the probability of the answer
            that the undisturbed model prefers, from −1 to 1), and ``right`` (1 where the preferred
            choice is the target) where prompts have one.
        ids: of the prompts.
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
            if value.shape != shape:
                raise Mismatch(f"values of shape {value.shape} where {shape} was expected",
                               where=f"metric {name}")  # fmt: skip
        if self.relative.shape != self.norms.shape or len(self.strengths) != len(self.norms):
            raise Mismatch("strengths and norms do not belong together", where="Curve")

    def metric(self, name: str) -> Float64[Array, "strength draw prompt"]:
        """The values of a metric.

        Raises:
            UnknownName: it was not measured.
        """
        if name not in self.values:
            raise UnknownName("metric", name, self.values)

        return self.values[name]

    def mean(self, metric: str) -> Float64[Array, " strength"]:
        """Over draws and prompts."""
        mean: Array = self.metric(metric).mean(axis=(1, 2))

        return mean

    def spread(self, metric: str) -> Float64[Array, " strength"]:
        """Standard error over draws of the mean over prompts; NaN with a single draw."""
        means = self.metric(metric).mean(axis=2)
        if means.shape[1] < 2:
            return np.full(len(means), np.nan)
        error: Array = means.std(axis=1, ddof=1) / means.shape[1] ** 0.5

        return error

    def save(self, folder: str | Path) -> None:
        """Writes the curve to a folder, as tensors and JSON."""
        tensors = {"strengths": self.strengths, "norms": self.norms, "relative": self.relative,
                   **{f"values.{name}": value for name, value in self.values.items()}}  # fmt: skip
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
            Damaged: a file is missing, cut short or edited.
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


def summarise(
    curve: Curve, how: Summary = "auc", *, metric: str = "kl", at: float | None = None
) -> float:
    r"""One number for a curve; higher means that the model moves more.

    ``"auc"``: mean height of the averaged metric over the range of strengths (trapezoids).
    ``"at"``: its height at the strength ``at``, by linear interpolation. ``"strength_at"``: minus
    the logarithm of the strength at which it first reaches ``at``, interpolated in the logarithms
    of both; minus that of the greatest strength where it never does. ``"slope"``:
    :math:`d \ln \text{metric} / d \ln \text{strength}`, by least squares. ``"volume"``: minus the
    mean over draws of the logarithm of the length at which each first reaches ``at``, which for
    weight noise is minus the log local volume along typical rays, a parameter, but for a constant.

    Raises:
        BadValue: ``at`` is missing, or outside the strengths measured.
    """
    x, y = curve.strengths, curve.mean(metric)
    if how == "auc":
        return float(np.trapezoid(y, x) / (x[-1] - x[0]))
    if how == "slope":
        ok = (x > 0) & (y > 0)
        return float(np.polyfit(np.log(x[ok]), np.log(y[ok]), 1)[0])
    if at is None:
        raise BadValue(f"'{how}' needs a value", where="at")
    if how == "at":
        if not x[0] <= at <= x[-1]:
            raise BadValue(f"{at} is outside {x[0]} … {x[-1]}", where="at")
        return float(np.interp(at, x, y))
    if how == "volume":
        draws = zip(curve.norms.T, curve.metric(metric).mean(axis=2).T, strict=True)
        return -float(np.mean([_log_strength_at(length, each, at) for length, each in draws]))

    return -_log_strength_at(x, y, at)


def _log_strength_at(x: Array, y: Array, level: float) -> float:
    if level <= 0:
        raise BadValue(f"{level} is not positive", where="at")
    reached = np.flatnonzero((y >= level) & (x > 0))
    if not len(reached):
        return float(np.log(x[-1]))
    right = int(reached[0])
    left = right - 1
    if left < 0 or x[left] <= 0 or y[left] <= 0:
        return float(np.log(x[right]))
    share = (np.log(level) - np.log(y[left])) / (np.log(y[right]) - np.log(y[left]))

    return float(np.log(x[left]) + share * (np.log(x[right]) - np.log(x[left])))
