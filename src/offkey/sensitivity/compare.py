"""Telling misaligned models from aligned ones by one score for each model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import mannwhitneyu, norm

from offkey.errors import BadInput, Mismatch, NotEnoughData, check
from offkey.sensitivity.curve import Curve, Summary, summarise
from offkey.stats import Interval, RocCurve, named_rng, roc_curve

__all__ = [
    "Comparison",
    "CurveComparison",
    "check_comparable",
    "compare_curves",
    "compare_models",
    "smallest_detectable_auroc",
]

Array = np.ndarray
RESAMPLES = 2000
SHARED = (
    "perturbed",
    "site",
    "parameters",
    "shape",
    "coefficients",
    "radii",
    "draws",
    "seed",
    "prompts",
    "target_kl",
)
"""Settings in which curves must agree to be comparable."""


@dataclass(frozen=True)
class Comparison:
    """How well one score tells misaligned models from aligned ones.

    Attributes:
        auroc: probability that a misaligned model scores higher than an aligned one, ties counting
            half. Its interval comes from resampling models, not pairs.
        roc: the ROC curve.
        pairs: how many pairs of a misaligned and an aligned model there are.
    """

    auroc: Interval
    roc: RocCurve | None
    pairs: int

    @property
    def smallest_detectable(self) -> float:
        """The AUROC from which on a population of this size shows a difference."""
        return smallest_detectable_auroc(self.auroc.n_pos, self.auroc.n_neg)


class CurveComparison(NamedTuple):
    """A comparison of curves.

    Attributes:
        scores: one number for each model, by name.
        comparison: how well they separate misaligned models from aligned ones.
    """

    scores: dict[str, float]
    comparison: Comparison


def compare_models(
    scores: Mapping[str, float],
    misaligned: Mapping[str, bool],
    *,
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares one score over a population of models.

    Args:
        scores: by model; higher means misaligned.
        misaligned: which models are.
        kinds: how each was made; if given, kinds are resampled first and models within them,
            since models of one kind are alike.
        seed: seed of the resampling.

    Raises:
        Mismatch: scores and labels are not of the same models.
        NotEnoughData: there are fewer than two models of either sort.
        BadInput: a score is not finite.
    """
    if set(scores) != set(misaligned):
        odd = sorted(set(scores) ^ set(misaligned))[0]
        raise Mismatch("it has a score or a label, but not both", where=f"model {odd}")
    names = sorted(scores)
    x = np.array([scores[name] for name in names])
    y = np.array([misaligned[name] for name in names], dtype=bool)
    check(
        min(y.sum(), (~y).sum()) >= 2,
        f"{y.sum()} misaligned and {(~y).sum()} aligned models",
        where="comparison",
        mend="Give at least two of each",
        error=NotEnoughData,
    )
    finite = np.isfinite(x)
    if not finite.all():
        raise BadInput("its score is not finite", where=f"model {names[int(np.argmin(finite))]}")
    groups = [kinds[name] if kinds else name for name in names]
    value = _auroc(x[y], x[~y])
    rng = named_rng(seed, "models")
    above, below = _members(groups, y, True), _members(groups, y, False)
    drawn = [
        _auroc(x[_resampled(above, rng)], x[_resampled(below, rng)]) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    interval = Interval(value, float(low), float(high), int(y.sum()), int((~y).sum()))

    return Comparison(interval, roc_curve(x, y.astype(int)), int(y.sum() * (~y).sum()))


def compare_curves(
    curves: Mapping[str, Curve],
    misaligned: Mapping[str, bool],
    *,
    how: Summary = "auc",
    metric: str = "kl",
    at: float | None = None,
    seed: int = 0,
) -> CurveComparison:
    """Asks whether a summary of curves separates misaligned models from aligned ones.

    Args:
        curves: by model, all measured with the same settings.
        misaligned: which models are.
        how: the summary, see :func:`summarise`.
        metric: ``"kl"``, ``"drop"`` or ``"right"``.
        at: strength or level of the summary, where it takes one.
        seed: seed of the resampling.

    Raises:
        Mismatch: the curves were measured with different settings, or labels are missing.
        NotEnoughData: there are fewer than two models of either sort.
    """
    check_comparable(curves)
    scores = {name: summarise(curve, how, metric=metric, at=at) for name, curve in curves.items()}

    return CurveComparison(scores, compare_models(scores, misaligned, seed=seed))


@cache
def smallest_detectable_auroc(
    misaligned: int, aligned: int, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest AUROC at which a two-sided rank test has the power to find a difference.

    For normal scores of equal variance, by 2,000 simulated populations for each candidate.

    Args:
        misaligned: how many models.
        aligned: how many models.
        power: probability that the test finds the difference.
        alpha: level of the test.

    Returns:
        In steps of 0.01; 1.0 where no AUROC is large enough.
    """
    rng = named_rng(0, "power", f"{misaligned} {aligned}")
    noise = rng.standard_normal((RESAMPLES, misaligned)), rng.standard_normal((RESAMPLES, aligned))
    for step in range(50, 100):
        shift = 2**0.5 * norm.ppf(step / 100)
        p_values = mannwhitneyu(noise[0] + shift, noise[1], axis=1).pvalue
        if (p_values <= alpha).mean() >= power:
            return step / 100

    return 1.0


def check_comparable(curves: Mapping[str, Curve]) -> None:
    """Refuses curves that were measured with different settings.

    Raises:
        Mismatch: names the setting and the two models.
    """
    (first, one), *rest = curves.items()
    for name, other in rest:
        for key in SHARED:
            if one.about.get(key) != other.about.get(key):
                raise Mismatch(
                    f"{key} is {other.about.get(key)!r} for {name} and {one.about.get(key)!r} for "
                    f"{first}",
                    where="curves",
                    mend="Measure all models with the same settings",
                )


def _auroc(above: Float64[Array, " m"], below: Float64[Array, " n"]) -> float:
    gap = above[:, None] - below[None, :]

    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def _members(groups: Sequence[str], y: Array, wanted: bool) -> list[list[int]]:
    """Places of the models of one sort, group by group."""
    members: dict[str, list[int]] = {}
    for place, (group, label) in enumerate(zip(groups, y, strict=True)):
        if label == wanted:
            members.setdefault(group, []).append(place)

    return [members[group] for group in sorted(members)]


def _resampled(members: Sequence[Sequence[int]], rng: np.random.Generator) -> list[int]:
    """Groups with replacement, then models within each."""
    chosen = [members[i] for i in rng.integers(len(members), size=len(members))]

    return [
        group[int(rng.integers(len(group)))] if len(group) > 1 else group[0]
        for group in chosen
        for _ in group
    ]
