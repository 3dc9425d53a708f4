"""The radii of each example, along directions that all examples share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from offkey.errors import BadValue, InvalidAnchor, check
from offkey.volume.costs import Cost
from offkey.volume.proposals import Uniform
from offkey.volume.rays import Noise, Ray, RayStep, Space, check_precision
from offkey.volume.search import CrossingSearch, find_crossings

__all__ = ["ExampleRadii", "radii", "typical_radius"]

Array = np.ndarray


@dataclass(frozen=True)
class ExampleRadii:
    """Radii at which examples reach the cutoff.

    Attributes:
        values: ``[n, k]``, one for each direction; a censored one is the end of the grid beyond
            which it lies.
        censored: ``[n, k]``: −1 below the grid, 1 above it, 0 within.
        logs: ``[n, k]`` natural logarithms; those below the grid are extrapolated by the square
            law that holds near the anchor, those above it stay at its end.
        grid: the radii that were evaluated, ``[g]``.
        forwards: forward passes of the model, without the anchor's.
        evaluations: perturbations evaluated: at most directions times grid.
    """

    values: Float64[Array, "n k"]
    censored: Array
    logs: Float64[Array, "n k"]
    grid: Float64[Array, " g"]
    forwards: int
    evaluations: int


def radii(
    cost_per_example: Cost,
    eps: float,
    directions: int | Sequence[int],
    grid: Sequence[float] | Float64[Array, " g"],
    *,
    params: str | Sequence[str] = "*",
    seed: int = 0,
) -> ExampleRadii:
    """The radius of each example along each direction, from one shared grid.

    One evaluation gives the cost of all examples, so the number of evaluations is at most
    directions times grid, however many examples there are; an example that has crossed is not run
    at larger radii. Between two radii of the grid the logarithm of the cost is interpolated
    linearly in the logarithm of the radius; the first crossing counts.

    Args:
        cost_per_example: a cost with ``reduce="per_example"``.
        eps: the cutoff, in the cost's unit.
        directions: how many uniform directions, or their numbers.
        grid: radii, ascending, usually geometric.
        params: which parameters move.
        seed: seed of the directions.

    Raises:
        BadValue: the cutoff is not positive, or the grid not positive and ascending.
        NoMatchingParameters: a pattern matches none.
        InvalidAnchor: the cost of no perturbation is not zero.
        PrecisionTooLow: the dtype of the weights is too coarse for the steps.
    """
    r = _checked_grid(eps, grid)
    space = Space.of(cost_per_example.parameters, params)
    cost_per_example.check_moving(space.names)
    sampler = Uniform().sampler(space, eps, np.inf)
    at_anchor = cost_per_example({})
    check(
        bool((np.abs(at_anchor) <= 1e-3 * eps).all()),
        f"the cost of no perturbation is {np.abs(at_anchor).max():.3g}, not 0",
        where="cost",
        mend="Subtract its value at the anchor",
        error=InvalidAnchor,
    )
    before, evals = cost_per_example.forwards, cost_per_example.evaluations
    numbers = range(directions) if isinstance(directions, int) else directions
    crossings = []
    for number in numbers:
        ray = sampler.ray(Noise(seed, number))
        costs = _until_crossed(cost_per_example, ray, r, eps, len(at_anchor))
        crossings.append(_crossings(costs, r, eps))
        if len(crossings) == 1:
            median = float(np.exp(np.median(crossings[0][0])))
            check_precision(RayStep(ray, median / ray.length), space)
        ray.forget()
    logs, censored = (np.stack(part, axis=1) for part in zip(*crossings, strict=True))

    return ExampleRadii(
        values=np.clip(np.exp(logs), r[0], r[-1]),
        censored=censored,
        logs=logs,
        grid=r,
        forwards=cost_per_example.forwards - before,
        evaluations=cost_per_example.evaluations - evals,
    )


def typical_radius(
    cost: Cost,
    eps: float,
    *,
    params: str | Sequence[str] = "*",
    seed: int = 0,
    directions: int = 3,
) -> float:
    """The median radius of a few directions, on which a grid may be centred.

    Raises:
        BadValue: no direction crosses the cutoff.
    """
    space = Space.of(cost.parameters, params)
    sampler = Uniform().sampler(space, eps, np.inf)
    crossed: list[float] = []
    for number in range(directions):
        ray = sampler.ray(Noise(seed, number))
        start = crossed[-1] if crossed else 1e-2 * (space.squared or space.dimensions) ** 0.5

        def evaluate(_: Array, t: Float64[Array, " k"], ray: Ray = ray) -> Float64[Array, " k"]:
            return np.array([float(cost(RayStep(ray, float(x) / ray.length)).mean()) for x in t])

        crossing = find_crossings(
            evaluate, np.array([start]), 2.0, np.array([np.inf]), eps, CrossingSearch(rtol=0.1)
        )
        if crossing.status[0] in ("ok", "nonmonotone"):
            crossed.append(float(crossing.radius[0]))
        ray.forget()
    if not crossed:
        raise BadValue("no direction crosses the cutoff", where="radii", mend="Give the grid")

    return float(np.median(crossed))


def _checked_grid(
    eps: float, grid: Sequence[float] | Float64[Array, " g"]
) -> Float64[Array, " g"]:
    check(bool(np.isfinite(eps) and eps > 0), f"{eps} is not a positive number", where="eps")
    r = np.asarray(grid, dtype=np.float64)
    ascending = r.ndim == 1 and len(r) >= 2 and r[0] > 0 and (np.diff(r) > 0).all()
    check(bool(ascending), "at least two positive ascending radii are needed", where="grid")

    return r


def _until_crossed(
    cost: Cost, ray: Ray, grid: Float64[Array, " g"], eps: float, count: int
) -> Float64[Array, "n g"]:
    """The cost of each example at each radius up to its first crossing, infinite beyond it."""
    costs = np.full((count, len(grid)), np.inf)
    below = np.ones(count, dtype=bool)
    for place, x in enumerate(grid):
        costs[below, place] = cost(RayStep(ray, x / ray.length), among=below)
        below &= costs[:, place] < eps
        if not below.any():
            break

    return costs


def _crossings(
    costs: Float64[Array, "n g"], grid: Float64[Array, " g"], eps: float
) -> tuple[Float64[Array, " n"], Array]:
    """Log radius of the first crossing of each row, and on which side of the grid it lies."""
    above: Bool[Array, "n g"] = ~(costs < eps)
    first = np.where(above.any(1), above.argmax(1), len(grid))
    rows = np.arange(len(costs))
    log_r = np.log(grid)
    right = np.clip(first, 1, len(grid) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_c = np.log(np.maximum(costs, 0)) - np.log(eps)
        low, high = log_c[rows, right - 1], log_c[rows, right]
        inside = log_r[right - 1] - low / (high - low) * (log_r[right] - log_r[right - 1])
    # Where only one end is finite the square law extrapolates from it.
    square = np.where(np.isfinite(high), log_r[right] - high / 2, log_r[right - 1])
    inside = np.where(np.isfinite(low) & np.isfinite(high), inside, square)
    inside = np.clip(inside, log_r[right - 1], log_r[right])
    start = log_c[:, 0]
    below = log_r[0] - np.where(np.isfinite(start), start, 0.0) / 2
    censored = np.where(first == 0, -1, np.where(first == len(grid), 1, 0))

    ends = [below, np.full_like(below, log_r[-1])]

    return np.select([censored < 0, censored > 0], ends, inside), censored
