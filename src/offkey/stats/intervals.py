"""A figure with its interval; rates; resampling by levels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm

from offkey.errors import BadValue

__all__ = ["Interval", "bootstrap", "clopper_pearson", "wilson"]


@dataclass(frozen=True)
class Interval:
    """A figure and how sure it is; ``None`` where there was nothing to compute it from.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        n_pos: anomalous rows that went in (successes, for a rate).
        n_neg: normal rows that went in (failures, for a rate).
        n_null: rows left out because their score is null.
    """

    value: float | None
    low: float | None
    high: float | None
    n_pos: int
    n_neg: int
    n_null: int = 0

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "n/a"

        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate: near its nominal coverage on average.

    References:
        Wilson, 1927: Probable inference, the law of succession, and statistical inference.
    """
    _check_counts(successes, trials, confidence)
    if not trials:
        return Interval(None, None, None, 0, 0)
    z, rate = float(norm.isf((1 - confidence) / 2)), successes / trials
    middle = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z * (rate * (1 - rate) / trials + z**2 / (4 * trials**2)) ** 0.5 / (1 + z**2 / trials)
    low = 0.0 if successes == 0 else middle - reach
    high = 1.0 if successes == trials else middle + reach

    return Interval(rate, low, high, successes, trials - successes)


def clopper_pearson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Exact interval of a rate: covers it at least as often as stated, whatever it is.

    References:
        Clopper, Pearson, 1934: The use of confidence or fiducial limits.
    """
    _check_counts(successes, trials, confidence)
    if not trials:
        return Interval(None, None, None, 0, 0)
    tail, misses = (1 - confidence) / 2, trials - successes
    low = float(beta.ppf(tail, successes, misses + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, misses)) if misses else 1.0

    return Interval(successes / trials, low, high, successes, misses)


Floats = NDArray[np.float64]
Columns = Sequence[ArrayLike]


def bootstrap(
    cells: Mapping[tuple[str, ...], Columns],
    statistic: Callable[..., float | None],
    rng: np.random.Generator,
    *,
    rounds: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a figure over nested levels, with a percentile interval that resamples each.

    Each cell, such as (task, seed), holds columns of equal length whose rows are the items. A
    round draws tasks with replacement, within each the seeds, within each the items, and averages
    from the inside out. A level with one member is not resampled in effect: the interval then
    says nothing about other tasks or seeds. Cells whose figure is null are left out.

    Args:
        cells: columns of each cell, by the names of its levels, outermost first.
        statistic: figure of one cell's columns; ``None`` where it has none.
        rng: where the draws come from, such as ``named_rng(seed, "bootstrap")``.
        rounds: number of resamplings.
        confidence: coverage aimed at.

    Returns:
        The interval; ``n_pos`` is the number of cells that have a figure, ``n_null`` of those
        that have none.
    """
    if len({len(key) for key in cells}) > 1:
        raise BadValue("cells have different numbers of levels", where="bootstrap")
    kept = {key: [np.asarray(c) for c in columns] for key, columns in cells.items()}
    figures = {key: statistic(*columns) for key, columns in kept.items()}
    kept = {key: columns for key, columns in kept.items() if figures[key] is not None}
    missing = len(figures) - len(kept)
    if not kept:
        return Interval(None, None, None, 0, 0, missing)
    tree = _nest(kept)
    value = _mean(tree, lambda leaf: statistic(*leaf))
    draws = [_draw(tree, statistic, rng) for _ in range(rounds)]
    finite = [draw for draw in draws if draw is not None]
    if value is None or not finite:
        return Interval(value, None, None, len(kept), 0, missing)
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])

    return Interval(value, float(low), float(high), len(kept), 0, missing)


def check_confidence(confidence: float) -> None:
    """Refuses a confidence that is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise BadValue(f"confidence {confidence} is not between 0 and 1", where="interval")


def _check_counts(successes: int, trials: int, confidence: float) -> None:
    if not 0 <= successes <= trials:
        raise BadValue(f"{successes} successes in {trials} trials", where="interval of a rate")
    check_confidence(confidence)


Tree = Any
"""Either a dict of trees, or the columns of one cell."""


def _nest(cells: Mapping[tuple[str, ...], list[NDArray[Any]]]) -> Tree:
    tree: dict[str, Any] = {}
    for key, columns in cells.items():
        branch = tree
        for part in key[:-1]:
            branch = branch.setdefault(part, {})
        branch[key[-1]] = columns

    return tree


def _mean(tree: Tree, leaf: Callable[[Any], float | None]) -> float | None:
    if not isinstance(tree, dict):
        return leaf(tree)
    figures = [f for child in tree.values() if (f := _mean(child, leaf)) is not None]

    return float(np.mean(figures)) if figures else None


def _draw(
    tree: Tree, statistic: Callable[..., float | None], rng: np.random.Generator
) -> float | None:
    """The figure of one resampling of every level."""
    if not isinstance(tree, dict):
        rows = rng.integers(0, len(tree[0]), len(tree[0]))
        return statistic(*(column[rows] for column in tree))
    children = list(tree.values())
    chosen = rng.integers(0, len(children), len(children))
    figures = [f for i in chosen if (f := _draw(children[i], statistic, rng)) is not None]

    return float(np.mean(figures)) if figures else None
