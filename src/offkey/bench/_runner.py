"""Every row of the table on one model of one task."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from offkey.bench._ceiling import ceiling
from offkey.bench._cell import Cell
from offkey.bench._chosen import Chosen
from offkey.bench._entry import Entry
from offkey.bench._store import FAILURES, Found, Store, told
from offkey.data import Prompts
from offkey.detect import Detector, TrustedSplit, fit_rows
from offkey.models import Model
from offkey.storage import sha256_json

__all__ = ["Runner"]


@dataclass(frozen=True)
class Runner:
    """Fits and scores rows of the table on one model, and keeps what they said.

    Attributes:
        folder: where rows and cells lie; one for each task, model and cut of the prompts.
        model: the model that is watched.
        trusted: prompts handled in the normal way.
        test: prompts to score; a ceiling alone looks at their labels.
        pool: unlabelled prompts apart from the test.
        seed: of the split and of everything random.
        tell: is told which row is being worked on.
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
    def parts(self) -> TrustedSplit:
        """Which trusted prompt serves for what."""
        return TrustedSplit.of(self._blind(self.trusted), None, self.seed)

    def run(self, entries: Sequence[Entry]) -> dict[str, Cell]:
        """What each row says, by its name; one that fails says why, and the others go on."""
        kept = {e.name: self._home(e) for e in entries}
        cells = {name: Cell.load(home) for name, home in kept.items() if _is_whole(home)}
        todo = [entry for entry in entries if entry.name not in cells]
        made = list(self._made(todo))
        cells |= {e.name: Cell.failed(self.test.ids, why) for e, d, why in made if d is None}
        for name, cell in self._scored([(e, d) for e, d, _ in made if d is not None]):
            if not cell.reason:
                cell.save(kept[name])
            cells[name] = cell

        return {entry.name: cells[entry.name] for entry in entries}

    def found(
        self, name: str, prompts: Prompts, detectors: Sequence[Detector]
    ) -> tuple[dict[str, Found], dict[str, str]]:
        """Rows of a set of prompts for each detector, as :meth:`Store.rows` finds them."""
        return self.store.rows(name, self._blind(prompts), detectors)

    def _made(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Detector | None, str]]:
        """The detector of each row, or why there is none."""
        for entry in entries:
            try:
                detector = entry.detector(self.model)
                detector.feature.plan(self.model)
                self.parts.check_alpha([detector])
            except FAILURES as error:
                yield entry, None, told(error)
            else:
                yield entry, detector, ""

    def _scored(self, rows: Sequence[tuple[Entry, Detector]]) -> Iterator[tuple[str, Cell]]:
        """The cell of each row, one after another."""
        detectors = [detector for _, detector in rows]
        failed, prepared = self.store.prepare(detectors, self._blind(self.trusted), self.parts.fit)
        sets: dict[str, dict[str, Found]] = {}
        for name, prompts in self._sets().items():
            wanted = [d for e, d in rows if d.name not in failed and _reads(e, name)]
            sets[name], reasons = self.found(name, prompts, wanted)
            failed |= reasons
        for entry, detector in rows:
            self.tell(entry.name)
            if entry.name in failed:
                yield entry.name, Cell.failed(self.test.ids, failed[entry.name])
                continue
            rows_of = {name: found.get(entry.name) for name, found in sets.items()}
            before = prepared.get(entry.name, 0.0 if not detector.feature.learns else None)
            yield entry.name, self._cell(entry, detector, rows_of, before)

    def _cell(
        self,
        entry: Entry,
        detector: Detector,
        found: dict[str, Found | None],
        before: float | None,
    ) -> Cell:
        trusted, test, pool = found["trusted"], found["test"], found.get("pool")
        assert trusted is not None
        assert test is not None
        if entry.pool == "test":
            pool = test
        start = time.perf_counter()
        try:
            if entry.kind == "ceiling":
                scores = ceiling(detector, self.model, test.rows, self.test, seed=self.seed)
                took = time.perf_counter() - start
                return Cell.of(detector, self.model, scores, scores.select(frozenset()),
                               _sum(before, test.seconds, took))  # fmt: skip
            fit_rows([detector], [trusted.rows], self.model, self.parts,
                     pool=None if pool is None else [pool.rows])  # fmt: skip
            scores = detector.score_rows(test.rows)
            took = time.perf_counter() - start
            kept = Chosen.of([trusted.rows], self.parts.calibrate)
            calibration = detector.score_rows(kept)
        except FAILURES as error:
            return Cell.failed(self.test.ids, told(error))
        parts = [before, trusted.seconds, test.seconds, took]
        if pool is not None and pool is not test:
            parts.append(pool.seconds)

        return Cell.of(detector, self.model, scores, calibration, _sum(*parts))

    def _sets(self) -> dict[str, Prompts]:
        sets = {"trusted": self.trusted, "pool": self.pool, "test": self.test}

        return {name: prompts for name, prompts in sets.items() if prompts is not None}

    def _blind(self, prompts: Prompts) -> Prompts:
        return prompts.without("label", "agrees")

    def _home(self, entry: Entry) -> Path:
        plain = "".join(c if c.isalnum() else "-" for c in entry.name)
        data = [self._blind(p).digest for p in self._sets().values()]
        of = sha256_json([self.model.fingerprint, data, self.seed, entry.digest])

        return self.folder / "cells" / f"{plain}-{of[:12]}"


def _reads(entry: Entry, name: str) -> bool:
    """Whether a row needs a set of prompts."""
    return name != "pool" or entry.pool == "untrusted"


def _sum(*seconds: float | None) -> float | None:
    """All of them together; null where one is not known."""
    known = [part for part in seconds if part is not None]

    return sum(known) if len(known) == len(seconds) else None


def _is_whole(home: Path) -> bool:
    """Whether a cell lies there; its index is written last."""
    return (home / "artefact.json").exists()
