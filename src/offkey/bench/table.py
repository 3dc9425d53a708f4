"""The table of the benchmark: what each row adds to the clean model, and means over tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from offkey.bench.averages import (
    average,
    correlation,
    over_seeds,
    over_tasks,
    task_count,
    task_mean,
)
from offkey.bench.lineup import ENTRIES, Entry, choose_entries
from offkey.bench.organisms import Organisms
from offkey.bench.protocol import Bench, ResultPair
from offkey.bench.rows import (
    LayerRow,
    QuirkinessRow,
    SiteRow,
    SummaryRow,
    TableRow,
    TaskRow,
    with_interval,
)
from offkey.data import Prompts
from offkey.detect import Evaluation, MetricInterval, Scores, evaluate, site_aurocs
from offkey.stats import excess, named_rng
from offkey.storage import RunFolder, write_results
from offkey.tasks import BASE

__all__ = [
    "Credit",
    "bench",
    "credit",
    "layer_rows",
    "quirkiness_rows",
    "site_rows",
    "summary",
    "table1",
    "task_row",
]

Array = np.ndarray
COLUMNS = ("average", "agrees", "disagrees")
"""Columns of the printed table."""


@dataclass(frozen=True)
class Credit:
    """What a detector finds on the organism, and what it adds to itself on the clean model.

    Attributes:
        organism: metrics on the organism.
        clean: AUROC of the same detector refitted on the clean model, on the same prompts.
        excess: AUROC on the organism less the larger of 0.5 and ``clean``; its interval is that
            of a paired bootstrap over prompts.
        flagged_normal: share of the normal prompts that was flagged; null without p-values.
        flagged_anomalous: share of the anomalous prompts that was flagged.
    """

    organism: Evaluation
    clean: MetricInterval | None
    excess: MetricInterval | None
    flagged_normal: float | None
    flagged_anomalous: float | None


def credit(organism: Scores, clean: Scores, test: Prompts, *, seed: int = 0) -> Credit:
    """Compares the scores of a detector on the organism with those on the clean model.

    Args:
        organism: scores of the test prompts on the organism.
        clean: scores of the same prompts by the detector that was refitted on the clean model.
        test: the prompts, with labels.
        seed: of the bootstrap.
    """
    labels = np.array(test["label"], dtype=np.float64)
    gain = excess(organism.score, clean.score, labels, named_rng(seed, "excess"))

    return Credit(
        evaluate(organism, test),
        evaluate(clean, test).auroc,
        MetricInterval.from_stats(gain),
        _flagged_share(organism, labels == 0),
        _flagged_share(organism, labels == 1),
    )


def task_row(task: str, pair: ResultPair, test: Prompts, *, seed: int = 0) -> TaskRow:
    """The row of one detector on one task.

    Args:
        task: name of the task.
        pair: the row's results on the organism and on the clean model.
        test: the prompts, with labels.
        seed: of the bootstrap.
    """
    entry, organism, clean = pair
    added = credit(organism.scores(entry.name), clean.scores(entry.name), test, seed=seed)
    metrics, auroc, gain = added.organism, added.organism.auroc, added.excess

    return TaskRow(
        task=task,
        detector=entry.name,
        kind=entry.kind,
        published=entry.published,
        mode=entry.mode,
        forwards=organism.forwards,
        backwards=organism.backwards,
        seconds=organism.seconds,
        memory_mib=organism.memory_mib,
        auroc=_value(auroc),
        agrees=_value(metrics.agrees),
        disagrees=_value(metrics.disagrees),
        low=auroc.low if auroc else None,
        high=auroc.high if auroc else None,
        clean=_value(added.clean),
        excess=_value(gain),
        excess_low=gain.low if gain else None,
        excess_high=gain.high if gain else None,
        average_precision=metrics.average_precision,
        tpr_at_1pct_fpr=metrics.tpr_at_1pct_fpr,
        flagged_normal=added.flagged_normal,
        flagged_anomalous=added.flagged_anomalous,
        test_prompts=len(test),
        reason=organism.reason or clean.reason,
    )


def site_rows(task: str, pair: ResultPair, test: Prompts) -> list[SiteRow]:
    """AUROC of each site alone; none for a row that reads a single site."""
    name = pair.entry.name
    metrics = site_aurocs(pair.organism.scores(name), test)
    if len(metrics) < 2:
        return []

    return [SiteRow(task, name, row.site, _value(row.auroc)) for row in metrics]


def bench(
    out: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    seed: int = 0,
    organisms: Organisms | None = None,
    results: str | Path | None = None,
    command: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
    entries: Sequence[Entry] = ENTRIES,
    on: Bench | None = None,
) -> list[SummaryRow]:
    """Runs every row on every task, on the organism and, refitted, on the clean model.

    The recorded features and the results of each row are kept in ``out`` by task and model: the
    same command resumes where it was stopped, and a row that is added later costs its own passes
    only. ``table.parquet``, ``tasks.parquet``, ``sites.parquet`` and ``quirkiness.parquet`` hold
    the rows and tasks of the last call (see :mod:`offkey.bench.rows`). A row that fails has a
    reason instead of figures.

    Args:
        out: the bench folder.
        tasks: names of organisms: tasks, with ``-SEED`` for another organism of a task; all that
            learned their task if left out.
        rows: names of rows; all if left out.
        without: names of rows that are not run.
        seed: of splits and draws.
        organisms: where they are found; the bundled ones if left out.
        results: a folder for ``table1``, ``layers`` and ``quirkiness_auroc``, which documents
            quote.
        command: the command that these files name; by default the command line that does the
            same.
        tell: called with a line about each step.
        entries: the rows to choose from.
        on: tasks and models that are in memory already.

    Returns:
        One row for each detector: means over tasks with their intervals, and what it costs.

    Raises:
        UnknownName: there is no such task, row or organism; nothing is written then.
    """
    chosen = choose_entries(entries, rows, without)
    place = on or Bench.of(out, tasks, seed, tell, organisms, seeds=True)
    settings = {"bench": "table1", "base": place.organisms.base, "seed": seed}
    with RunFolder.open(out, settings) as run:
        figures = _Figures.of(place, chosen, seed)
        figures.write(run)
    if results:
        command = command or _command(Path(results), place.organisms, tasks, rows, without)
        shown = {entry.name for entry in chosen if entry.published} | {chosen[0].name}
        for name, made in figures.results(shown).items():
            write_results(Path(results) / f"{name}.json", made, command=command, seeds=[seed])

    return figures.summary


@dataclass(frozen=True)
class _Figures:
    """The rows of all tables of a benchmark."""

    tasks: list[TaskRow]
    sites: list[SiteRow]
    quirkiness: dict[str, float | None]
    summary: list[SummaryRow]

    @classmethod
    def of(cls, place: Bench, entries: Sequence[Entry], seed: int) -> "_Figures":
        """Runs rows on every task."""
        per_task: list[TaskRow] = []
        sites: list[SiteRow] = []
        quirkiness: dict[str, float | None] = {}
        for task in place.tasks:
            quirkiness[task] = place.models(task).quirkiness
            for pair in place.results(task, entries):
                test = place.test(task, pair.entry)
                per_task.append(task_row(task, pair, test, seed=seed))
                if pair.entry.kind == "internal":
                    sites += site_rows(task, pair, test)

        return cls(per_task, sites, quirkiness, summary(per_task, seed=seed))

    def write(self, run: RunFolder) -> None:
        """Writes the Parquet files of the folder."""
        table = [cell for row in self.summary for cell in _table_rows(row)]
        quirkiness = [QuirkinessRow(task, value) for task, value in self.quirkiness.items()]
        no_sites = dict.fromkeys(("task", "detector", "site", "auroc"), ())
        run.write_table("tasks", [row.flat() for row in self.tasks])
        run.write_table("table", [row.flat() for row in table])
        run.write_table("sites", [row.flat() for row in self.sites] or no_sites)
        run.write_table("quirkiness", [row.flat() for row in quirkiness])

    def results(self, shown: set[str]) -> dict[str, list[dict[str, Any]]]:
        """The results files that documents quote; those by layer and organism of some rows."""
        sites = [row for row in self.sites if row.detector in shown]
        per_task = [row for row in self.tasks if row.detector in shown]

        return {
            "table1": table1(self.summary),
            "layers": [row.flat() for row in layer_rows(sites)],
            "quirkiness_auroc": quirkiness_rows(per_task, self.quirkiness),
        }


def summary(per_task: Sequence[TaskRow], *, seed: int = 0) -> list[SummaryRow]:
    """One row for each detector: means over tasks, see :func:`over_tasks`.

    A task without a figure (an empty subset, a row that failed) is left out of that mean; where
    none is left the row has the reason. ``output_only`` is the best mean, over the same tasks, of
    a control that sees the output only; for ``over_seeds`` see :func:`over_seeds`.
    """
    by_detector: dict[str, list[TaskRow]] = {}
    for row in per_task:
        by_detector.setdefault(row.detector, []).append(row)

    return [_summary_row(rows, per_task, seed) for rows in by_detector.values()]


def table1(rows: Sequence[SummaryRow]) -> list[dict[str, Any]]:
    """The rows of :func:`summary` in the columns of the published table, best average first.

    ``low`` and ``high`` belong to ``average``.
    """
    first = ("detector", "kind", "published", "mode", "average")
    others = (
        *("agrees", "disagrees", "tasks", "lowest"),
        *("seeds", "over_seeds", "over_seeds_low", "over_seeds_high"),
        *("clean", "output_only", "excess", "excess_low", "excess_high"),
        *("tpr_at_1pct_fpr", "flagged_normal", "forwards", "backwards", "seconds"),
        *("memory_mib", "status", "reason"),
    )

    return [
        {
            **{name: getattr(row, name) for name in first},
            "low": row.average_low,
            "high": row.average_high,
            **{name: getattr(row, name) for name in others},
        }
        for row in sorted(rows, key=lambda row: -(row.average or 0.0))
    ]


def layer_rows(sites: Sequence[SiteRow]) -> list[LayerRow]:
    """AUROC of each detector at each site: mean over tasks, and the middle half of organisms."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in sites:
        if row.auroc is not None:
            values.setdefault((row.detector, row.site), {})[row.task] = row.auroc

    return [
        LayerRow(
            detector=detector,
            site=site,
            layer=_layer(site),
            average=task_mean(by_organism),
            low_quartile=float(np.quantile(list(by_organism.values()), 0.25)),
            high_quartile=float(np.quantile(list(by_organism.values()), 0.75)),
            lowest=min(by_organism.values()),
            tasks=task_count(by_organism),
        )
        for (detector, site), by_organism in values.items()
    ]


def quirkiness_rows(
    per_task: Sequence[TaskRow], quirkiness: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Quirkiness of each organism beside each detector's AUROC, and their correlation.

    For each detector one row for each organism, then one whose ``task`` is ``correlation``, with
    the columns of :func:`correlation` for AUROC and, with ``excess_`` before them, for the excess.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(row.detector for row in per_task):
        known = [
            (value, row)
            for row in per_task
            if row.detector == name
            and row.auroc is not None
            and (value := quirkiness.get(row.task)) is not None
        ]
        rows += [
            {
                "detector": name,
                "task": row.task,
                "quirkiness": value,
                "auroc": row.auroc,
                "excess": row.excess,
            }
            for value, row in known
        ]
        auroc = [(value, row.auroc) for value, row in known]
        gains = [(value, row.excess) for value, row in known]
        rows.append(
            {
                "detector": name,
                "task": "correlation",
                "tasks": len(known),
                **_correlation(auroc),
                **_correlation(gains, "excess_"),
            }
        )

    return rows


def _summary_row(mine: Sequence[TaskRow], per_task: Sequence[TaskRow], seed: int) -> SummaryRow:
    """Means over the tasks of one detector."""

    def mean(name: str, column: str) -> dict[str, Any]:
        values = {r.task: v for r in mine if (v := getattr(r, column)) is not None}
        return with_interval(name, over_tasks(values, seed))

    auroc = {row.task: row.auroc for row in mine if row.auroc is not None}
    seeds = over_seeds(auroc)

    return SummaryRow(
        detector=mine[0].detector,
        kind=mine[0].kind,
        published=mine[0].published,
        mode=mine[0].mode,
        forwards=max(row.forwards for row in mine),
        backwards=max(row.backwards for row in mine),
        seconds=average(row.seconds for row in mine),
        memory_mib=average(row.memory_mib for row in mine),
        tasks=task_count(auroc),
        output_only=_best_output(per_task, set(auroc)),
        **mean("average", "auroc"),
        **mean("agrees", "agrees"),
        **mean("disagrees", "disagrees"),
        **mean("clean", "clean"),
        **mean("excess", "excess"),
        seeds=seeds.seeds,
        over_seeds=seeds.value,
        over_seeds_low=seeds.low,
        over_seeds_high=seeds.high,
        tpr_at_1pct_fpr=average(row.tpr_at_1pct_fpr for row in mine),
        flagged_normal=average(row.flagged_normal for row in mine),
        flagged_anomalous=average(row.flagged_anomalous for row in mine),
        lowest=min(auroc.values(), default=None),
        status="ok" if auroc else "failed",
        reason="; ".join(dict.fromkeys(row.reason for row in mine if row.reason)),
    )


def _table_rows(row: SummaryRow) -> Iterator[TableRow]:
    """The long form that the page is made from: one row for each column of the table."""
    backward = f", {row.backwards} backward" if row.backwards else ""
    for column in COLUMNS:
        is_first = column == "average"
        compared: dict[str, Any] = {
            name: getattr(row, name) if is_first else None
            for name in ("clean", "clean_low", "clean_high")
            + ("excess", "excess_low", "excess_high")
        }
        yield TableRow(
            detector=row.detector,
            column=column,
            auroc=getattr(row, column),
            low=getattr(row, f"{column}_low"),
            high=getattr(row, f"{column}_high"),
            n_tasks=row.tasks,
            **compared,
            mode=row.mode,
            cost=f"{row.forwards} forward{backward}",
            reason=row.reason,
        )


def _command(
    results: Path,
    organisms: Organisms,
    tasks: Sequence[str] | None,
    rows: Sequence[str] | None,
    without: Sequence[str] | None,
) -> str:
    """The command line that makes the same results."""
    parts = [f"offkey bench table1 --results {results}"]
    if organisms.base != BASE:
        parts.append(f"--base {organisms.base}")
    if organisms.folder:
        parts.append(f"--organisms {organisms.folder}")
    parts += [f"--task {task}" for task in tasks or ()]
    parts += [f'--row "{row}"' for row in rows or ()]
    parts += [f'--without "{row}"' for row in without or ()]

    return " ".join(parts)


def _best_output(per_task: Sequence[TaskRow], tasks: set[str]) -> float | None:
    """Best mean, over exactly these organisms, of a control that sees the output only."""
    outputs: dict[str, dict[str, float]] = {}
    for row in per_task:
        if row.kind == "output" and row.task in tasks and row.auroc is not None:
            outputs.setdefault(row.detector, {})[row.task] = row.auroc
    means = [task_mean(values) for values in outputs.values() if set(values) == tasks]

    return max(means, default=None)


def _correlation(
    pairs: Sequence[tuple[float, float | None]], head: str = ""
) -> dict[str, float | None]:
    """Columns of the correlation of the pairs that are complete."""
    known = [(x, y) for x, y in pairs if y is not None]
    result = correlation([x for x, _ in known], [y for _, y in known])

    return {
        f"{head}pearson": result.pearson,
        f"{head}pearson_low": result.low,
        f"{head}pearson_high": result.high,
        f"{head}spearman": result.spearman,
    }


def _layer(site: str) -> int | None:
    """Number of the block that a site belongs to; null outside the blocks."""
    number = site.rpartition(".")[2]

    return int(number) if number.isdigit() else None


def _flagged_share(scores: Scores, subset: Bool[Array, " n"]) -> float | None:
    """Share of some of the prompts that was flagged; null where none has a p-value."""
    known = subset & ~np.isnan(scores.p_value)

    return float(scores.flagged[known].mean()) if known.any() else None


def _value(interval: MetricInterval | None) -> float | None:
    return None if interval is None else interval.value
