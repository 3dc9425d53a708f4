"""What features learned and recorded on one model, kept so that no row is computed twice."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from torch import Tensor

from offkey.data import Prompts
from offkey.detect import Detector, Session, row_name
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
    these folders is not run again, so that a row added later costs its own pass only. Where a
    group of features fails, each is tried alone.

    Args:
        folder: where everything is kept; one for each task, model, seed and limit on the prompts.
        model: the model that is read.
        quiet: show no progress.
    """

    def __init__(self, folder: Path, model: Model, *, quiet: bool = True) -> None:
        self.folder, self.model = folder, model
        self.session = Session(model, folder, quiet=quiet)

    def prepare(
        self, detectors: Sequence[Detector], trusted: Prompts, fit: frozenset[str]
    ) -> tuple[dict[str, str], dict[str, float]]:
        """Replaces features that learn by ones that have learned from trusted prompts.

        Returns:
            Why a feature could not be prepared, and how many seconds preparing took where that
            is known; both by name of the detector.
        """
        learners = [detector for detector in detectors if detector.feature.learns]
        homes = {
            d.name: self.folder / "learned" / _digest(self._names(d), trusted.digest)
            for d in learners
        }
        missing = {homes[d.name]: d for d in learners if not _is_complete(homes[d.name])}

        def learn(group: Sequence[Detector]) -> dict[str, None]:
            start = time.perf_counter()
            Session(self.model, quiet=self.session.quiet).learn(group, trusted, fit)
            took = time.perf_counter() - start
            for detector in group:
                state = {"state": detector.feature.state(), "seconds": took}
                save_state(homes[detector.name], state, kind=LEARNED)
            return {}

        failures: dict[str, str] = {}
        for group in self._groups(missing.values(), lambda f: f.learning_plan(self.model)):
            failures |= _together_or_alone(group, learn)[1]
        reasons = {homes[name]: reason for name, reason in failures.items()}
        failed = {d.name: reasons[homes[d.name]] for d in learners if homes[d.name] in reasons}
        seconds: dict[str, float] = {}
        for detector in (d for d in learners if d.name not in failed):
            kept = load_state(homes[detector.name], LEARNED)
            detector.feature = type(detector.feature).from_state(kept["state"])
            seconds[detector.name] = kept["seconds"]

        return failed, seconds

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
        stored = {d.name: self._stored(name, prompts, d) for d in detectors}
        rows = {key: kept for key, kept in stored.items() if kept is not None}
        missing = [d for d in detectors if d.name not in rows]
        failed: dict[str, str] = {}
        for group in self._groups(missing, lambda feature: feature.plan(self.model)):
            recorded, reasons = _together_or_alone(group, partial(self._record, name, prompts))
            rows |= recorded
            failed |= reasons

        return rows, failed

    def _record(
        self, name: str, prompts: Prompts, group: Sequence[Detector]
    ) -> dict[str, RecordedRows]:
        """Records a group in as few passes as its plans allow."""
        names = sorted({row for detector in group for row in self._names(detector)})
        place = f"{name}/{_digest(names, prompts.digest)}"
        folder = self.folder / "rows" / place
        is_fresh = not folder.exists()
        start = time.perf_counter()
        rows = self.session.record_features(group, prompts, place)
        took = _seconds_of(folder, time.perf_counter() - start if is_fresh else None)

        return {d.name: RecordedRows(r, took) for d, r in zip(group, rows, strict=True)}

    def _groups(
        self, detectors: Iterable[Detector], plan_of: Callable[[Feature], Plan]
    ) -> Iterator[list[Detector]]:
        """Groups of detectors of equal cost, so that a pass takes as long as each of its rows."""
        groups: dict[str, list[Detector]] = {}
        for detector in detectors:
            plan = plan_of(detector.feature)
            cost = (
                plan.extra_forwards + plan.extra_backwards,
                bool(plan.gradients),
                bool(plan.reads or plan.logits),
                str(plan.positions),
            )
            groups.setdefault(str(cost), []).append(detector)
        yield from (group for _, group in sorted(groups.items()))

    def _stored(self, name: str, prompts: Prompts, detector: Detector) -> RecordedRows | None:
        """Rows that were recorded completely; null where there are none."""
        wanted = set(self._names(detector))
        for index in sorted((self.folder / "rows" / name).glob("*/pass-*/shards.json")):
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


def reason_of(error: Exception) -> str:
    """The reason for a failure, in one line."""
    text = " ".join(str(error).split())

    return text if isinstance(error, OffkeyError) else f"{type(error).__name__}: {text}"


T = TypeVar("T")


def _together_or_alone(
    group: Sequence[Detector], work: Callable[[Sequence[Detector]], dict[str, T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Does some work for a group, or for each detector alone if that fails.

    Returns:
        Results, and why there is none; both by name of the detector.
    """
    try:
        return work(group), {}
    except FAILURES as error:
        if len(group) == 1:
            return {}, {group[0].name: reason_of(error)}
    done: dict[str, T] = {}
    failed: dict[str, str] = {}
    for detector in group:
        result, reason = _together_or_alone([detector], work)
        done |= result
        failed |= reason

    return done, failed


def _digest(names: Sequence[str], digest: str) -> str:
    return sha256_json([list(names), digest])[:16]


def _is_complete(home: Path) -> bool:
    """Whether an artefact was written completely; its index is written last."""
    return (home / "artefact.json").exists()


def _seconds_of(folder: Path, seconds: float | None) -> float | None:
    """How long a folder took to fill, as noted the first time; null if it was interrupted."""
    note = folder / SECONDS
    if not note.exists():
        write_json(note, {"seconds": seconds})
    noted: float | None = json.loads(note.read_text("utf-8"))["seconds"]

    return noted


@dataclass(frozen=True)
class SelectedRows(Rows):
    """Some of the recorded rows, of one set of prompts or of several."""

    sets: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, sets: Sequence[Rows], ids: frozenset[str]) -> Self:
        """The rows of these ids."""
        kept = tuple(id for rows in sets for id in rows.ids if id in ids)

        return cls(sets[0].store, kept, max(1, len(kept)), tuple(sets))

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
