"""The first radius at which a cost crosses its cutoff, on many rays at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from offkey.errors import check, check_choice

__all__ = ["STATUSES", "CrossingSearch", "Crossings", "Guide", "find_crossings"]

Array = np.ndarray
Evaluate = Callable[[Int64[Array, " k"], Float64[Array, " k"]], Float64[Array, " k"]]
"""Costs of some rays, each at a radius of its own."""

STATUSES = ("ok", "infinite", "nonfinite", "nonmonotone", "budget")
LEAP = 32.0
"""The largest factor by which a radius changes in one step."""
NARROW = 1e-7
"""Relative width of a bracket at which the cost jumps across the cutoff."""
PATIENCE = 6
"""Evaluations after which every second step halves the bracket."""


@dataclass(frozen=True)
class CrossingSearch:
    """How to search for a crossing.

    A secant in the logarithms of radius and cost, which is exact in one step where the cost is a
    power of the radius, safeguarded by the bracket of the points evaluated so far. Within the
    tolerance the radius returned is the secant's, so its own error is of second order.

    Attributes:
        rtol: relative tolerance of the cost at the crossing, as a share of the cutoff.
        max_evals: evaluations after which a ray is abandoned, with status ``budget``.
        scan: further evaluations spread between the anchor and the crossing, which find an
            earlier one where the cost is not monotone.
        start: where a ray begins: at the ``median`` radius of the first rays, or where the
            curvature along the ray, from one forward-mode derivative, puts it (``jvp``).
    """

    rtol: float = 1e-2
    max_evals: int = 20
    scan: int = 0
    start: Literal["median", "jvp"] = "median"

    def __post_init__(self) -> None:
        check(0 < self.rtol < 1, f"{self.rtol} is not between 0 and 1", where="search rtol")
        check(
            self.max_evals >= 2 and self.scan >= 0,
            f"max_evals is {self.max_evals} and scan {self.scan}",
            where="search",
            mend="Use max_evals of 2 or more and scan of 0 or more",
        )
        check_choice("search start", self.start, ("median", "jvp"))


@dataclass(frozen=True)
class Guide:
    """Where a search begins: a radius, and the power of the radius with which the cost grows."""

    radius: float
    power: float = 2.0


@dataclass(frozen=True)
class Crossings:
    """Where each ray crosses the cutoff.

    Attributes:
        radius: first crossing found; infinite where there is none, and the largest radius with a
            cost below the cutoff where the search failed.
        cost: cost at the last radius evaluated.
        evaluated: that radius.
        power: local power of the radius with which the cost grows.
        status: one of :data:`STATUSES`.
        evals: number of evaluations.
        lowest: lowest cost found.
    """

    radius: Float64[Array, " m"]
    cost: Float64[Array, " m"]
    evaluated: Float64[Array, " m"]
    power: Float64[Array, " m"]
    status: NDArray[np.str_]
    evals: Int64[Array, " m"]
    lowest: Float64[Array, " m"]


def find_crossings(
    evaluate: Evaluate,
    start: Float64[Array, " m"],
    power: float,
    limit: Float64[Array, " m"],
    eps: float,
    settings: CrossingSearch,
) -> Crossings:
    """Searches many rays side by side; the result of one does not depend on the others.

    Args:
        evaluate: costs of some rays, each at a radius of its own.
        start: radius of each ray's first evaluation.
        power: expected power of the radius, used until there are two points.
        limit: radius of each ray beyond which a crossing makes no difference.
        eps: the cutoff.
        settings: tolerances.
    """
    state = _SearchState.fresh(np.minimum(start, limit), power, limit, eps, settings)
    while state.active.any():
        rows = state.active.nonzero()[0]
        state.record(rows, evaluate(rows, state.t[rows]))
        state.stop_finished(rows)
        state.advance(state.active.nonzero()[0])
    radius = state.radii()
    if settings.scan:
        _scan(state, radius, evaluate)

    return state.crossings(radius)


@dataclass
class _SearchState:
    """All rays of a search; logarithms of cost are relative to the cutoff."""

    t: Array
    limit: Array
    eps: float
    settings: CrossingSearch
    power: Array
    low: Array
    high: Array
    log_low: Array
    log_high: Array
    last_t: Array
    last_log: Array
    log: Array
    cost: Array
    active: Array
    evals: Array
    status: NDArray[np.str_]
    history: list[list[tuple[float, float]]] = field(default_factory=list)

    @classmethod
    def fresh(
        cls, t: Array, power: float, limit: Array, eps: float, settings: CrossingSearch
    ) -> Self:
        m = len(t)
        nan = np.full(m, np.nan)

        return cls(
            t=t.astype(np.float64),
            limit=limit,
            eps=eps,
            settings=settings,
            power=np.full(m, power),
            low=np.zeros(m),
            high=np.full(m, np.inf),
            log_low=nan.copy(),
            log_high=nan.copy(),
            last_t=nan.copy(),
            last_log=nan.copy(),
            log=nan.copy(),
            cost=nan.copy(),
            active=np.ones(m, dtype=bool),
            evals=np.zeros(m, dtype=np.int64),
            status=np.full(m, "budget", dtype="<U12"),
            history=[[] for _ in range(m)],
        )

    def record(self, rows: Array, cost: Array) -> None:
        """Records the costs at the present radii."""
        evaluated = self.evals[rows] > 0
        self.last_t[rows] = np.where(evaluated, self._last_radius(rows), np.nan)
        self.last_log[rows] = np.where(evaluated, self.log[rows], np.nan)
        self.evals[rows] += 1
        self.cost[rows] = cost
        with np.errstate(divide="ignore", invalid="ignore"):
            log_cost = np.where(
                np.isfinite(cost), np.log(np.maximum(cost, 0)) - np.log(self.eps), np.nan
            )
        self.log[rows] = log_cost
        t, below = self.t[rows], cost < self.eps
        self.low[rows] = np.where(below, t, self.low[rows])
        self.log_low[rows] = np.where(below, log_cost, self.log_low[rows])
        self.high[rows] = np.where(below, self.high[rows], t)
        self.log_high[rows] = np.where(below, self.log_high[rows], log_cost)
        for row, radius, value in zip(rows, t, cost, strict=True):
            self.history[row].append((float(radius), float(value)))

    def _last_radius(self, rows: Array) -> Array:
        return np.array([self.history[r][-1][0] if self.history[r] else np.nan for r in rows])

    def stop_finished(self, rows: Array) -> None:
        """Stops the rays whose crossing is found or cannot be found."""
        log, t = self.log[rows], self.t[rows]
        self._learn_power(rows)
        near = np.isfinite(log) & (np.abs(log) <= np.log1p(self.settings.rtol))
        infinite = (t >= self.limit[rows]) & (self.cost[rows] < self.eps) & ~near
        with np.errstate(divide="ignore", invalid="ignore"):
            jump = self.high[rows] / self.low[rows] <= 1 + NARROW
        jump &= ~near & (self.low[rows] > 0)
        shut = self.high[rows] < np.finfo(float).tiny * 1e8
        spent = self.evals[rows] >= self.settings.max_evals
        blind = np.isnan(self.log_high[rows]) & np.isfinite(self.high[rows])
        infinite |= spent & np.isinf(self.high[rows]) & np.isinf(self.limit[rows])
        status = np.select(
            [near, infinite, jump & ~blind, (jump | spent | shut) & blind, spent | shut],
            ["ok", "infinite", "ok", "nonfinite", "budget"],
            "",
        )
        ended = status != ""
        self.status[rows[ended]] = status[ended]
        self.active[rows[ended]] = False

    def _learn_power(self, rows: Array) -> None:
        """Takes the slope of the secant through the last two points, where it is plausible."""
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (self.log[rows] - self.last_log[rows]) / np.log(
                self.t[rows] / self.last_t[rows]
            )
        good = np.isfinite(slope) & (slope > 0.1) & (slope < 20)
        self.power[rows] = np.where(good, slope, self.power[rows])

    def advance(self, rows: Array) -> None:
        """Chooses the next radius of each ray that continues."""
        t, low, high = self.t[rows], self.low[rows], self.high[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = -self.log[rows] / self.power[rows]
            factor = np.exp(np.clip(ratio, -np.log(LEAP), np.log(LEAP)))
        blind = ~np.isfinite(self.log[rows])
        factor = np.where(blind, np.where(self.cost[rows] < self.eps, 8.0, 0.125), factor)
        bold = 4.0 ** np.maximum(self.evals[rows] - PATIENCE // 2, 0)
        factor = np.where(np.isinf(high), np.maximum(factor, bold), factor)
        factor = np.where(low == 0, np.minimum(factor, 1 / bold), factor)
        new = np.minimum(t * factor, self.limit[rows])
        with np.errstate(invalid="ignore"):
            middle = np.where(low > 0, np.sqrt(low) * np.sqrt(high), high / 8)
        between = self._false_position(rows, middle)
        outside = (new <= low) | (new >= high)
        halve = (self.evals[rows] >= PATIENCE) & (self.evals[rows] % 2 == 0) & np.isfinite(high)
        new = np.where(outside, between, new)
        self.t[rows] = np.where(halve & (low > 0), middle, new)

    def _false_position(self, rows: Array, middle: Array) -> Array:
        """Where the secant through the bracket's ends crosses; else the middle of the bracket."""
        low, high = self.low[rows], self.high[rows]
        a, b = self.log_low[rows], self.log_high[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = low * np.exp(-a * np.log(high / low) / (b - a))
        good = np.isfinite(crossing) & (crossing > low) & (crossing < high)

        return np.where(good, crossing, middle)

    def radii(self) -> Array:
        """The best estimate of each crossing."""
        with np.errstate(invalid="ignore", over="ignore"):
            exact = self.t * np.exp(-self.log / self.power)
        ok = self.status == "ok"
        near = ok & (np.abs(self.log) <= np.log1p(self.settings.rtol))
        inside = np.clip(exact, self.low, self.high)
        radius = np.where(near, inside, self.low)

        return np.where(self.status == "infinite", np.inf, radius)

    def crossings(self, radius: Array) -> Crossings:
        """The result, with rays marked on which the cost was seen to fall."""
        for row, points in enumerate(self.history):
            if self.status[row] == "ok" and _falls(points, self.eps, self.settings.rtol):
                self.status[row] = "nonmonotone"

        return Crossings(
            radius=radius,
            cost=self.cost,
            evaluated=self.t,
            power=self.power,
            status=self.status,
            evals=self.evals,
            lowest=np.array([min(cost for _, cost in points) for points in self.history]),
        )


def _falls(points: list[tuple[float, float]], eps: float, rtol: float) -> bool:
    """Whether the cost falls anywhere on the way out."""
    costs = np.array([cost for _, cost in sorted(points)])
    costs = costs[np.isfinite(costs)]
    highest = np.maximum.accumulate(costs)

    return bool((costs < highest * (1 - rtol) - rtol * eps).any())


def _scan(state: _SearchState, radius: Array, evaluate: Evaluate) -> None:
    """Looks for an earlier crossing, and replaces the radius by it."""
    rows = (state.status == "ok").nonzero()[0]
    before = np.zeros(len(rows))
    for step in range(1, state.settings.scan + 1):
        if not len(rows):
            return
        t = radius[rows] * step / (state.settings.scan + 1)
        cost = evaluate(rows, t)
        state.evals[rows] += 1
        above = ~(cost < state.eps)
        for row, low, high in zip(rows[above], before[above], t[above], strict=True):
            radius[row] = _bisected(state, int(row), low, high, evaluate)
            state.status[row] = "nonmonotone"
        rows, before = rows[~above], t[~above]


def _bisected(state: _SearchState, row: int, low: float, high: float, evaluate: Evaluate) -> float:
    """A crossing between two radii, by bisection to the tolerance of the radius."""
    one = np.array([row])
    while high - low > state.settings.rtol / 4 * high:
        middle = (low + high) / 2
        cost = float(evaluate(one, np.array([middle]))[0])
        state.evals[row] += 1
        if cost < state.eps:
            low = middle
        else:
            high = middle
        state.cost[row], state.t[row] = cost, middle

    return low
