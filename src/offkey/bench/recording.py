"""What features learned and recorded on one model, kept so that no row is computed twice."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor

from offkey.data import Prompts
from offkey.detect import Detector, harvest, prepare, row_name
from offkey.errors import OffkeyError
from offkey.features import Feature
from offkey.models import Model
from offkey.passes import SHARD_SIZE, Plan, Rows, ShardRows
from offkey.storage import ShardFolder, load_state, save_state, sha256_json, write_json

__all__ = ["FAILURES", "RecordedRows", "SelectedRows", "Store", "reason_of"]

FAILURES = (OffkeyError, RuntimeError, ValueError, ArithmeticError)
"""Errors that stop one row of the table but not the others."""

LEARNED = "prepared feature"
SECONDS = "seconds.json"


class RecordedRows(NamedTuple):
    """The rows of one detector.

    Attributes:
        rows: what was recorded.
        seconds: how long the pass that recorded them took; null where it was interrupted.
    """

    rows: Rows
    seconds: float | None


class Store:
    """Prepared features and recorded rows of one model on one task.

    Every set of prompts has a folder, with one folder in it for each pass: features that are
    recorded together share a pass where their plans agree. A feature whose rows are in any of
    these folders is not run again, so that a row added later costs its own pass only.

    Args:
        folder: where everything is kept; one for each task, model, seed and limit on the prompts.
        model: the model that is read.
        quiet: show no progress.
    """

    def __init__(self, folder: Path, model: Model, *, quiet: bool = True) -> None:
        self.folder, self.model, self.quiet = folder, model, quiet

    def prepare(
        self, detectors: Sequence[Detector], trusted: Prompts, fit: frozenset[str]
    ) -> tuple[dict[str, str], dict[str, float]]:
        """Replaces the feature of each detector by one that has learned from trusted prompts.

        Returns:
            Why a feature could not be prepared, and how many seconds preparing took where that
            is known; both by name of the detector.
        """
        failed: dict[str, str] = {}
        seconds: dict[str, float] = {}
        homes = {
            d.name: self.folder / "learned" / _short(self._names(d), trusted.digest)
            for d in detectors
            if d.feature.learns
        }
        mine = [d for d in detectors if d.name in homes]
        missing = {
            homes[d.name]: d for d in mine if not (homes[d.name] / "artefact.json").exists()
        }
        for group in self._groups(list(missing.values()), lambda f: f.learning_plan(self.model)):
            failed |= self._learn(group, trusted, fit, homes)
        reasons = {homes[name]: why for name, why in failed.items()}
        for detector in mine:
            if homes[detector.name] in reasons:
                failed[detector.name] = reasons[homes[detector.name]]
                continue
            kept = load_state(homes[detector.name], LEARNED)
            detector.feature = type(detector.feature).from_state(kept["state"])
            seconds[detector.name] = kept["seconds"]

        return failed, seconds

    def _learn(
        self,
        group: Sequence[Detector],
        trusted: Prompts,
        fit: frozenset[str],
        homes: Mapping[str, Path],
    ) -> dict[str, str]:
        """Prepares a group in one pass and keeps what was learned; each alone if that fails.

        Returns:
            Why a feature could not be prepared, by name of the detector.
        """
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
                prepare(group, self.model, trusted, fit, Path(spare), quiet=self.quiet)
        except FAILURES as error:
            if len(group) == 1:
                return {group[0].name: reason_of(error)}
            parts = [self._learn([detector], trusted, fit, homes) for detector in group]
            return {name: why for part in parts for name, why in part.items()}
        took = time.perf_counter() - start
        for detector in group:
            state = {"state": detector.feature.state(), "seconds": took}
            save_state(homes[detector.name], state, kind=LEARNED)

        return {}

    def rows(
        self, name: str, prompts: Prompts, detectors: Sequence[Detector]
    ) -> tuple[dict[str, RecordedRows], dict[str, str]]:
        """The rows of each detector for a set of prompts, recorded where they are missing.

        Args:
            name: name of the set of prompts.
            prompts: the prompts.
            detectors: detectors whose features are prepared.

        Returns:
            The rows, and why rows could not be recorded; both by name of the detector.
        """
        home = self.folder / "rows" / name
        stored = {d.name: self._stored(home, prompts, d) for d in detectors}
        rows = {name: kept for name, kept in stored.items() if kept is not None}
        missing = [d for d in detectors if d.name not in rows]
        failed: dict[str, str] = {}
        for group in self._groups(missing, lambda feature: feature.plan(self.model)):
            more, reasons = self._record(home, prompts, group)
            rows |= more
            failed |= reasons

        return rows, failed

    def _record(
        self, home: Path, prompts: Prompts, group: Sequence[Detector]
    ) -> tuple[dict[str, RecordedRows], dict[str, str]]:
        """Records a group in one pass; each detector alone if that fails."""
        names = sorted({name for detector in group for name in self._names(detector)})
        folder = home / _short(names, prompts.digest)
        is_fresh = not folder.exists()
        start = time.perf_counter()
        try:
            rows = harvest(self.model, prompts, group, folder, quiet=self.quiet)
        except FAILURES as error:
            if len(group) == 1:
                return {}, {group[0].name: reason_of(error)}
            parts = [self._record(home, prompts, [detector]) for detector in group]
            return (
                {name: kept for more, _ in parts for name, kept in more.items()},
                {name: why for _, reasons in parts for name, why in reasons.items()},
            )
        took = _seconds_of(folder, time.perf_counter() - start if is_fresh else None)

        return {d.name: RecordedRows(r, took) for d, r in zip(group, rows, strict=True)}, {}

    def _groups(
        self, detectors: Sequence[Detector], of: Callable[[Feature], Plan]
    ) -> Iterator[list[Detector]]:
        """Groups of detectors of equal cost, so that a pass takes as long as each of its rows."""
        groups: dict[str, list[Detector]] = {}
        for detector in detectors:
            plan = of(detector.feature)
            cost = (
                plan.extra_forwards + plan.extra_backwards,
                bool(plan.gradients),
                bool(plan.reads or plan.logits),
                str(plan.positions),
            )
            groups.setdefault(str(cost), []).append(detector)
        yield from (group for _, group in sorted(groups.items()))

    def _stored(self, home: Path, prompts: Prompts, detector: Detector) -> RecordedRows | None:
        """Rows that were recorded completely."""
        wanted = set(self._names(detector))
        for index in sorted(home.glob("*/pass-*/shards.json")):
            made: Mapping[str, Any] = json.loads(index.read_text("utf-8"))["fingerprint"]
            if (made["model"], made["prompts"]) != (self.model.fingerprint, prompts.digest):
                continue
            shards = ShardFolder(index.parent, made)
            if shards.missing(-(-len(prompts) // SHARD_SIZE)) or not wanted <= set(shards.read(0)):
                continue
            took = _seconds_of(index.parents[1], None)

            return RecordedRows(Rows(shards, tuple(prompts.ids), SHARD_SIZE), took)

        return None

    def _names(self, detector: Detector) -> list[str]:
        feature = detector.feature

        return [row_name(feature, str(site)) for site in feature.sites_on(self.model)]


def _short(names: Sequence[str], digest: str) -> str:
    return sha256_json([list(names), digest])[:16]


def _seconds_of(folder: Path, seconds: float | None) -> float | None:
    """How long a folder took to fill, as noted the first time; null if it was interrupted."""
    note = folder / SECONDS
    if not note.exists():
        write_json(note, {"seconds": seconds})
    noted: float | None = json.loads(note.read_text("utf-8"))["seconds"]

    return noted


def reason_of(error: Exception) -> str:
    """The reason for a failure, in one line."""
    text = " ".join(str(error).split())

    return text if isinstance(error, OffkeyError) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class SelectedRows(Rows):
    """Some of the recorded rows, of one set of prompts or of several."""

    sets: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, sets: Sequence[Rows], ids: frozenset[str]) -> Self:
        """The rows of these ids."""
        kept = tuple(id for rows in sets for id in rows.ids if id in ids)

        return cls(sets[0].folder, kept, max(1, len(kept)), tuple(sets))

    def shards(self) -> Iterator[ShardRows]:
        """The shards of each set, without the other rows."""
        wanted = set(self.ids)
        for recorded in self.sets:
            for shard in recorded.shards():
                rows = [n for n, id in enumerate(shard.ids) if id in wanted]
                if rows:
                    ids = tuple(shard.ids[n] for n in rows)
                    yield ShardRows(ids, _RowSubset(shard.values, rows))


class _RowSubset(Mapping[str, Tensor]):
    """Some rows of each of several tensors, taken on access."""

    def __init__(self, values: Mapping[str, Tensor], rows: list[int]) -> None:
        self._values, self._rows = values, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
