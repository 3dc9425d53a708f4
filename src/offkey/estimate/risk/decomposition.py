"""Quadratic logit decomposition, and Gaussians in the region where one token wins."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from scipy.stats import genpareto
from torch import Tensor

from offkey.errors import BadInput, BadValue, NotEnoughData
from offkey.estimate.gaussian import Normal
from offkey.estimate.quantities import Estimate
from offkey.estimate.risk.draws import Draws, below_smallest_float, none_accepted, normal_below
from offkey.estimate.risk.problem import check_target
from offkey.estimate.risk.samplers import flag_unreliable

__all__ = [
    "Whitening",
    "Unembedding",
    "Axis",
    "shortest_accepting",
    "intervals",
    "TailFit",
    "qld",
    "qld_tails",
    "argmax_probability",
    "halfspace_probability",
]

_ROWS, _COLUMNS = 2048, 8192
_FLAT = 1e-9
"""A row whose share of the direction is less than this counts as parallel."""
_MORE = 64
"""How many violated rows enter the problem at a time."""
TailFit = Literal["empirical", "gaussian", "pareto"]
_GROUPS = 8
_PARETO_SHARE = 0.05
"""Share of the largest a's to which the Pareto tail is fitted."""


@dataclass(frozen=True, eq=False)
class Whitening:
    r""":math:`v = A u + \mu` with :math:`A A^\top` the covariance.

    Args:
        mean: :math:`\mu`.
        factor: A, lower triangular.
    """

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "d d"]

    @classmethod
    def of(cls, normal: Normal, ridge: float) -> "Whitening":
        """From a mean and a covariance, to whose diagonal ``ridge`` is added.

        Raises:
            BadInput: the covariance is not positive semi-definite.
            NotEnoughData: it is singular, and the ridge does not mend that.
        """
        covariance = normal.full + ridge * torch.eye(len(normal.mean)).double()
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not bool(failed):
            return cls(normal.mean, factor)
        values = torch.linalg.eigvalsh(covariance)
        if float(values[0]) < -1e-9 * float(values.abs().amax()):
            raise BadInput(
                "the covariance is not positive semi-definite "
                f"(eigenvalue {float(values[0]):.3g})",
                where="whitening",
                mend="Close the masked covariance first, with closure 'maxent' or 'clip'",
            )
        raise NotEnoughData(
            "the covariance is singular",
            where="whitening",
            mend="Give more samples than dimensions, or a ridge",
        )

    def whiten(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """U of each row."""
        centred = v.double() - self.mean

        u: Tensor = torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T

        return u


@dataclass(frozen=True, eq=False)
class Unembedding:
    """Rows and biases of the unembedding, compared with the target's.

    Args:
        weight: ``[vocabulary, d]``.
        bias: ``[vocabulary]``.
        target: the token.
    """

    weight: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"]
    target: int

    def margins(self, v: Float[Tensor, " d"], *, offset: bool = True) -> Float[Tensor, " V"]:
        """The target's logit less each token's, in float64; without biases if not ``offset``."""
        parts = [part.double() @ v for part in torch.split(self.weight, _COLUMNS)]
        logits = torch.cat(parts)
        if offset:
            logits = logits + self.bias.double()

        return logits[self.target] - logits

    def rows(self, of: Tensor) -> Float[Tensor, "m d"]:
        """The target's row less others, in float64."""
        return self.weight[self.target].double() - self.weight[of].double()


@dataclass(frozen=True, eq=False)
class Axis:
    """A direction in whitened space.

    Args:
        direction: d, of length 1.
        norm: length of the shortest accepting vector; 0 where the mean is accepted.
    """

    direction: Float[Tensor, " d"]
    norm: float


def shortest_accepting(unembedding: Unembedding, whitening: Whitening) -> Axis | None:
    r"""The shortest u with :math:`(w_t - w_j)^\top (A u + \mu) + b_t - b_j \ge 0` for all j.

    Rows enter a non-negative least-squares problem as they turn out to be violated, until none
    is. Where the mean itself is accepted, the direction is that towards the runner-up.

    Returns:
        The direction and length, or ``None`` where no activation is accepted.

    References:
        Lawson and Hanson, 1974, chapter 23: least distance programming.
    """
    factor, mean = whitening.factor, whitening.mean
    point = torch.zeros_like(mean)
    at_mean = unembedding.margins(mean)
    scale = float(at_mean.abs().amax()) or 1.0
    held = torch.zeros(0, dtype=torch.long)
    while True:
        margins = unembedding.margins(mean + factor @ point)
        margins[held] = math.inf
        margins[unembedding.target] = math.inf
        worst = margins.topk(min(_MORE, len(margins)), largest=False)
        new = worst.indices[worst.values < -1e-9 * scale]
        if not len(new):
            break
        held = torch.cat([held, new])
        solved = _least_distance(unembedding.rows(held) @ factor, -at_mean[held])
        if solved is None:
            return None
        point = solved
    norm = float(point.norm())
    if norm == 0:
        at_mean[unembedding.target] = math.inf
        point = (unembedding.rows(at_mean.argmin()[None]) @ factor)[0]

    return Axis(point / point.norm(), norm)


def _least_distance(rows: Float[Tensor, "m d"], least: Float[Tensor, " m"]) -> Tensor | None:
    """The shortest x with ``rows @ x >= least``."""
    size = rows.norm(dim=1).clamp(min=1e-300)
    rows, least = rows / size[:, None], least / size
    reach = float(least.amax())
    if reach <= 0:
        return torch.zeros(rows.shape[1], dtype=torch.float64)
    stacked = np.vstack([rows.T.numpy(), (least / reach).numpy()])
    goal = np.zeros(len(stacked))
    goal[-1] = 1.0
    dual, _ = nnls(stacked, goal, maxiter=50 * stacked.shape[1] + 1000)
    residual = stacked @ dual - goal
    if -residual[-1] < 1e-12:
        return None
    active = torch.from_numpy(dual > 0)
    bound = rows[active]
    exact: Tensor = torch.linalg.lstsq(bound, least[active][:, None], driver="gelsd").solution[
        :, 0
    ]

    return exact


def intervals(
    finals: Float[Tensor, "n d"], unembedding: Unembedding, shift: Float[Tensor, " d"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    r"""How far each activation may move along a direction and still be accepted.

    For :math:`v_i + x \delta` the margin of token j is that of :math:`v_i` plus :math:`x g_j`,
    :math:`g_j = (w_t - w_j)^\top \delta`; so the bounds on x are the largest and least of the
    ratios :math:`((w_j - w_t)^\top v_i + b_j - b_t) / g_j` over rows with :math:`g_j > 0` and
    :math:`g_j < 0`: one matrix product with rows that were divided by :math:`g_j`, in tiles. No
    row of the vocabulary is left out. The product is in the dtype of ``finals``.

    Args:
        finals: v, one row each.
        unembedding: what accepts.
        shift: :math:`\delta`.

    Returns:
        The least and greatest x of each row; the least is above the greatest where no x will do.
    """
    slope = unembedding.margins(shift, offset=False)
    rest = torch.arange(len(slope)) != unembedding.target
    flat = slope.abs() <= _FLAT * float(slope.abs().amax())
    low = torch.full((len(finals),), -math.inf, dtype=torch.float64)
    high = -low
    sides = ((rest & (slope > 0) & ~flat, 1), (rest & (slope < 0) & ~flat, -1), (rest & flat, 0))
    for chosen, side in sides:
        divisor = torch.ones_like(slope) if side == 0 else slope
        for rows, offset in _divided(unembedding, chosen, divisor, finals.dtype):
            for start in range(0, len(finals), _ROWS):
                part = slice(start, start + _ROWS)
                ratio = torch.addmm(offset, finals[part], rows.T)
                if side > 0:
                    low[part] = torch.maximum(low[part], ratio.amax(1).double())
                elif side < 0:
                    high[part] = torch.minimum(high[part], ratio.amin(1).double())
                else:
                    low[part][ratio.amax(1) > 0] = math.inf

    return low, high


def _divided(
    unembedding: Unembedding, chosen: Tensor, divisor: Tensor, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and offsets of the ratios, some thousand rows at a time."""
    own = unembedding.bias[unembedding.target].double()
    for part in torch.split(chosen.nonzero()[:, 0], _COLUMNS):
        if not len(part):
            continue
        by = divisor[part]
        rows = -unembedding.rows(part) / by[:, None]
        offset = (unembedding.bias[part].double() - own) / by
        yield rows.to(dtype), offset.to(dtype)


def qld(
    draws: Draws, target: int, *, tail: TailFit = "empirical", ridge: float = 1e-5
) -> Estimate:
    r"""Quadratic logit decomposition, from its definition.

    Activations are whitened, :math:`u = A^{-1}(v - \mu)`. With d the direction of the shortest
    accepting vector, u is split into :math:`a = d^\top u` and :math:`b = u - a d`, which are
    presumed independent. For each b the accepted a form an interval; the share of a's in it is
    averaged over all b.

    Args:
        draws: samples of the activations.
        target: the token.
        tail: how the distribution of a is fitted to its n values: ``"empirical"`` counts them,
            ``"gaussian"`` fits mean and variance, ``"pareto"`` fits a generalised Pareto
            distribution to the largest twentieth.
        ridge: added to the covariance's diagonal.

    Returns:
        With a standard error over both parts. ``resolution`` is 1/n: every pair needs an a
        beyond the shortest accepting length r, so that :math:`\Pr(a > r)` limits it, although
        one pair counts :math:`1 / n^2`. ``effective_samples`` is the lesser of both parts';
        below 10 the status is ``failed`` but the value is kept. ``not_applicable`` where no
        activation at all is accepted.

    Raises:
        NotEnoughData: the covariance is singular and ``ridge`` 0; too few samples for the tail.

    References:
        Wu and Hilton, 2024: Estimating the probabilities of rare outputs in language models.
    """
    return qld_tails(draws, target, (tail,), ridge=ridge)[tail]


def qld_tails(
    draws: Draws,
    target: int,
    tails: Sequence[TailFit] = ("empirical", "gaussian", "pareto"),
    *,
    ridge: float = 1e-5,
) -> dict[TailFit, Estimate]:
    """:func:`qld` with several tails; the intervals are computed once."""
    check_target(target, len(draws.weight))
    unembedding = Unembedding(draws.weight, draws.bias, target)
    whitening = Whitening.of(draws.normal, ridge)
    axis = shortest_accepting(unembedding, whitening)
    if axis is None:
        return dict.fromkeys(tails, _unreachable(target))
    split = _Split(*_moved(draws, unembedding, whitening, axis), axis.norm)

    return {tail: _tail_estimate(split, tail) for tail in tails}


def _tail_estimate(split: "_Split", tail: TailFit) -> Estimate:
    n = len(split.a)
    if not bool((split.low <= split.high).any()):
        return none_accepted(n, "no sample can be moved to where it is accepted")
    shares = split.shares(_law(split.a, tail))
    value = float(shares.mean())
    if value == 0 and tail == "gaussian":
        return below_smallest_float()
    if value == 0:
        reach = f"Pr(a > {split.norm:.2f}), the largest a of {n} being {float(split.a.amax()):.2f}"
        return none_accepted(n, f"no pair is accepted, all of which need {reach}")
    variance = float(shares.var(correction=0)) / n
    if tail == "empirical":
        holding = split.holding()
        variance += float(holding.var(correction=0)) / n
        return flag_unreliable(value, math.sqrt(variance), min(_kish(shares), _kish(holding)), n)
    error = math.sqrt(variance + _refitted(split, tail))
    effective = (value / error) ** 2 if error > 0 else float(n)

    return Estimate(value, error, effective_samples=effective)


def argmax_probability(
    normal: Normal,
    weight: Float[Tensor, "vocabulary d"],
    bias: Float[Tensor, " vocabulary"],
    target: int,
    *,
    samples: int = 4096,
    seed: int = 0,
    ridge: float = 1e-5,
) -> Estimate:
    """How likely a Gaussian activation gives the target the largest logit.

    The part across the direction of the shortest accepting vector is sampled, the part along it
    integrated exactly; so the answer is unbiased for the Gaussian however small it is.

    Args:
        normal: of the activations that enter the unembedding.
        weight: the unembedding.
        bias: of each token.
        target: the token.
        samples: drawn of the Gaussian; the network is not run.
        seed: of the draws.
        ridge: added to the covariance's diagonal.

    Raises:
        BadInput: the covariance is not positive semi-definite.
        NotEnoughData: it is singular and ``ridge`` 0.
    """
    check_target(target, len(weight))
    unembedding = Unembedding(weight, bias, target)
    whitening = Whitening.of(normal, ridge)
    axis = shortest_accepting(unembedding, whitening)
    if axis is None:
        return _unreachable(target)
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(samples, len(normal.mean), generator=generator, dtype=torch.float64)
    v = (whitening.mean + u @ whitening.factor.T).to(weight.dtype)
    _, low, high = _split(v, unembedding, whitening, axis)
    shares = _between(low, high)
    value, error = float(shares.mean()), float(shares.std()) / math.sqrt(samples)
    if value == 0:
        return below_smallest_float()

    return Estimate(value, error, effective_samples=_kish(shares))


def halfspace_probability(
    normal: Normal, direction: Float[Tensor, " d"], threshold: float
) -> Estimate:
    r""":math:`\Phi((w^\top m - t) / \sqrt{w^\top S w})`, that a linear detector exceeds t.

    Exact for the Gaussian.

    Raises:
        BadValue: the detector does not vary under this Gaussian.
    """
    w = direction.double()
    variance = float(w @ normal.full @ w)
    if variance <= 0:
        raise BadValue(f"the variance along the direction is {variance:.3g}", where="direction")
    z = (w @ normal.mean - threshold) / math.sqrt(variance)

    value = float(normal_below(z))

    return Estimate(value) if value else below_smallest_float()


def _moved(
    draws: Draws, unembedding: Unembedding, whitening: Whitening, axis: Axis
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_split` of the draws, which computes each distinct row once."""
    rows, place = draws.distinct
    a, low, high = _split(rows, unembedding, whitening, axis)

    return a[place], low[place], high[place]


def _split(
    finals: Tensor, unembedding: Unembedding, whitening: Whitening, axis: Axis
) -> tuple[Tensor, Tensor, Tensor]:
    """A of each row, and the interval of a in which its b is accepted."""
    shift = whitening.factor @ axis.direction
    along = torch.linalg.solve_triangular(whitening.factor.T, axis.direction[:, None], upper=True)[
        :, 0
    ]
    a = torch.cat([(part.double() - whitening.mean) @ along for part in torch.split(finals, 8192)])
    low, high = intervals(finals, unembedding, shift)

    return a, a + low, a + high


class _Law(Protocol):
    def below(self, x: Tensor, *, strictly: bool = False) -> Tensor:
        """Probability of a at most x, or below it."""


@dataclass(frozen=True, eq=False)
class _Counted:
    """The values themselves, in order."""

    values: Float[Tensor, " n"]

    def below(self, x: Tensor, *, strictly: bool = False) -> Tensor:
        counts = torch.searchsorted(self.values, x, right=not strictly)

        return counts.double() / len(self.values)


@dataclass(frozen=True)
class _Bell:
    """A Gaussian; survival is what stays exact in the upper tail."""

    mean: float
    deviation: float

    def below(self, x: Tensor, *, strictly: bool = False) -> Tensor:
        return -normal_below((self.mean - x) / self.deviation)


@dataclass(frozen=True, eq=False)
class _Pareto:
    """Counted up to a threshold, a generalised Pareto distribution beyond."""

    counted: _Counted
    threshold: float
    share: float
    shape: float
    scale: float

    def below(self, x: Tensor, *, strictly: bool = False) -> Tensor:
        excess = (x - self.threshold).clamp(min=0).numpy()
        beyond = torch.from_numpy(genpareto.sf(excess, self.shape, scale=self.scale))
        inside = self.counted.below(x, strictly=strictly) - 1

        return torch.where(x > self.threshold, -self.share * beyond, inside)


def _law(a: Float[Tensor, " n"], tail: TailFit) -> _Law:
    """What differences of ``below`` are taken of; Gaussian and Pareto give it less 1."""
    counted = _Counted(a.sort().values)
    if tail == "empirical":
        return counted
    if tail == "gaussian":
        return _Bell(float(a.mean()), float(a.std()))
    if tail != "pareto":
        raise BadValue(
            f"unknown tail {tail!r}", where="qld", mend="Use 'empirical', 'gaussian' or 'pareto'"
        )
    n = len(a)
    largest = int(n * _PARETO_SHARE)
    if largest < 20:
        raise NotEnoughData(f"{n} samples, and a Pareto tail needs 400", where="qld")
    threshold = float(counted.values[n - largest - 1])
    excess = (counted.values[n - largest :] - threshold).numpy()
    shape, _, scale = genpareto.fit(excess, floc=0)

    return _Pareto(counted, threshold, largest / n, float(shape), float(scale))


@dataclass(frozen=True, eq=False)
class _Split:
    """a of each row, between which a its b is accepted, and how far the nearest accepted is."""

    a: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    norm: float

    def shares(self, law: _Law) -> Float[Tensor, " n"]:
        """For each b the probability of an accepted a."""
        shares = (law.below(self.high) - law.below(self.low, strictly=True)).clamp(min=0)

        return torch.where(self.low <= self.high, shares, 0.0)

    def holding(self) -> Float[Tensor, " n"]:
        """For each a the share of b's that accept it."""
        fits = self.low <= self.high
        opened, closed = self.low[fits].sort().values, self.high[fits].sort().values
        held = torch.searchsorted(opened, self.a, right=True) - torch.searchsorted(closed, self.a)

        return held.double() / len(self.a)


def _refitted(split: _Split, tail: TailFit) -> float:
    """Variance from the fit of a's tail, by leaving out groups of a's."""
    group = torch.arange(len(split.a)) % _GROUPS
    values = [float(split.shares(_law(split.a[group != g], tail)).mean()) for g in range(_GROUPS)]

    return float(torch.tensor(values).double().var(correction=0)) * (_GROUPS - 1)


def _between(low: Tensor, high: Tensor) -> Tensor:
    """Mass of a standard Gaussian in each interval, exact in both tails."""
    upper = normal_below(-low) - normal_below(-high)
    lower = normal_below(high) - normal_below(low)

    return torch.where(low > 0, upper, lower).clamp(min=0)


def _kish(weights: Float[Tensor, " n"]) -> float:
    total = float(weights.sum())

    return total**2 / float(weights.square().sum()) if total > 0 else 0.0


def _unreachable(target: int) -> Estimate:
    return Estimate(
        None,
        status="not_applicable",
        reason=f"no activation gives token {target} the largest logit: its row of the unembedding "
        "lies within the others'",
    )
