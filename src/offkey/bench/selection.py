"""Choosing the default detector on development tasks, and judging it on the held-out ones."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from offkey.bench.averages import over_tasks, task_count
from offkey.bench.lineup import ALPHA, DEFAULT, ENTRIES, Entry
from offkey.bench.organisms import development, held_out
from offkey.bench.protocol import Bench
from offkey.bench.rows import BenchRow, TaskRow
from offkey.bench.runner import RowResult
from offkey.bench.table import task_row
from offkey.detect import Combine
from offkey.stats import Interval, auroc, conformal_p_values
from offkey.storage import write_text
from offkey.tasks import get_task, organism_of

__all__ = [
    "Candidate",
    "CandidateMean",
    "HeldOutMean",
    "HeldOutTask",
    "candidates",
    "held_out_rows",
    "search",
]

Array = np.ndarray
PLACES = {"resid_post": "resid_post.*", "attn_out": "attn_out.later", "mlp_out": "mlp_out.later"}
SCORES = (
    *("knn", "knn-cosine", "knn-ratio", "lof"),
    *("mahalanobis", "mahalanobis-diagonal", "mahalanobis-pca", "mahalanobis-l2"),
    "isolation-forest",
)
ELSEWHERE = ("knn-cosine", "mahalanobis-diagonal", "isolation-forest")
"""Scores that are also tried at the outputs of attention and MLP."""

SPANS = {
    "all": (0.0, 1.0),
    "later half": (0.5, 1.0),
    "last third": (2 / 3, 1.0),
    "last quarter": (0.75, 1.0),
    "middle third": (1 / 3, 2 / 3),
    "third quarter": (0.5, 0.75),
}
LATER = tuple(name for name, (low, _) in SPANS.items() if low >= 0.5)
"""Spans for the outputs of attention and MLP, which are read in the later half only."""

COMBINES = ("mean", "max", "top-3")
HIDDEN = "obfuscated"
"""The task whose organisms were trained to hide from the default detector."""
RIVALS = ("clean", "best_seed_row", "output_only")


@dataclass(frozen=True)
class Candidate:
    """A score of the sites in some of the blocks, combined in some way.

    Attributes:
        place: kind of site.
        score: name of the score.
        span: which of its sites, by name.
        combine: how sites become one score.
    """

    place: str
    score: str
    span: str
    combine: str

    @property
    def entry(self) -> Entry:
        """The row of the table that has the scores of all its sites."""
        return Entry(f"{self.place}/{self.score}", score=self.score, sites=PLACES[self.place])

    def sites(self, names: Sequence[str], blocks: int) -> list[int]:
        """Positions in ``names`` of the sites in its span."""
        low, high = SPANS[self.span]
        depth = [int(name.rpartition(".")[2]) / blocks for name in names]

        return [n for n, place in enumerate(depth) if low <= place + 1e-9 < high]


@dataclass(frozen=True)
class CandidateResult(BenchRow):
    """A candidate on one development task.

    Attributes:
        task: name of the organism.
        place: see :class:`Candidate`, as the next three.
        score: name of the score.
        span: which sites.
        combine: how sites become one score.
        auroc: on the organism.
        clean: on the clean model.
        excess: ``auroc`` less the larger of 0.5 and ``clean``.
        flagged_normal: share of the normal prompts that was flagged.
        flagged_anomalous: share of the anomalous prompts that was flagged.
    """

    task: str
    place: str
    score: str
    span: str
    combine: str
    auroc: float
    clean: float
    excess: float
    flagged_normal: float
    flagged_anomalous: float


@dataclass(frozen=True)
class CandidateMean(BenchRow):
    """A candidate over the development tasks: means, the lowest AUROC, and the mean objective."""

    place: str
    score: str
    span: str
    combine: str
    tasks: int
    auroc: float
    clean: float
    excess: float
    flagged_normal: float
    flagged_anomalous: float
    lowest: float
    objective: float


def candidates() -> list[Candidate]:
    """All candidates of the search."""
    return [
        Candidate(place, score, span, combine)
        for place in PLACES
        for score in (SCORES if place == "resid_post" else ELSEWHERE)
        for span in (SPANS if place == "resid_post" else LATER)
        for combine in COMBINES
    ]


def objective(excess: float, flagged_normal: float) -> float:
    """What candidates are ranked by: excess less the false alarms beyond those promised.

    Where most candidates rank prompts perfectly, AUROC alone cannot choose between them.
    """
    return excess - max(0.0, flagged_normal - ALPHA)


def search(
    place: Bench, log: str | Path, options: Sequence[Candidate] | None = None
) -> list[CandidateMean]:
    """Evaluates candidates on the development tasks of a benchmark, and logs every one.

    The log holds one JSON object a line: first each candidate on each task, then the means of
    each candidate with its objective. Held-out tasks are not read.

    Args:
        place: tasks and models; tasks outside the development families are left out.
        log: file of the log.
        options: the candidates; all if left out.

    Returns:
        The means of each candidate, best objective first.
    """
    options = candidates() if options is None else options
    entries = list({option.entry.name: option.entry for option in options}.values())
    results: list[CandidateResult] = []
    for task in development(place.tasks):
        by_entry = {
            e.name: (organism, clean) for e, organism, clean in place.results(task, entries)
        }
        models = place.models(task)
        blocks = len(models.organism.sites_at("resid_post.*"))
        labels = np.array(models.test["label"])
        for option in options:
            organism, clean = by_entry[option.entry.name]
            results += _candidate_result(task, option, organism, clean, labels, blocks)
    means = sorted(_means(results), key=lambda row: -row.objective)
    lines = [json.dumps(row.flat(), allow_nan=False) for row in (*results, *means)]
    write_text(log, "\n".join(lines) + "\n")

    return means


@dataclass(frozen=True)
class HeldOutTask(BenchRow):
    """The default detector on one held-out task, beside its rivals.

    Attributes:
        task: name of the organism.
        detector: name of the row.
        auroc: on the organism.
        low: lower end of its interval.
        high: upper end of its interval.
        agrees: AUROC where normal and anomalous behaviour give the same answer.
        disagrees: AUROC where they differ.
        clean: AUROC on the clean model.
        excess: ``auroc`` less the larger of 0.5 and ``clean``.
        excess_low: lower end of its interval.
        excess_high: upper end of its interval.
        tpr_at_1pct_fpr: true-positive rate at a false-positive rate of 1 %.
        flagged_normal: share of the normal prompts that was flagged.
        best_seed_row: AUROC of the best published row.
        output_only: AUROC of the best control that sees the output only.
        over_clean: ``auroc`` less ``clean``.
        over_best_seed_row: ``auroc`` less ``best_seed_row``.
        over_output_only: ``auroc`` less ``output_only``.
    """

    task: str
    detector: str
    auroc: float | None
    low: float | None
    high: float | None
    agrees: float | None
    disagrees: float | None
    clean: float | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    tpr_at_1pct_fpr: float | None
    flagged_normal: float | None
    best_seed_row: float | None
    output_only: float | None
    over_clean: float | None
    over_best_seed_row: float | None
    over_output_only: float | None


@dataclass(frozen=True)
class HeldOutMean(BenchRow):
    """A mean over held-out tasks.

    Attributes:
        task: what the mean is over or of: ``mean``, ``best_seed_row`` or ``obfuscated``.
        detector: name of the row.
        tasks: number of tasks.
        lowest: lowest AUROC on any organism.
        means: by column of :class:`HeldOutTask`, with an interval that resamples tasks.
    """

    task: str
    detector: str
    tasks: int
    lowest: float | None
    means: Mapping[str, Interval]

    def flat(self) -> dict[str, Any]:
        """The row as a flat object; ``low`` and ``high`` belong to ``auroc``."""
        row: dict[str, Any] = {
            "task": self.task,
            "detector": self.detector,
            "tasks": self.tasks,
            "lowest": self.lowest,
        }
        for column, mean in self.means.items():
            head = "" if column == "auroc" else f"{column}_"
            row |= {column: mean.value, f"{head}low": mean.low, f"{head}high": mean.high}

        return row


def held_out_rows(
    place: Bench, entries: Sequence[Entry] = ENTRIES
) -> list[HeldOutTask | HeldOutMean]:
    """The default detector on held-out tasks, beside the published rows and the controls.

    The best published row is the one with the highest mean over these very tasks, and
    ``output_only`` the best control that sees the output only: the strongest rivals that could
    be named afterwards. Differences are paired by task.

    Args:
        place: tasks and models; tasks of development families are left out.
        entries: the rows to choose from.

    Returns:
        A row for each task; then ``mean``, over the tasks where a name says which rule holds;
        ``best_seed_row``, the same mean for that row; and ``obfuscated``, the mean over the
        organisms of that task, which were trained to hide from this very detector, where there
        are several; the first of these is then called ``obfuscated-0``.
    """
    figures = _held_out_figures(place, entries)
    ours = figures.get(DEFAULT, {})
    known = {name: get_task(organism_of(name)[0]) for name in ours}
    plain = [name for name, task in known.items() if not task.triggered]
    published = _best([e.name for e in entries if e.published], figures, plain)
    output = _best([e.name for e in entries if e.kind == "output"], figures, plain)
    tasks = [
        _held_out_task(task, ours, figures.get(published), figures.get(output)) for task in ours
    ]
    rows: list[HeldOutTask | HeldOutMean] = [*tasks]
    rows.append(_held_out_mean("mean", [row for row in tasks if row.task in plain], place.seed))
    if published:
        rival = [_held_out_task(task, figures[published], None, None) for task in plain]
        mean = _held_out_mean("best_seed_row", rival, place.seed)
        rows.append(replace(mean, detector=published))
    hidden = [row for row in tasks if known[row.task].name == HIDDEN]
    if len(hidden) > 1:
        rows = [replace(row, task=f"{HIDDEN}-0") if row.task == HIDDEN else row for row in rows]
        rows.append(_held_out_mean(HIDDEN, hidden, place.seed))

    return rows


def _candidate_result(
    task: str,
    option: Candidate,
    organism: RowResult,
    clean: RowResult,
    labels: Array,
    blocks: int,
) -> Iterator[CandidateResult]:
    """A candidate on one task; nothing where one of its results failed."""
    if organism.reason or clean.reason:
        return
    score, p_value = _combined(option, organism, blocks)
    base, _ = _combined(option, clean, blocks)
    ours, theirs = auroc(score, labels).value, auroc(base, labels).value
    if ours is None or theirs is None:
        return
    flagged = p_value <= ALPHA
    yield CandidateResult(
        task=task,
        **vars(option),
        auroc=ours,
        clean=theirs,
        excess=ours - max(0.5, theirs),
        flagged_normal=float(flagged[labels == 0].mean()),
        flagged_anomalous=float(flagged[labels == 1].mean()),
    )


def _combined(
    option: Candidate, result: RowResult, blocks: int
) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
    """Score and p-value of a candidate, from the scores of all sites."""
    chosen, combine = option.sites(result.sites, blocks), Combine(option.combine)
    score = combine(result.by_site[:, chosen])

    return score, conformal_p_values(combine(result.calibration[:, chosen]), score)


def _means(results: Sequence[CandidateResult]) -> Iterator[CandidateMean]:
    groups: dict[Candidate, list[CandidateResult]] = {}
    for row in results:
        groups.setdefault(Candidate(row.place, row.score, row.span, row.combine), []).append(row)
    figures = ("auroc", "clean", "excess", "flagged_normal", "flagged_anomalous")
    for option, rows in groups.items():
        means: dict[str, Any] = {
            name: float(np.mean([getattr(row, name) for row in rows])) for name in figures
        }
        objectives = [objective(row.excess, row.flagged_normal) for row in rows]
        yield CandidateMean(
            **vars(option),
            tasks=len(rows),
            **means,
            lowest=min(row.auroc for row in rows),
            objective=float(np.mean(objectives)),
        )


def _held_out_figures(place: Bench, entries: Sequence[Entry]) -> dict[str, dict[str, TaskRow]]:
    """Rows of the default detector and its rivals, by detector and task."""
    used = [e for e in entries if e.name == DEFAULT or e.published or e.kind == "output"]
    figures: dict[str, dict[str, TaskRow]] = {}
    for task in held_out(place.tasks):
        for pair in place.results(task, used):
            row = task_row(task, pair, place.test(task, pair.entry), seed=place.seed)
            figures.setdefault(pair.entry.name, {})[task] = row

    return figures


def _best(
    names: Sequence[str], figures: Mapping[str, Mapping[str, TaskRow]], tasks: Sequence[str]
) -> str:
    """The row with the highest mean, of those that have a figure on every task."""
    totals: dict[str, float] = {}
    for name in names:
        rows = figures.get(name, {})
        values = [rows[task].auroc for task in tasks if task in rows]
        known = [value for value in values if value is not None]
        if len(known) == len(tasks):
            totals[name] = sum(known)

    return max(totals, key=lambda name: totals[name], default="")


def _held_out_task(
    task: str,
    rows: Mapping[str, TaskRow],
    published: Mapping[str, TaskRow] | None,
    output: Mapping[str, TaskRow] | None,
) -> HeldOutTask:
    """One detector on one task, beside its rivals."""
    ours = rows[task]
    best, other = (
        row.auroc if (row := (rival or {}).get(task)) else None for rival in (published, output)
    )

    return HeldOutTask(
        task=task,
        detector=ours.detector,
        auroc=ours.auroc,
        low=ours.low,
        high=ours.high,
        agrees=ours.agrees,
        disagrees=ours.disagrees,
        clean=ours.clean,
        excess=ours.excess,
        excess_low=ours.excess_low,
        excess_high=ours.excess_high,
        tpr_at_1pct_fpr=ours.tpr_at_1pct_fpr,
        flagged_normal=ours.flagged_normal,
        best_seed_row=best,
        output_only=other,
        over_clean=_less(ours.auroc, ours.clean),
        over_best_seed_row=_less(ours.auroc, best),
        over_output_only=_less(ours.auroc, other),
    )


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _held_out_mean(name: str, rows: Sequence[HeldOutTask], seed: int) -> HeldOutMean:
    """Means over tasks."""
    columns = (
        *("auroc", "agrees", "disagrees", "excess"),
        *RIVALS,
        *(f"over_{rival}" for rival in RIVALS),
        "flagged_normal",
    )
    known = [row.auroc for row in rows if row.auroc is not None]
    means = {
        column: over_tasks(
            {row.task: value for row in rows if (value := getattr(row, column)) is not None}, seed
        )
        for column in columns
    }

    return HeldOutMean(
        task=name,
        detector=rows[0].detector if rows else DEFAULT,
        tasks=task_count(row.task for row in rows),
        lowest=min(known, default=None),
        means=means,
    )
