"""What features learned and recorded on one model, kept so that no row is made twice."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offkey.data import Prompts
from offkey.detect import Detector, harvest, prepare, row_name
from offkey.errors import OffkeyError
from offkey.models import Model
from offkey.passes import SHARD_SIZE, Rows
from offkey.storage import ShardFolder, sha256_json, write_json

__all__ = ["FAILURES", "Found", "Store", "told"]

FAILURES = (OffkeyError, RuntimeError, ValueError, ArithmeticError, NotImplementedError)
"""What may go wrong with one row of the table while the others go on."""

SECONDS = "seconds.json"


class Found:
    """Rows of one detector, and how long the pass took that recorded them."""

    def __init__(self, rows: Rows, seconds: float | None) -> None:
        self.rows, self.seconds = rows, seconds


class Store:
    """Prepared features and recorded rows of one model on one task.

    Every set of prompts has a folder, and in it every pass: features that were asked for together
    share one where their plans agree. A feature whose rows lie in any of them is not run again,
    so that a row that is added later costs its own pass alone.

    Args:
        folder: where it all lies; one for each task, model, seed and cut of the prompts.
        model: the model that is read.
        quiet: show no progress.
    """

    def __init__(self, folder: Path, model: Model, *, quiet: bool = True) -> None:
        self.folder, self.model, self.quiet = folder, model, quiet

    def prepare(
        self, detectors: Sequence[Detector], trusted: Prompts, fit: frozenset[str]
    ) -> tuple[dict[str, str], dict[str, float]]:
        """Gives each detector its feature as it is after it saw the trusted prompts.

        Returns:
            Why a detector's feature could not be prepared, by name of the detector; and the
            seconds that preparing took, where they are known.
        """
        failed: dict[str, str] = {}
        seconds: dict[str, float] = {}
        for detector in (d for d in detectors if d.feature.prepares):
            try:
                home = self.folder / "prepared" / _short(self._names(detector), trusted.digest)
                is_fresh, start = not home.exists(), time.perf_counter()
                prepare([detector], self.model, trusted, fit, home, quiet=self.quiet)
                took = _noted(home, time.perf_counter() - start if is_fresh else None)
                if took is not None:
                    seconds[detector.name] = took
            except FAILURES as error:
                failed[detector.name] = told(error)

        return failed, seconds

    def rows(
        self, name: str, prompts: Prompts, detectors: Sequence[Detector]
    ) -> tuple[dict[str, Found], dict[str, str]]:
        """The rows of each detector for a set of prompts, recorded where they are missing.

        Args:
            name: of the set of prompts.
            prompts: the prompts.
            detectors: whose features are wanted, prepared.

        Returns:
            What was found or recorded, and why not, by name of the detector.
        """
        home = self.folder / "rows" / name
        found: dict[str, Found] = {}
        failed: dict[str, str] = {}
        missing = []
        for detector in detectors:
            kept = self._kept(home, prompts, detector)
            if kept is None:
                missing.append(detector)
            else:
                found[detector.name] = kept
        for group in self._buckets(missing):
            more, reasons = self._recorded(home, prompts, group)
            found |= more
            failed |= reasons

        return found, failed

    def _recorded(
        self, home: Path, prompts: Prompts, group: Sequence[Detector]
    ) -> tuple[dict[str, Found], dict[str, str]]:
        """Records a group in one pass; where that fails, each one alone."""
        names = sorted({name for detector in group for name in self._names(detector)})
        folder = home / _short(names, prompts.digest)
        is_fresh = not folder.exists()
        start = time.perf_counter()
        try:
            rows = harvest(self.model, prompts, group, folder, quiet=self.quiet)
        except FAILURES as error:
            if len(group) == 1:
                return {}, {group[0].name: told(error)}
            parts = [self._recorded(home, prompts, [detector]) for detector in group]
            return (
                {name: kept for more, _ in parts for name, kept in more.items()},
                {name: why for _, reasons in parts for name, why in reasons.items()},
            )
        took = _noted(folder, time.perf_counter() - start if is_fresh else None)

        return {d.name: Found(r, took) for d, r in zip(group, rows, strict=True)}, {}

    def _buckets(self, detectors: Sequence[Detector]) -> Iterator[list[Detector]]:
        """Detectors of equal cost together, so that a pass takes what its rows cost alone."""
        buckets: dict[str, list[Detector]] = {}
        for detector in detectors:
            plan = detector.feature.plan(self.model)
            cost = (plan.extra_forwards + plan.extra_backwards, bool(plan.gradients),
                    bool(plan.reads or plan.logits), str(plan.positions))  # fmt: skip
            buckets.setdefault(str(cost), []).append(detector)
        yield from (bucket for _, bucket in sorted(buckets.items()))

    def _kept(self, home: Path, prompts: Prompts, detector: Detector) -> Found | None:
        """Rows that lie there whole."""
        wanted = set(self._names(detector))
        for index in sorted(home.glob("*/pass-*/shards.json")):
            made: Mapping[str, Any] = json.loads(index.read_text("utf-8"))["fingerprint"]
            if (made["model"], made["prompts"]) != (self.model.fingerprint, prompts.digest):
                continue
            shards = ShardFolder(index.parent, made)
            if shards.missing(-(-len(prompts) // SHARD_SIZE)) or not wanted <= set(shards.read(0)):
                continue
            took = _noted(index.parents[1], None)

            return Found(Rows(shards, tuple(prompts.ids), SHARD_SIZE), took)

        return None

    def _names(self, detector: Detector) -> list[str]:
        feature = detector.feature

        return [row_name(feature, str(site)) for site in feature.sites_on(self.model)]


def _short(names: Sequence[str], digest: str) -> str:
    return sha256_json([list(names), digest])[:16]


def _noted(folder: Path, seconds: float | None) -> float | None:
    """How long a folder took to fill, noted the first time; null where it was interrupted."""
    note = folder / SECONDS
    if not note.exists():
        write_json(note, {"seconds": seconds})
    found: float | None = json.loads(note.read_text("utf-8"))["seconds"]

    return found


def told(error: Exception) -> str:
    """The reason of a failure, in one line."""
    text = " ".join(str(error).split())

    return text if isinstance(error, OffkeyError) else f"{type(error).__name__}: {text}"
