"""What features learned and recorded on one model, kept so that no row is made twice."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offkey.data import Prompts
from offkey.detect import Detector, Session, row_name
from offkey.errors import OffkeyError
from offkey.features import Feature
from offkey.models import Model
from offkey.passes import SHARD_SIZE, Plan, Rows
from offkey.storage import ShardFolder, load_state, save_state, sha256_json, write_json

__all__ = ["FAILURES", "Found", "Store", "told"]

FAILURES = (OffkeyError, RuntimeError, ValueError, ArithmeticError)
"""What may go wrong with one row of the table while the others go on."""

KIND = "prepared feature"
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
        homes = {
            d.name: self.folder / "learned" / _short(self._names(d), trusted.digest)
            for d in detectors
            if d.feature.learns
        }
        mine = [d for d in detectors if d.name in homes]
        missing = {
            homes[d.name]: d for d in mine if not (homes[d.name] / "artefact.json").exists()
        }
        for group in self._buckets(list(missing.values()), lambda f: f.learning_plan(self.model)):
            failed |= self._learned(group, trusted, fit, homes)
        reasons = {homes[name]: why for name, why in failed.items()}
        for detector in mine:
            if homes[detector.name] in reasons:
                failed[detector.name] = reasons[homes[detector.name]]
                continue
            kept = load_state(homes[detector.name], KIND)
            detector.feature = type(detector.feature).from_state(kept["state"])
            seconds[detector.name] = kept["seconds"]

        return failed, seconds

    def _learned(
        self,
        group: Sequence[Detector],
        trusted: Prompts,
        fit: frozenset[str],
        homes: Mapping[str, Path],
    ) -> dict[str, str]:
        """Prepares a group in one pass and keeps what each learned; where that fails, each alone.

        Returns:
            Why one could not be prepared, by name of the detector.
        """
        start = time.perf_counter()
        try:
            Session(self.model, quiet=self.quiet).learn(group, trusted, fit)
        except FAILURES as error:
            if len(group) == 1:
                return {group[0].name: told(error)}
            parts = [self._learned([detector], trusted, fit, homes) for detector in group]
            return {name: why for part in parts for name, why in part.items()}
        took = time.perf_counter() - start
        for detector in group:
            state = {"state": detector.feature.state(), "seconds": took}
            save_state(homes[detector.name], state, kind=KIND)

        return {}

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
        for group in self._buckets(missing, lambda feature: feature.plan(self.model)):
            more, reasons = self._recorded(home, prompts, group)
            found |= more
            failed |= reasons

        return found, failed

    def _recorded(
        self, home: Path, prompts: Prompts, group: Sequence[Detector]
    ) -> tuple[dict[str, Found], dict[str, str]]:
        """Records a group in one pass; where that fails, each one alone."""
        names = sorted({name for detector in group for name in self._names(detector)})
        name = f"{home.name}/{_short(names, prompts.digest)}"
        folder = self.folder / "rows" / name
        is_fresh = not folder.exists()
        start = time.perf_counter()
        try:
            session = Session(self.model, self.folder, quiet=self.quiet)
            rows = session.record_features(group, prompts, name)
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

    def _buckets(
        self, detectors: Sequence[Detector], of: Callable[[Feature], Plan]
    ) -> Iterator[list[Detector]]:
        """Detectors of equal cost together, so that a pass takes what its rows cost alone."""
        buckets: dict[str, list[Detector]] = {}
        for detector in detectors:
            plan = of(detector.feature)
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
