"""Choosing the default detector on development tasks, from rows that were recorded once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from offkey.bench._bench import Bench
from offkey.bench._cell import Cell
from offkey.bench._entry import ALPHA, Entry
from offkey.bench._split import development
from offkey.detect import Combine
from offkey.stats import auroc, conformal_p_values
from offkey.storage import write_text

__all__ = ["Candidate", "candidates", "objective", "search"]

Array = np.ndarray
Row = dict[str, Any]
PLACES = {"resid_post": "resid_post.*", "attn_out": "attn_out.later", "mlp_out": "mlp_out.later"}
SCORES = ("knn", "knn-cosine", "knn-ratio", "lof", "mahalanobis", "mahalanobis-diagonal",
          "mahalanobis-pca", "mahalanobis-l2", "isolation-forest")  # fmt: skip
ELSEWHERE = ("knn-cosine", "mahalanobis-diagonal", "isolation-forest")
"""Scores that are tried at the outputs of attention and MLP too."""

SPANS = {"all": (0.0, 1.0), "later half": (0.5, 1.0), "last third": (2 / 3, 1.0),
         "last quarter": (0.75, 1.0), "middle third": (1 / 3, 2 / 3),
         "third quarter": (0.5, 0.75)}  # fmt: skip
LATER = tuple(name for name, (low, _) in SPANS.items() if low >= 0.5)
"""Spans of the outputs of attention and MLP, which are read in the later half alone."""
COMBINES = ("mean", "max", "top-3")


@dataclass(frozen=True)
class Candidate:
    """A score of the sites of some blocks, brought together in some way.

    Attributes:
        place: kind of site.
        score: name of the score.
        span: which of its sites, by name.
        combine: how they become one score.
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
        """Places in ``names`` of the sites that lie in its span."""
        low, high = SPANS[self.span]
        depth = [int(name.rpartition(".")[2]) / blocks for name in names]

        return [n for n, place in enumerate(depth) if low <= place + 1e-9 < high]


def candidates() -> list[Candidate]:
    """All that the search looks at."""
    return [
        Candidate(place, score, span, combine)
        for place in PLACES
        for score in (SCORES if place == "resid_post" else ELSEWHERE)
        for span in (SPANS if place == "resid_post" else LATER)
        for combine in COMBINES
    ]


def objective(row: Mapping[str, float]) -> float:
    """What a candidate is chosen by: its excess, less the false alarms beyond those promised.

    Where most candidates rank perfectly, AUROC alone cannot choose.
    """
    return row["excess"] - max(0.0, row["flagged_normal"] - ALPHA)


def search(where: Bench, log: str | Path, options: Sequence[Candidate] | None = None) -> list[Row]:
    """Evaluates candidates on the development tasks among ``where``'s, and logs every one.

    The log holds a JSON object a line: a candidate on a task, and then each candidate's means
    with its objective; no held-out task is read.

    Args:
        where: tasks and models; tasks outside the development families are left out.
        log: the file of the log.
        options: the candidates; all if left out.

    Returns:
        The means of each candidate, best objective first.
    """
    options = candidates() if options is None else options
    entries = list({option.entry.name: option.entry for option in options}.values())
    told: list[Row] = []
    for task in development(where.tasks):
        cells = {e.name: (organism, clean) for e, organism, clean in where.cells(task, entries)}
        blocks = len(where.arena(task).organism.sites_at("resid_post.*"))
        labels = np.array(where.arena(task).test["label"])
        told += list(_on_task(task, options, cells, labels, blocks))
    means = sorted(_means(told), key=lambda row: -row["objective"])
    lines = [json.dumps(row, allow_nan=False) for row in (*told, *means)]
    write_text(log, "\n".join(lines) + "\n")

    return means


def _on_task(
    task: str,
    options: Sequence[Candidate],
    cells: Mapping[str, tuple[Cell, Cell]],
    labels: Array,
    blocks: int,
) -> Iterator[Row]:
    for option in options:
        organism, clean = cells[option.entry.name]
        if organism.reason or clean.reason:
            continue
        score, p_value = _combined(option, organism, blocks)
        base, _ = _combined(option, clean, blocks)
        ours, theirs = auroc(score, labels).value, auroc(base, labels).value
        if ours is None or theirs is None:
            continue
        yield {
            "task": task, **vars(option), "auroc": ours, "clean": theirs,
            "excess": ours - max(0.5, theirs),
            "flagged_normal": float((p_value <= ALPHA)[labels == 0].mean()),
            "flagged_anomalous": float((p_value <= ALPHA)[labels == 1].mean()),
        }  # fmt: skip


def _combined(
    option: Candidate, cell: Cell, blocks: int
) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
    """Score and p-value of a candidate, from the scores of all sites."""
    chosen, combine = option.sites(cell.sites, blocks), Combine(option.combine)
    score = combine(cell.by_site[:, chosen])

    return score, conformal_p_values(combine(cell.calibration[:, chosen]), score)


def _means(told: Sequence[Row]) -> Iterator[Row]:
    names = ("place", "score", "span", "combine")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in told:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    figures = ("auroc", "clean", "excess", "flagged_normal", "flagged_anomalous")
    for key, rows in groups.items():
        means = {name: float(np.mean([row[name] for row in rows])) for name in figures}
        yield {**dict(zip(names, key, strict=True)), "tasks": len(rows), **means,
               "lowest": min(row["auroc"] for row in rows),
               "objective": float(np.mean([objective(row) for row in rows]))}  # fmt: skip
