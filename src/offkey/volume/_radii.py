"""Each example's own radii, along directions that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from offkey.errors import BadValue, InvalidAnchor
from offkey.volume._costs import Cost
from offkey.volume._noise import Noise
from offkey.volume._precision import check_precision
from offkey.volume._proposals import Uniform
from offkey.volume._rays import Ray, Step
from offkey.volume._search import Search, find_crossings
from offkey.volume._space import Space

__all__ = ["Radii", "radii", "typical_radius"]

Array = np.ndarray


@dataclass(frozen=True)
class Radii:
    """Radii at which examples reach the cutoff.

    Attributes:
        values: ``[n, k]``, one a direction; a censored one is the end of the grid that it is
            beyond.
        censored: ``[n, k]``: −1 below the grid, 1 above it, 0 within.
        logs: ``[n, k]`` natural logarithms; those below the grid are followed down by the square
            law that holds near the anchor, those above it stay at its end.
        grid: the radii that were evaluated, ``[g]``.
        forwards: forward passes of the model spent, the anchor's not included.
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
) -> Radii:
    """The radius of each example along each direction, from one shared grid.

    One evaluation gives the cost of all examples, so the number of evaluations is at most
    directions times grid, however many examples there are; an example that has crossed is not run
    at longer radii. Between two radii of the grid the logarithm of
    the cost is interpolated in the logarithm of the radius; the first crossing counts.

    Args:
        cost_per_example: a cost with ``reduce="per_example"``.
        eps: the cutoff, in the cost's unit.
        directions: how many uniform directions, or their numbers.
        grid: radii, ascending, usually geometric.
        params: which parameters move.
        seed: of the directions.

    Raises:
        BadValue: the cutoff or the grid is not positive and ascending.
        NoMatchingParameters: a pattern matches none.
        InvalidAnchor: the cost of no perturbation is not zero.
        PrecisionTooLow: weights are too coarse for the steps.
    """
    r = np.asarray(grid, dtype=np.float64)
    if not (np.isfinite(eps) and eps > 0):
        raise BadValue(f"{eps} is not a positive number", where="eps")
    if r.ndim != 1 or len(r) < 2 or not (r[0] > 0 and (np.diff(r) > 0).all()):
        raise BadValue("at least two positive ascending radii are needed", where="grid")
    space = Space.of(cost_per_example.parameters, params)
    cost_per_example.check_moving(space.names)
    sampler = Uniform().sampler(space, eps, np.inf)
    still = cost_per_example({})
    if not (np.abs(still) <= 1e-3 * eps).all():
        raise InvalidAnchor(f"the cost of no perturbation is {np.abs(still).max():.3g}, not 0",
                            where="cost", mend="Subtract its value at the anchor")  # fmt: skip
    before, evals = cost_per_example.forwards, cost_per_example.evaluations
    numbers = range(directions) if isinstance(directions, int) else directions
    found = []
    for number in numbers:
        ray = sampler.ray(Noise(seed, number))
        costs = _until_crossed(cost_per_example, ray, r, eps, len(still))
        found.append(_crossings(costs, r, eps))
        if len(found) == 1:
            usual = float(np.exp(np.median(found[0][0])))
            check_precision(Step(ray, usual / ray.length), space)
        ray.forget()
    logs, censored = (np.stack(part, axis=1) for part in zip(*found, strict=True))

    return Radii(
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
    """The median radius of a few directions, where a grid may be centred."""
    space = Space.of(cost.parameters, params)
    sampler = Uniform().sampler(space, eps, np.inf)
    told: list[float] = []
    for number in range(directions):
        ray = sampler.ray(Noise(seed, number))
        start = told[-1] if told else 1e-2 * (space.squared or space.dimensions) ** 0.5

        def evaluate(_: Array, t: Float64[Array, " k"], ray: Ray = ray) -> Float64[Array, " k"]:
            return np.array([float(cost(Step(ray, float(x) / ray.length)).mean()) for x in t])

        found = find_crossings(
            evaluate, np.array([start]), 2.0, np.array([np.inf]), eps, Search(rtol=0.1)
        )
        if found.status[0] in ("ok", "nonmonotone"):
            told.append(float(found.radius[0]))
        ray.forget()
    if not told:
        raise BadValue("no direction crosses the cutoff", where="radii", mend="Give the grid")

    return float(np.median(told))


def _until_crossed(
    cost: Cost, ray: Ray, grid: Float64[Array, " g"], eps: float, count: int
) -> Float64[Array, "n g"]:
    """The cost of each example at each radius up to its first crossing, infinite beyond it."""
    costs = np.full((count, len(grid)), np.inf)
    below = np.ones(count, dtype=bool)
    for place, x in enumerate(grid):
        costs[below, place] = cost(Step(ray, x / ray.length), among=below)
        below &= costs[:, place] < eps
        if not below.any():
            break

    return costs


def _crossings(
    costs: Float64[Array, "n g"], grid: Float64[Array, " g"], eps: float
) -> tuple[Float64[Array, " n"], Array]:
    """Log radius of the first crossing of each row, and on which side of the grid it is."""
    above: Bool[Array, "n g"] = ~(costs < eps)
    first = np.where(above.any(1), above.argmax(1), len(grid))
    rows = np.arange(len(costs))
    log_r = np.log(grid)
    right = np.clip(first, 1, len(grid) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_c = np.log(np.maximum(costs, 0)) - np.log(eps)
        low, high = log_c[rows, right - 1], log_c[rows, right]
        inside = log_r[right - 1] - low / (high - low) * (log_r[right] - log_r[right - 1])
    # With one end unseen the square law leads from the other, or nowhere.
    square = np.where(np.isfinite(high), log_r[right] - high / 2, log_r[right - 1])
    inside = np.where(np.isfinite(low) & np.isfinite(high), inside, square)
    inside = np.clip(inside, log_r[right - 1], log_r[right])
    start = log_c[:, 0]
    below = log_r[0] - np.where(np.isfinite(start), start, 0.0) / 2
    censored = np.where(first == 0, -1, np.where(first == len(grid), 1, 0))

    return np.select([censored < 0, censored > 0], [below, np.full_like(below, log_r[-1])],
                     inside), censored  # fmt: skip
