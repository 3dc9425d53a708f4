"""How likely a catastrophe is: a detector behind a model, by Gaussians or by finite data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.stats import qmc
from torch import Tensor, nn

from offkey.errors import BadValue, Mismatch
from offkey.estimate.gaussian.distribution import normal_cdf, normal_pdf
from offkey.estimate.gaussian.normal import Normal
from offkey.estimate.gaussian.propagation import Layer, PropagationSettings, propagate, run
from offkey.estimate.quantities import Estimate
from offkey.models import Model

__all__ = [
    "orthant",
    "Draw",
    "Catastrophe",
    "Threshold",
    "ArgMax",
    "Fires",
    "probability",
    "finite_data",
]

_REPEATS = 8
_LEAST = 1e-300
_CHUNK = 1 << 14
Draw = Callable[[int, torch.Generator], Float[Tensor, "n d"]]


def orthant(
    mean: Float[Tensor, " d"],
    covariance: Float[Tensor, "d d"],
    *,
    draws: int = 1 << 14,
    seed: int = 0,
) -> Estimate:
    r""":math:`Pr[x_1 > 0, \dots, x_d > 0]`, also where it is far below 1 / ``draws``.

    Genz's separation of variables: coordinate by coordinate, each drawn above 0 given the ones
    before and weighted by the probability of that, with the unlikeliest first; scrambled Sobol
    points in several repeats, whose spread is the error.

    References:
        Genz, 1992: Numerical computation of multivariate normal probabilities.
        https://doi.org/10.1080/10618600.1992.10477010
    """
    factor, centre = _ordered(mean.double(), covariance.double())
    width, each = len(centre), 1 << max(4, math.ceil(math.log2(max(1, draws // _REPEATS))))
    values = []
    for repeat in range(_REPEATS):
        points = qmc.Sobol(max(1, width - 1), seed=seed * _REPEATS + repeat).random(each)
        values.append(float(_weights(factor, centre, torch.from_numpy(points)).mean()))
    repeats = torch.tensor(values, dtype=torch.float64)
    value = float(repeats.mean())
    if value < _LEAST:
        return Estimate(
            None,
            resolution=_LEAST,
            status="below_resolution",
            reason="the probability is below what float64 holds",
        )

    return Estimate(value, error=float(repeats.std() / math.sqrt(_REPEATS)))


def _ordered(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor with, at each step, the coordinate that is least likely above 0."""
    m, c, width = mean.clone(), covariance.clone(), len(mean)
    factor = torch.zeros_like(c)
    drawn = torch.zeros_like(m)
    floor = 1e-12 * float(c.diagonal().amax().clamp(min=_LEAST))
    for i in range(width):
        left = (c.diagonal()[i:] - factor[i:, :i].square().sum(1)).clamp(min=floor).sqrt()
        at = (m[i:] + factor[i:, :i] @ drawn[:i]) / left
        pick = i + int(at.argmin())
        order = torch.arange(width)
        order[i], order[pick] = pick, i
        m, factor, c = m[order], factor[order], c[order][:, order]
        scale = float(left[pick - i])
        factor[i, i] = scale
        rest = c[i + 1 :, i] - factor[i + 1 :, :i] @ factor[i, :i]
        factor[i + 1 :, i] = rest / scale
        t = float(at[pick - i])
        # mean of a standard normal above -t
        z = torch.tensor(t, dtype=torch.float64)
        drawn[i] = normal_pdf(z) / normal_cdf(z) if t > -30 else -z

    return factor, m


def _weights(factor: Tensor, mean: Tensor, points: Tensor) -> Tensor:
    weight = torch.ones(len(points), dtype=torch.float64)
    drawn = torch.zeros(len(points), len(mean), dtype=torch.float64)
    for i in range(len(mean)):
        t = (mean[i] + drawn[:, :i] @ factor[i, :i]) / factor[i, i]
        above = normal_cdf(t)
        weight = weight * above
        if i < len(mean) - 1:
            # a standard normal above -t, by its upper tail, which is accurate when far out
            upper = (above * points[:, i].clamp(1e-300, 1)).clamp(min=_LEAST)
            drawn[:, i] = -torch.special.ndtri(upper)

    return weight


class Catastrophe(ABC):
    """An event of a model's output: C(M(x)) = 1."""

    @abstractmethod
    def under(self, normal: Normal, settings: PropagationSettings) -> Estimate:
        """Probability of the event where the output is Gaussian."""

    @abstractmethod
    def of(self, rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Rows in which the event happens."""


@dataclass(frozen=True, eq=False)
class Threshold(Catastrophe):
    r""":math:`w^\top z > t`; :math:`\Phi((w^\top m - t) / \sqrt{w^\top S w})` under a Gaussian.

    Args:
        weight: w.
        threshold: t.
    """

    weight: Float[Tensor, " d"]
    threshold: float = 0.0

    def under(self, normal: Normal, settings: PropagationSettings) -> Estimate:
        """Probability of the event where the output is Gaussian."""
        w = self.weight.double()
        if w.shape != normal.mean.shape:
            raise Mismatch(
                f"a weight of width {len(w)} for an output of width {len(normal.mean)}",
                where="Threshold",
            )
        turned = normal.covariance * w if normal.is_diagonal else normal.covariance @ w
        gap, spread = w @ normal.mean - self.threshold, (w @ turned).clamp(min=0).sqrt()
        if float(spread) == 0:
            return _resolved(float(gap > 0))

        return _resolved(float(normal_cdf(gap / spread)))

    def of(self, rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Rows in which the event happens."""
        return rows.double() @ self.weight.double() > self.threshold


@dataclass(frozen=True)
class ArgMax(Catastrophe):
    r""":math:`\arg\max_j z_j = t`; an orthant probability under a Gaussian.

    Args:
        target: t.
    """

    target: int

    def under(self, normal: Normal, settings: PropagationSettings) -> Estimate:
        """Probability of the event where the output is Gaussian."""
        width = len(normal.mean)
        if not 0 <= self.target < width:
            raise BadValue(f"target {self.target} of {width} outputs", where="ArgMax")
        if width == 1:
            return Estimate(1.0)
        others = torch.arange(width) != self.target
        gaps = -torch.eye(width, dtype=torch.float64)[others]
        gaps[:, self.target] = 1.0

        return orthant(
            gaps @ normal.mean,
            gaps @ normal.full @ gaps.T,
            draws=settings.draws,
            seed=settings.seed,
        )

    def of(self, rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Rows in which the event happens."""
        return rows.argmax(1) == self.target


@dataclass(frozen=True, eq=False)
class Fires(Catastrophe):
    """A detector network with one output fires above a threshold.

    Args:
        detector: C; its rules are those of :func:`propagate`.
        threshold: it fires above this.
    """

    detector: nn.Module
    threshold: float = 0.0

    def under(self, normal: Normal, settings: PropagationSettings) -> Estimate:
        """Probability of the event where the output is Gaussian."""
        last = list(propagate(self.detector, normal, settings).values())[-1]

        return Threshold(torch.ones_like(last.mean), self.threshold).under(last, settings)

    def of(self, rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Rows in which the event happens."""
        return run(self.detector, rows)[:, 0] > self.threshold


def probability(
    model: nn.Module | Model,
    catastrophe: Catastrophe,
    normal: Normal,
    settings: PropagationSettings | None = None,
) -> Estimate:
    r""":math:`Pr[C(M(x)) = 1]` for Gaussian x: the model's last state, read off by the detector.

    It is a best guess and never a bound: every layer is closed as Gaussian, and far in the tail
    the result can be wrong by orders of magnitude.

    Raises:
        UnmappedModel: a layer of model or detector has no rule.
    """
    chosen = settings or PropagationSettings()

    return catastrophe.under(list(propagate(model, normal, chosen).values())[-1], chosen)


def finite_data(
    model: Layer | Model,
    catastrophe: Catastrophe,
    inputs: Normal | Draw,
    count: int,
    generator: torch.Generator,
) -> Estimate:
    """The same from data alone: the share of draws in which it happened.

    Where it never happened the answer is that the probability is below the resolution of
    1 / ``count``, which is not 0.

    Args:
        model: M.
        catastrophe: C.
        inputs: what x is drawn from, or a function of a number and a generator.
        count: how many.
        generator: of the draws.

    Raises:
        BadValue: no draws.
    """
    if count < 1:
        raise BadValue(f"{count} draws", where="finite data", mend="Use one or more")
    layer = model.module if isinstance(model, Model) else model
    draw = inputs.sample if isinstance(inputs, Normal) else inputs
    hits = sum(
        int(catastrophe.of(run(layer, draw(min(_CHUNK, count - start), generator))).sum())
        for start in range(0, count, _CHUNK)
    )
    if not hits:
        return Estimate(
            None,
            effective_samples=count,
            resolution=1 / count,
            status="below_resolution",
            reason=f"0 of {count} draws",
        )
    share = hits / count

    return Estimate(
        share,
        error=(share * (1 - share) / count) ** 0.5,
        effective_samples=count,
        resolution=1 / count,
    )


def _resolved(value: float) -> Estimate:
    if value < _LEAST:
        return Estimate(
            None,
            resolution=_LEAST,
            status="below_resolution",
            reason="the probability is below what float64 holds",
        )

    return Estimate(value)
