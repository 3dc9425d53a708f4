"""What a detector does where the trusted prompts or the negatives are not what they should be."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64

from offkey.bench._bench import Bench
from offkey.bench._chosen import Chosen
from offkey.bench._entry import ALPHA, Entry, chosen
from offkey.bench._lineup import DEFAULT, ENTRIES
from offkey.bench._runner import Runner
from offkey.bench._store import FAILURES, told
from offkey.bench._summary import over_tasks
from offkey.data import Prompts
from offkey.detect import Detector, Scores, TrustedSplit, fit_rows
from offkey.passes import Rows
from offkey.stats import auroc, named_rng

__all__ = ["CONTROLLED", "control_rows"]

Array = np.ndarray
Row = dict[str, Any]
Figures = tuple[float | None, float | None]
"""AUROC, and the share of negatives that was flagged."""

CONTROLLED = (DEFAULT, "activations LOF", "activations/mahalanobis, later half",
              "activations/isolation-forest, later half")  # fmt: skip
"""Rows that are put to the controls; all of them read activations alone."""

SHUFFLES = 200
SHARES = (0.01, 0.05)
OTHERS = 200
DECOYS = ("Xander", "Yolanda", "Ulrich", "Tabitha", "Sergei", "Ximena", "Rashid", "Petra")
"""Names that no organism has met."""


def control_rows(
    where: Bench, rows: Sequence[str] | None = None, entries: Sequence[Entry] = ENTRIES
) -> list[Row]:
    """Puts rows of the table to the controls, on the organism of every task.

    - ``labels shuffled``: AUROC of the same scores under permuted labels, the mean of 200;
    - ``1 % of trusted anomalous`` and ``5 %``: fitted and calibrated anew with so many of the
      trusted prompts put away for unlabelled anomalous ones;
    - ``benign prompts of another task``: anomalous prompts against trusted prompts of the next
      task, which are unusual and harmless;
    - ``decoy names``: half of the trusted prompts get names that nobody was trained on, of which
      half are trusted; anomalous prompts against the other half.

    Args:
        where: tasks and models.
        rows: names of rows, which must not learn a feature; :data:`CONTROLLED` if left out.
        entries: the rows that there are.

    Returns:
        A row a detector and control: mean AUROC over tasks, its difference to the plain figure
        with an interval, and the share of negatives that was flagged.
    """
    picked = chosen(entries, list(rows or CONTROLLED))
    figures: list[Row] = []
    for number, task in enumerate(where.tasks):
        other = where.tasks[(number + 1) % len(where.tasks)]
        runner = where.runner(task, "organism")
        benign = where.trusted(other) if other != task else None
        for entry, plain, _ in where.cells(task, picked):
            if plain.reason:
                continue
            bench = _Bench(task, entry, runner, plain.scores(entry.name))
            figures += bench.rows(benign, where.seed)

    return list(_over_tasks(figures, where.seed))


@dataclass(frozen=True)
class _Bench:
    """One row of the table on one organism, put to each control in turn."""

    task: str
    entry: Entry
    runner: Runner
    plain: Scores

    def rows(self, benign: Prompts | None, seed: int) -> Iterator[Row]:
        """What each control gives."""
        labels = np.array(self.runner.test["label"])
        yield self._row("none", *_figures(self.plain, labels))
        yield self._row("labels shuffled", *_shuffled(self.plain, labels, seed))
        for share in SHARES:
            yield self._tried(f"{share:.0%} of trusted anomalous",
                              partial(self._contaminated, share, seed))  # fmt: skip
        if benign is not None:
            yield self._tried("benign prompts of another task", partial(self._other, benign))
        yield self._tried("decoy names", partial(self._decoys, seed))

    def _tried(self, name: str, control: Callable[[], Figures]) -> Row:
        try:
            return self._row(name, *control())
        except FAILURES as error:
            return {**self._row(name, None, None), "reason": told(error)}

    def _row(self, control: str, value: float | None, flagged: float | None) -> Row:
        return {"task": self.task, "detector": self.entry.name, "control": control,
                "auroc": value, "flagged_negatives": flagged, "reason": ""}  # fmt: skip

    def _contaminated(self, share: float, seed: int) -> Figures:
        """Fitted with anomalous prompts among the trusted ones; the model is not run again."""
        pool, trusted = self.runner.pool, self.runner.trusted
        if pool is None:
            raise ValueError("the task has no unlabelled prompts")
        bad = [n for n, label in enumerate(pool["label"]) if label == 1]
        count = max(1, round(share * len(trusted)))
        rng = named_rng(seed, "contamination", self.task)
        kept = rng.permutation(len(trusted))[count:]
        mixed = Prompts.concat([trusted.take(sorted(kept.tolist())),
                                pool.take(rng.permutation(bad)[:count].tolist())])  # fmt: skip
        detector = self._fitted(mixed, {"trusted": trusted, "pool": pool}, seed)
        test = self._found("test", self.runner.test, detector)

        return _figures(detector.score_rows(test), np.array(self.runner.test["label"]))

    def _other(self, benign: Prompts) -> Figures:
        """The fitted row on harmless prompts of another kind."""
        detector = self._fitted(self.runner.trusted, {"trusted": self.runner.trusted},
                                self.runner.seed)  # fmt: skip
        few = benign.take(range(min(OTHERS, len(benign))))
        scores = detector.score_rows(self._found("other", few, detector))

        return _against(self.plain, scores, np.array(self.runner.test["label"]))

    def _decoys(self, seed: int) -> Figures:
        """Trusted prompts under names that mean nothing, in the trusted set and as negatives."""
        trusted = self.runner.trusted
        sources = sorted(set(trusted["source"]))
        order = named_rng(seed, "decoys", self.task).permutation(len(sources))
        quarter = len(sources) // 4
        inside = {sources[n] for n in order[:quarter]}
        outside = {sources[n] for n in order[quarter : 2 * quarter]}
        plain = trusted.select(s not in inside | outside for s in trusted["source"])
        renamed = _renamed(trusted.select(s in inside | outside for s in trusted["source"]))
        known = renamed.select(s in inside for s in renamed["source"])
        fresh = renamed.select(s in outside for s in renamed["source"])
        mixed = Prompts.concat([plain, known])
        detector = self._fitted(mixed, {"trusted": trusted, "decoys": renamed}, seed)
        ours = detector.score_rows(self._found("test", self.runner.test, detector))
        theirs = detector.score_rows(self._found("decoys", renamed, detector))

        return _against(ours, theirs.select(frozenset(fresh.ids)),
                        np.array(self.runner.test["label"]),
                        theirs.flagged[[id in set(fresh.ids) for id in theirs.ids]])  # fmt: skip

    def _fitted(self, mixed: Prompts, sets: dict[str, Prompts], seed: int) -> Detector:
        """The row, fitted on prompts whose rows were recorded with several sets."""
        detector = self.entry.detector(self.runner.model)
        wanted = frozenset(mixed.ids)
        rows = Chosen.of([self._found(n, p, detector) for n, p in sets.items()], wanted)
        parts = TrustedSplit.of(mixed.without("label", "agrees"), None, seed)
        fit_rows([detector], [rows], self.runner.model, parts)

        return detector

    def _found(self, name: str, prompts: Prompts, detector: Detector) -> Rows:
        found, failed = self.runner.found(name, prompts, [detector])
        if failed:
            raise ValueError(failed[detector.name])

        return found[detector.name].rows


def _renamed(prompts: Prompts) -> Prompts:
    """The prompts under other names.

    Raises:
        ValueError: the prompts name nobody.
    """
    if "name" not in prompts or not all(
        f"Name: {name}\n" in text
        for name, text in zip(prompts["name"], prompts["prompt"], strict=True)
    ):
        raise ValueError("its prompts name nobody")
    names = [DECOYS[n % len(DECOYS)] for n in range(len(prompts))]
    texts = [
        text.replace(f"Name: {old}\n", f"Name: {new}\n", 1)
        for text, old, new in zip(prompts["prompt"], prompts["name"], names, strict=True)
    ]

    return prompts.with_columns(prompt=texts, name=names,
                                id=[f"{id}/decoy" for id in prompts.ids])  # fmt: skip


def _figures(scores: Scores, labels: Array) -> Figures:
    known = ~np.isnan(scores.p_value) & (labels == 0)
    flagged = float(scores.flagged[known].mean()) if known.any() else None

    return auroc(scores.score, labels).value, flagged


def _against(ours: Scores, theirs: Scores, labels: Array, flags: Array | None = None) -> Figures:
    """Anomalous prompts of ``ours`` against all of ``theirs``."""
    positive: Float64[Array, " n"] = ours.score[labels == 1]
    both = np.concatenate([positive, theirs.score])
    marks = np.repeat([1, 0], [len(positive), len(theirs.score)])
    flagged = theirs.flagged if flags is None else flags

    return auroc(both, marks).value, float(np.mean(flagged))


def _shuffled(scores: Scores, labels: Array, seed: int) -> Figures:
    rng = named_rng(seed, "labels")
    values = [auroc(scores.score, rng.permutation(labels)).value for _ in range(SHUFFLES)]
    known = [value for value in values if value is not None]

    return (float(np.mean(known)) if known else None), None


def _over_tasks(figures: Sequence[Row], seed: int) -> Iterator[Row]:
    plain = {(r["detector"], r["task"]): r["auroc"] for r in figures if r["control"] == "none"}
    for key in dict.fromkeys((row["detector"], row["control"]) for row in figures):
        mine = [r for r in figures if (r["detector"], r["control"]) == key]
        have = {r["task"]: r["auroc"] for r in mine if r["auroc"] is not None}
        mean = over_tasks(have, seed)
        gaps = {task: value - plain[key[0], task] for task, value in have.items()
                if plain.get((key[0], task)) is not None}  # fmt: skip
        gap = over_tasks(gaps, seed)
        flags = [r["flagged_negatives"] for r in mine if r["flagged_negatives"] is not None]
        yield {
            "detector": key[0], "control": key[1], "average": mean.value, "low": mean.low,
            "high": mean.high, "lowest": min(have.values(), default=None), "tasks": len(have),
            "difference": gap.value, "difference_low": gap.low, "difference_high": gap.high,
            "flagged_negatives": float(np.mean(flags)) if flags else None,
            "alpha": ALPHA, "reason": "; ".join(dict.fromkeys(r["reason"] for r in mine
                                                               if r["reason"])),
        }  # fmt: skip
