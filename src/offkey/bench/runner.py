"""Rows of the table on one model of one task: fitted, scored and kept."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from jaxtyping import Float64

from offkey.bench.lineup import ALPHA, Entry
from offkey.bench.recording import FAILURES, RecordedRows, SelectedRows, Store, reason_of
from offkey.bench.supervised import ceiling
from offkey.data import Prompts
from offkey.detect import Detector, Mode, Scores, TrustedSplit, fit_rows
from offkey.models import Model
from offkey.passes import Plan
from offkey.storage import flatten, load_state, save_state, sha256_json

__all__ = ["RowResult", "Runner"]

Array = np.ndarray
RESULT = "bench cell"


@dataclass(frozen=True)
class RowResult:
    """The scores of one row for the test prompts, on one model.

    Attributes:
        ids: ids of the test prompts.
        score: one a prompt; higher is more anomalous.
        p_value: conformal, one a prompt; NaN in transductive mode.
        mode: how the row stands to the test prompts.
        sites: names of the sites that were combined.
        by_site: standardised score of each site.
        calibration: standardised scores of the calibration prompts, by site.
        forwards: forward passes a prompt at scoring time.
        backwards: backward passes a prompt at scoring time.
        seconds: time to read trusted and test prompts, fit and score; a pass that several
            features share counts in full; null where a part was interrupted.
        memory_mib: size of the fitted detector, in MiB.
        reason: why there are no scores.
    """

    ids: tuple[str, ...]
    score: Float64[Array, " n"]
    p_value: Float64[Array, " n"]
    mode: Mode = "online"
    sites: tuple[str, ...] = ()
    by_site: Float64[Array, "n sites"] = field(default_factory=lambda: np.empty((0, 0)))
    calibration: Float64[Array, "m sites"] = field(default_factory=lambda: np.empty((0, 0)))
    forwards: int = 0
    backwards: int = 0
    seconds: float | None = None
    memory_mib: float | None = None
    reason: str = ""

    @classmethod
    def failed(cls, ids: Sequence[str], reason: str) -> Self:
        """A result without scores, with the reason."""
        none = np.full(len(ids), np.nan)

        return cls(tuple(ids), none, none, reason=reason)

    @classmethod
    def of(
        cls,
        detector: Detector,
        model: Model,
        scores: Scores,
        calibration: Scores,
        seconds: float | None,
    ) -> Self:
        """The result of a fitted detector."""
        forwards, backwards = costs(detector.feature.plan(model))

        return cls(
            scores.ids,
            scores.score,
            scores.p_value,
            scores.mode,
            scores.sites,
            scores.by_site,
            calibration.by_site,
            forwards,
            backwards,
            seconds,
            _size(detector),
        )

    @property
    def flagged(self) -> Array:
        """Whether the p-value is at most the false-alarm rate."""
        return np.asarray(self.p_value <= ALPHA)

    def scores(self, name: str) -> Scores:
        """The scores as the detector gave them."""
        by_site = self.by_site.reshape(len(self.ids), len(self.sites))
        reasons = dict.fromkeys(self.ids, self.reason) if self.reason else {}

        return Scores(
            name,
            self.mode,
            ALPHA,
            self.ids,
            self.score,
            self.p_value,
            self.sites,
            by_site,
            reasons,
        )

    def save(self, folder: Path) -> None:
        """Writes the result into a folder."""
        save_state(folder, asdict(self), kind=RESULT)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            Damaged: a file was truncated or edited.
        """
        state: dict[str, Any] = load_state(folder, RESULT)
        assert state["mode"] in get_args(Mode)

        return cls(**{**state, "ids": tuple(state["ids"]), "sites": tuple(state["sites"])})


@dataclass(frozen=True)
class Runner:
    """Fits and scores rows of the table on one model, and keeps the results.

    Attributes:
        folder: where rows and results are kept; one for each task, model and limit on prompts.
        model: the model under test.
        trusted: prompts handled in the normal way.
        test: prompts to score; only a ceiling uses their labels.
        pool: unlabelled prompts apart from the test.
        seed: of the split and of everything random.
        tell: called with the name of each row that is fitted.
    """

    folder: Path
    model: Model
    trusted: Prompts
    test: Prompts
    pool: Prompts | None = None
    seed: int = 0
    tell: Callable[[str], None] = field(default=lambda _: None)

    @cached_property
    def store(self) -> Store:
        """What was recorded on this model."""
        return Store(self.folder, self.model)

    @cached_property
    def split(self) -> TrustedSplit:
        """What each trusted prompt serves for."""
        return TrustedSplit.of(_unlabelled(self.trusted), None, self.seed)

    def run(self, entries: Sequence[Entry]) -> dict[str, RowResult]:
        """The result of each row, by its name; a row that fails does not stop the others."""
        homes = {entry.name: self._home(entry) for entry in entries}
        results = {name: RowResult.load(home) for name, home in homes.items() if _exists(home)}
        detectors: list[tuple[Entry, Detector]] = []
        for entry in (entry for entry in entries if entry.name not in results):
            try:
                detectors.append((entry, self._detector(entry)))
            except FAILURES as error:
                results[entry.name] = self._failed(reason_of(error))
        for name, result in self._results(detectors):
            if not result.reason:
                result.save(homes[name])
            results[name] = result

        return {entry.name: results[entry.name] for entry in entries}

    def rows(
        self, name: str, prompts: Prompts, detectors: Sequence[Detector]
    ) -> tuple[dict[str, RecordedRows], dict[str, str]]:
        """Rows of a set of prompts for each detector, see :meth:`Store.rows`."""
        return self.store.rows(name, _unlabelled(prompts), detectors)

    def _detector(self, entry: Entry) -> Detector:
        """The detector of a row, checked but not fitted.

        Raises:
            OffkeyError: a setting is wrong, or there are too few prompts.
        """
        detector = entry.detector(self.model)
        detector.feature.plan(self.model)
        self.split.check_alpha([detector])

        return detector

    def _results(self, pairs: Sequence[tuple[Entry, Detector]]) -> Iterator[tuple[str, RowResult]]:
        """The result of each row, one after another."""
        detectors = [detector for _, detector in pairs]
        failed, prepared = self.store.prepare(detectors, _unlabelled(self.trusted), self.split.fit)
        sets: dict[str, dict[str, RecordedRows]] = {}
        for name, prompts in self._sets().items():
            readers = [d for e, d in pairs if d.name not in failed and _reads(e, name)]
            sets[name], reasons = self.rows(name, prompts, readers)
            failed |= reasons
        for entry, detector in pairs:
            self.tell(entry.name)
            if entry.name in failed:
                yield entry.name, self._failed(failed[entry.name])
                continue
            rows = {name: by_name.get(entry.name) for name, by_name in sets.items()}
            learning = prepared.get(entry.name, 0.0 if not detector.feature.learns else None)
            try:
                yield entry.name, self._result(entry, detector, rows, learning)
            except FAILURES as error:
                yield entry.name, self._failed(reason_of(error))

    def _result(
        self,
        entry: Entry,
        detector: Detector,
        rows: Mapping[str, RecordedRows | None],
        learning: float | None,
    ) -> RowResult:
        """Fits and scores one row.

        Args:
            entry: the row.
            detector: its detector, with a prepared feature.
            rows: recorded rows, by set of prompts.
            learning: seconds that preparing the feature took.
        """
        trusted, test = rows["trusted"], rows["test"]
        assert trusted is not None
        assert test is not None
        pool = test if entry.pool == "test" else rows.get("pool")
        start = time.perf_counter()
        if entry.kind == "ceiling":
            scores = ceiling(detector, self.model, test.rows, self.test, seed=self.seed)
            seconds = _total(learning, test.seconds, time.perf_counter() - start)
            return RowResult.of(detector, self.model, scores, scores.select(frozenset()), seconds)
        fit_rows(
            [detector],
            [trusted.rows],
            self.model,
            self.split,
            pool=None if pool is None else [pool.rows],
        )
        scores = detector.score_rows(test.rows)
        took = time.perf_counter() - start
        calibrate = SelectedRows.of([trusted.rows], self.split.calibrate)
        calibration = detector.score_rows(calibrate)
        apart = [] if pool is None or pool is test else [pool.seconds]
        seconds = _total(learning, trusted.seconds, test.seconds, took, *apart)

        return RowResult.of(detector, self.model, scores, calibration, seconds)

    def _failed(self, reason: str) -> RowResult:
        return RowResult.failed(self.test.ids, reason)

    def _sets(self) -> dict[str, Prompts]:
        sets = {"trusted": self.trusted, "pool": self.pool, "test": self.test}

        return {name: prompts for name, prompts in sets.items() if prompts is not None}

    def _home(self, entry: Entry) -> Path:
        """Folder of a row's result, which depends on everything that the result depends on."""
        plain = "".join(c if c.isalnum() else "-" for c in entry.name)
        data = [_unlabelled(prompts).digest for prompts in self._sets().values()]
        digest = sha256_json([self.model.fingerprint, data, self.seed, entry.digest])

        return self.folder / "cells" / f"{plain}-{digest[:12]}"


def _unlabelled(prompts: Prompts) -> Prompts:
    return prompts.without("label", "agrees")


def _reads(entry: Entry, name: str) -> bool:
    """Whether a row needs a set of prompts."""
    return name != "pool" or entry.pool == "untrusted"


def _total(*seconds: float | None) -> float | None:
    """The sum; null where a part is not known."""
    known = [part for part in seconds if part is not None]

    return sum(known) if len(known) == len(seconds) else None


def _exists(home: Path) -> bool:
    """Whether a result was written completely; its index is written last."""
    return (home / "artefact.json").exists()


def _size(detector: Detector) -> float | None:
    """MiB that the fitted scores of a detector take; null where it is not fitted."""
    if detector.fitted_ is None:
        return None
    states = [score.state() for score in detector.fitted.scores.values()]
    tensors = [tensor for state in states for tensor in flatten(state)[1].values()]

    return sum(tensor.nbytes for tensor in tensors) / 2**20


def costs(plan: Plan) -> tuple[int, int]:
    """Forward and backward passes a prompt at scoring time."""
    reads = bool(plan.reads or plan.gradients or plan.logits or plan.metric)

    return plan.extra_forwards + reads, plan.extra_backwards + bool(plan.gradients)
