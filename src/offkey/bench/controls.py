"""What detectors do when their trusted prompts or the negatives are not what they should be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64

from offkey.bench.averages import average, over_tasks
from offkey.bench.lineup import ALPHA, DEFAULT, ENTRIES, Entry, choose_entries
from offkey.bench.protocol import Bench
from offkey.bench.recording import FAILURES, SelectedRows, reason_of
from offkey.bench.rows import BenchRow
from offkey.bench.runner import Runner
from offkey.data import Prompts
from offkey.detect import Detector, Scores, TrustedSplit, fit_rows
from offkey.passes import Rows
from offkey.stats import auroc, named_rng

__all__ = ["CONTROLLED", "ControlRow", "control_rows"]

Array = np.ndarray

CONTROLLED = (
    DEFAULT,
    "activations LOF",
    "activations/mahalanobis, later half",
    "activations/isolation-forest, later half",
)
"""Rows that are run under the controls; all of them read nothing but activations."""

SHUFFLES = 200
SHARES = (0.01, 0.05)
OTHERS = 200
DECOYS = ("Xander", "Yolanda", "Ulrich", "Tabitha", "Sergei", "Ximena", "Rashid", "Petra")
"""Names that no organism was trained on."""


@dataclass(frozen=True)
class ControlRow(BenchRow):
    """One row of the table under one control.

    Attributes:
        detector: name of the row.
        control: what was changed.
        average: mean AUROC over tasks.
        low: lower end of its interval.
        high: upper end of its interval.
        lowest: lowest AUROC on any task.
        tasks: number of organisms.
        difference: mean AUROC less that without the control, paired by task.
        difference_low: lower end of its interval.
        difference_high: upper end of its interval.
        flagged_negatives: mean share of the negatives that was flagged.
        alpha: false-alarm rate at which prompts are flagged.
        reason: why there are no figures.
    """

    detector: str
    control: str
    average: float | None
    low: float | None
    high: float | None
    lowest: float | None
    tasks: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    flagged_negatives: float | None
    alpha: float
    reason: str


def control_rows(
    place: Bench, rows: Sequence[str] | None = None, entries: Sequence[Entry] = ENTRIES
) -> list[ControlRow]:
    """Runs rows of the table under each control, on the organism of every task.

    - ``labels shuffled``: AUROC of the same scores under permuted labels, the mean of 200;
    - ``1 % of trusted anomalous`` and ``5 %``: fitted and calibrated again with this share of the
      trusted prompts replaced by unlabelled anomalous ones;
    - ``benign prompts of another task``: anomalous prompts against trusted prompts of the next
      task, which are unusual and harmless;
    - ``decoy names``: half of the trusted prompts get names that no organism was trained on, and
      half of these stay trusted; anomalous prompts against the other half.

    Args:
        place: tasks and models.
        rows: names of rows whose features do not learn; :data:`CONTROLLED` if left out.
        entries: the rows to choose from.

    Returns:
        A row for each detector and control.
    """
    chosen = choose_entries(entries, list(rows or CONTROLLED))
    trials: list[_Trial] = []
    for number, task in enumerate(place.tasks):
        other = place.tasks[(number + 1) % len(place.tasks)]
        runner = place.runner(task, "organism")
        benign = place.trusted(other) if other != task else None
        for entry, plain, _ in place.results(task, chosen):
            if not plain.reason:
                control = _Controls(task, entry, runner, plain.scores(entry.name), place.seed)
                trials += control.trials(benign)

    return list(_over_tasks(trials, place.seed))


@dataclass(frozen=True)
class _Trial:
    """One row of the table under one control on one task."""

    task: str
    detector: str
    control: str
    auroc: float | None = None
    flagged_negatives: float | None = None
    reason: str = ""


Figures = tuple[float | None, float | None]
"""AUROC, and the share of the negatives that was flagged."""


@dataclass(frozen=True)
class _Controls:
    """The controls of one row of the table on one organism."""

    task: str
    entry: Entry
    runner: Runner
    plain: Scores
    seed: int

    @property
    def labels(self) -> Array:
        """Labels of the test prompts."""
        return np.array(self.runner.test["label"])

    def trials(self, benign: Prompts | None) -> Iterator[_Trial]:
        """The result of each control."""
        yield self._trial("none", partial(_figures, self.plain, self.labels))
        yield self._trial("labels shuffled", self._shuffled)
        for share in SHARES:
            contaminated = partial(self._contaminated, share)
            yield self._trial(f"{share:.0%} of trusted anomalous", contaminated)
        if benign is not None:
            yield self._trial("benign prompts of another task", partial(self._other, benign))
        yield self._trial("decoy names", self._decoys)

    def _trial(self, name: str, control: Callable[[], Figures]) -> _Trial:
        try:
            return _Trial(self.task, self.entry.name, name, *control())
        except FAILURES as error:
            return _Trial(self.task, self.entry.name, name, reason=reason_of(error))

    def _shuffled(self) -> Figures:
        """The same scores under permuted labels."""
        rng = named_rng(self.seed, "labels")
        values = [auroc(self.plain.score, rng.permutation(self.labels)) for _ in range(SHUFFLES)]

        return average(interval.value for interval in values), None

    def _contaminated(self, share: float) -> Figures:
        """Fitted with anomalous prompts among the trusted ones; the model is not run again."""
        pool, trusted = self.runner.pool, self.runner.trusted
        if pool is None:
            raise ValueError("the task has no unlabelled prompts")
        anomalous = [n for n, label in enumerate(pool["label"]) if label == 1]
        count = max(1, round(share * len(trusted)))
        rng = named_rng(self.seed, "contamination", self.task)
        kept = sorted(rng.permutation(len(trusted))[count:].tolist())
        added = rng.permutation(anomalous)[:count].tolist()
        mixed = Prompts.concat([trusted.take(kept), pool.take(added)])
        detector = self._fit(mixed, {"trusted": trusted, "pool": pool}, self.seed)
        test = self._rows("test", self.runner.test, detector)

        return _figures(detector.score_rows(test), self.labels)

    def _other(self, benign: Prompts) -> Figures:
        """The fitted row on harmless prompts of another kind."""
        trusted = self.runner.trusted
        detector = self._fit(trusted, {"trusted": trusted}, self.runner.seed)
        few = benign.take(range(min(OTHERS, len(benign))))
        scores = detector.score_rows(self._rows("other", few, detector))

        return _against(self.plain, scores.score, self.labels, scores.flagged)

    def _decoys(self) -> Figures:
        """Trusted prompts under unknown names, in the trusted set and as negatives."""
        trusted = self.runner.trusted
        sources = sorted(set(trusted["source"]))
        order = named_rng(self.seed, "decoys", self.task).permutation(len(sources))
        quarter = len(sources) // 4
        inside = {sources[n] for n in order[:quarter]}
        outside = {sources[n] for n in order[quarter : 2 * quarter]}
        chosen = [source in inside | outside for source in trusted["source"]]
        plain = trusted.select(not is_chosen for is_chosen in chosen)
        renamed = rename(trusted.select(chosen))
        known = renamed.select(source in inside for source in renamed["source"])
        fresh = set(renamed.select(source in outside for source in renamed["source"]).ids)
        mixed = Prompts.concat([plain, known])
        detector = self._fit(mixed, {"trusted": trusted, "decoys": renamed}, self.seed)
        ours = detector.score_rows(self._rows("test", self.runner.test, detector))
        theirs = detector.score_rows(self._rows("decoys", renamed, detector))
        is_fresh = np.array([id in fresh for id in theirs.ids])

        return _against(ours, theirs.score[is_fresh], self.labels, theirs.flagged[is_fresh])

    def _fit(self, mixed: Prompts, sets: Mapping[str, Prompts], seed: int) -> Detector:
        """The row, fitted on prompts whose rows were recorded with several sets."""
        detector = self.entry.detector(self.runner.model)
        recorded = [self._rows(name, prompts, detector) for name, prompts in sets.items()]
        rows = SelectedRows.of(recorded, frozenset(mixed.ids))
        split = TrustedSplit.of(mixed.without("label", "agrees"), None, seed)
        fit_rows([detector], [rows], self.runner.model, split)

        return detector

    def _rows(self, name: str, prompts: Prompts, detector: Detector) -> Rows:
        recorded, failed = self.runner.rows(name, prompts, [detector])
        if failed:
            raise ValueError(failed[detector.name])

        return recorded[detector.name].rows


def rename(prompts: Prompts) -> Prompts:
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
    ids = [f"{id}/decoy" for id in prompts.ids]

    return prompts.with_columns(prompt=texts, name=names, id=ids)


def _figures(scores: Scores, labels: Array) -> Figures:
    known = ~np.isnan(scores.p_value) & (labels == 0)
    flagged = float(scores.flagged[known].mean()) if known.any() else None

    return auroc(scores.score, labels).value, flagged


def _against(
    ours: Scores, negatives: Float64[Array, " n"], labels: Array, flagged: Array
) -> Figures:
    """The anomalous prompts of ``ours`` against other negatives."""
    positives: Float64[Array, " m"] = ours.score[labels == 1]
    marks = np.repeat([1, 0], [len(positives), len(negatives)])
    value = auroc(np.concatenate([positives, negatives]), marks).value

    return value, float(np.mean(flagged))


def _over_tasks(trials: Sequence[_Trial], seed: int) -> Iterator[ControlRow]:
    """Means over tasks, for each detector and control."""
    plain = {(t.detector, t.task): t.auroc for t in trials if t.control == "none"}
    groups: dict[tuple[str, str], list[_Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.detector, trial.control), []).append(trial)
    for (detector, control), mine in groups.items():
        values = {trial.task: trial.auroc for trial in mine if trial.auroc is not None}
        changes = {
            task: value - base
            for task, value in values.items()
            if (base := plain.get((detector, task))) is not None
        }
        mean, change = over_tasks(values, seed), over_tasks(changes, seed)
        yield ControlRow(
            detector=detector,
            control=control,
            average=mean.value,
            low=mean.low,
            high=mean.high,
            lowest=min(values.values(), default=None),
            tasks=len(values),
            difference=change.value,
            difference_low=change.low,
            difference_high=change.high,
            flagged_negatives=average(trial.flagged_negatives for trial in mine),
            alpha=ALPHA,
            reason="; ".join(dict.fromkeys(trial.reason for trial in mine if trial.reason)),
        )
