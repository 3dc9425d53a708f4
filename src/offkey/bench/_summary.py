"""Tables over tasks: means with intervals, figures by layer, quirkiness beside AUROC."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from scipy.stats import t as student

from offkey.stats import Interval, bootstrap, named_rng
from offkey.tasks import organism_of

__all__ = ["layer_rows", "over_tasks", "quirkiness_rows", "summary", "table1"]

Row = dict[str, Any]
TITLES = {"auroc": "average", "agrees": "agrees", "disagrees": "disagrees"}
FEWEST = 4
"""Tasks below which nothing is said of a correlation."""


def over_tasks(values: Mapping[str, float], seed: int = 0) -> Interval:
    """Unweighted mean over tasks of one figure an organism.

    The 95 % interval resamples the tasks, and in each its organisms where there are several.
    """
    cells: dict[tuple[str, ...], tuple[list[float]]] = {
        (task, str(organism)): ([value],)
        for task, known in _by_task(values).items()
        for organism, value in known.items()
    }

    return bootstrap(cells, lambda x: float(np.mean(x)), named_rng(seed, "bench"))


def task_mean(values: Mapping[str, float]) -> float:
    """The same without an interval."""
    return float(np.mean([np.mean(list(known.values())) for known in _by_task(values).values()]))


def over_seeds(values: Mapping[str, float]) -> Row:
    """How far a figure moves when organisms are trained anew.

    Over the tasks that have several organisms: the mean over these tasks for each seed that all
    of them have, and of these the mean with its 95 % t-interval. Null where no task has any.
    """
    several = [known for known in _by_task(values).values() if len(known) > 1]
    seeds = set.intersection(*(set(known) for known in several)) if several else set()
    means = [float(np.mean([known[seed] for known in several])) for seed in seeds]
    if len(means) < 2:
        return {"seeds": 0, "over_seeds": None, "over_seeds_low": None, "over_seeds_high": None}
    middle = float(np.mean(means))
    half = float(student.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means)))

    return {"seeds": len(means), "over_seeds": middle, "over_seeds_low": max(0.0, middle - half),
            "over_seeds_high": min(1.0, middle + half)}  # fmt: skip


def _by_task(values: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Figures of organisms, by task and seed."""
    found: dict[str, dict[int, float]] = {}
    for name, value in values.items():
        task, seed = organism_of(name)
        found.setdefault(task, {})[seed] = value

    return found


def summary(per_task: Sequence[Row], *, seed: int = 0) -> list[Row]:
    """One row a detector: means over tasks, with 95 % intervals, see :func:`over_tasks`.

    A task without a figure (an empty subset, a row that failed) is left out of that mean; where
    none is left the row says why. ``output_only`` is the best mean, over the same tasks, of a
    control that sees the output alone; for ``over_seeds`` see :func:`over_seeds`.
    """
    names = dict.fromkeys(row["detector"] for row in per_task)
    rows = []
    for name in names:
        mine = [row for row in per_task if row["detector"] == name]
        have = {row["task"] for row in mine if row["auroc"] is not None}
        reasons = [row["reason"] for row in mine if row["reason"]]
        row = {key: mine[0][key] for key in ("detector", "kind", "published", "mode")}
        row |= {key: _largest(r[key] for r in mine) for key in ("forwards", "backwards")}
        row |= {key: _average(r[key] for r in mine) for key in ("seconds", "memory_mib")}
        row |= {"tasks": len({organism_of(name)[0] for name in have}),
                "output_only": _best_output(per_task, have)}  # fmt: skip
        for column in (*TITLES, "clean", "excess"):
            values = {r["task"]: r[column] for r in mine if r[column] is not None}
            title, told = TITLES.get(column, column), over_tasks(values, seed)
            row |= {title: told.value, f"{title}_low": told.low, f"{title}_high": told.high}
        row |= over_seeds({r["task"]: r["auroc"] for r in mine if r["auroc"] is not None})
        for column in ("tpr_at_1pct_fpr", "flagged_normal", "flagged_anomalous"):
            row[column] = _average(r[column] for r in mine)
        row["lowest"] = min((r["auroc"] for r in mine if r["auroc"] is not None), default=None)
        row["status"] = "ok" if have else "failed"
        row["reason"] = "; ".join(dict.fromkeys(reasons))
        rows.append(row)

    return rows


def table1(rows: Sequence[Row]) -> list[Row]:
    """The rows of :func:`summary` in the columns of the published table, best average first.

    ``low`` and ``high`` belong to ``average``.
    """
    first = ("detector", "kind", "published", "mode", "average")
    others = ("agrees", "disagrees", "tasks",
              "lowest", "seeds", "over_seeds", "over_seeds_low", "over_seeds_high",
              "clean", "output_only", "excess", "excess_low", "excess_high",
              "tpr_at_1pct_fpr", "flagged_normal", "forwards", "backwards", "seconds",
              "memory_mib", "status", "reason")  # fmt: skip

    return [
        {**{name: row[name] for name in first}, "low": row["average_low"],
         "high": row["average_high"], **{name: row[name] for name in others}}
        for row in sorted(rows, key=lambda row: -(row["average"] or 0.0))
    ]  # fmt: skip


def layer_rows(sites: Sequence[Row]) -> list[Row]:
    """AUROC of each detector at each site: mean over tasks, and the middle half of organisms."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in sites:
        if row["auroc"] is not None:
            values.setdefault((row["detector"], row["site"]), {})[row["task"]] = row["auroc"]

    return [
        {
            "detector": detector, "site": site, "layer": _layer(site),
            "average": task_mean(told),
            "low_quartile": float(np.quantile(list(told.values()), 0.25)),
            "high_quartile": float(np.quantile(list(told.values()), 0.75)),
            "lowest": min(told.values()), "tasks": len({organism_of(name)[0] for name in told}),
        }
        for (detector, site), told in values.items()
    ]  # fmt: skip


def _layer(site: str) -> int | None:
    """The number of the block that a site belongs to."""
    number = site.rpartition(".")[2]

    return int(number) if number.isdigit() else None


def quirkiness_rows(per_task: Sequence[Row], quirkiness: Mapping[str, float | None]) -> list[Row]:
    """Quirkiness of each organism beside each detector's AUROC, and how the two go together.

    Rows of a task, then one a detector whose ``task`` is ``correlation``; Pearson's has a 95 %
    interval by Fisher's z. Null below four tasks, and where nothing varies.
    """
    rows: list[Row] = []
    for name in dict.fromkeys(row["detector"] for row in per_task):
        mine = [
            {"detector": name, "task": row["task"], "quirkiness": quirkiness[row["task"]],
             "auroc": row["auroc"], "excess": row["excess"]}
            for row in per_task
            if row["detector"] == name and row["auroc"] is not None
            and quirkiness.get(row["task"]) is not None
        ]  # fmt: skip
        rows += [*mine, {"detector": name, "task": "correlation", "tasks": len(mine),
                         **_correlation(mine, "auroc"),
                         **_correlation(mine, "excess", "excess_")}]  # fmt: skip

    return rows


def _correlation(rows: Sequence[Row], column: str, head: str = "") -> Row:
    known = [row for row in rows if row[column] is not None]
    x, y = (np.array([row[name] for row in known]) for name in ("quirkiness", column))
    if len(known) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(f"{head}{name}" for name in
                             ("pearson", "pearson_low", "pearson_high", "spearman"))  # fmt: skip
    found = pearsonr(x, y)
    low, high = found.confidence_interval(0.95)

    return {f"{head}pearson": float(found.statistic), f"{head}pearson_low": float(low),
            f"{head}pearson_high": float(high),
            f"{head}spearman": float(spearmanr(x, y).statistic)}  # fmt: skip


def _best_output(per_task: Sequence[Row], tasks: set[str]) -> float | None:
    outputs: dict[str, dict[str, float]] = {}
    for row in per_task:
        if row["kind"] == "output" and row["task"] in tasks and row["auroc"] is not None:
            outputs.setdefault(row["detector"], {})[row["task"]] = row["auroc"]

    return max((task_mean(values) for values in outputs.values() if set(values) == tasks),
               default=None)  # fmt: skip


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]

    return float(np.mean(known)) if known else None


def _largest(values: Iterable[int]) -> int:
    return max(values, default=0)
