"""Means over tasks with their intervals, and correlations over organisms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr
from scipy.stats import t as student

from offkey.stats import Interval, bootstrap, named_rng
from offkey.tasks import organism_of

__all__ = [
    "Correlation",
    "SeedMean",
    "average",
    "correlation",
    "over_seeds",
    "over_tasks",
    "task_count",
    "task_mean",
]

FEWEST = 4
"""Organisms below which no correlation is computed."""


def over_tasks(values: Mapping[str, float], seed: int = 0) -> Interval:
    """Unweighted mean over tasks of one value for each organism.

    The 95 % interval resamples the tasks, and within each its organisms if it has several.
    """
    cells: dict[tuple[str, ...], tuple[list[float]]] = {
        (task, str(organism)): ([value],)
        for task, known in _by_task(values).items()
        for organism, value in known.items()
    }

    return bootstrap(cells, lambda x: float(np.mean(x)), named_rng(seed, "bench"))


def task_mean(values: Mapping[str, float]) -> float:
    """The mean of :func:`over_tasks` without its interval."""
    return float(np.mean([np.mean(list(known.values())) for known in _by_task(values).values()]))


def task_count(organisms: Iterable[str]) -> int:
    """Number of tasks that organisms belong to."""
    return len({organism_of(name)[0] for name in organisms})


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds with its 95 % t-interval; null where no task has several organisms.

    Attributes:
        seeds: number of seeds compared; 0 where there is no mean.
        value: the mean.
        low: lower end of the interval, at least 0.
        high: upper end of the interval, at most 1.
    """

    seeds: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None


def over_seeds(values: Mapping[str, float]) -> SeedMean:
    """How far a value moves when organisms are trained from other seeds.

    Over the tasks that have several organisms: the mean over these tasks for each seed that all
    of them have, and the mean of these with its 95 % t-interval.
    """
    several = [known for known in _by_task(values).values() if len(known) > 1]
    seeds = set.intersection(*(set(known) for known in several)) if several else set()
    means = [float(np.mean([known[seed] for known in several])) for seed in seeds]
    if len(means) < 2:
        return SeedMean()
    mean = float(np.mean(means))
    half = float(student.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means)))

    return SeedMean(len(means), mean, max(0.0, mean - half), min(1.0, mean + half))


@dataclass(frozen=True)
class Correlation:
    """Correlation of two columns; null below four rows, and where a column is constant.

    Attributes:
        n: number of rows.
        pearson: Pearson's.
        low: lower end of its 95 % interval, by Fisher's z.
        high: upper end of that interval.
        spearman: Pearson's of the ranks.
        reason: why it is null.
    """

    n: int
    pearson: float | None = None
    low: float | None = None
    high: float | None = None
    spearman: float | None = None
    reason: str = ""


def correlation(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Pearson's and Spearman's correlation."""
    n = len(x)
    if n < FEWEST:
        return Correlation(n, reason=f"needs {FEWEST} tasks; there are {n}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(n, reason="nothing varies")
    pearson = pearsonr(np.array(x), np.array(y))
    low, high = pearson.confidence_interval(0.95)
    rank = float(spearmanr(np.array(x), np.array(y)).statistic)

    return Correlation(n, float(pearson.statistic), float(low), float(high), rank)


def average(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not null; null where there are none."""
    known = [value for value in values if value is not None]

    return float(np.mean(known)) if known else None


def _by_task(values: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Values of organisms, by task and seed."""
    by_task: dict[str, dict[int, float]] = {}
    for name, value in values.items():
        task, seed = organism_of(name)
        by_task.setdefault(task, {})[seed] = value

    return by_task
