"""The engine behind every detector: it lets features learn, records rows, fits and scores."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.detect.fitting import TrustedSplit, fit_rows
from offkey.detect.scores import Scores
from offkey.detect.scoring import RowScorer, row_name
from offkey.errors import BadInput, Mismatch, check
from offkey.features import Feature, learn_together, own_reading
from offkey.models import Model, Reading
from offkey.passes import SHARD_SIZE, Plan, RowRecorder, Rows, ShardRows, World, progress, readings
from offkey.storage import first_difference, flatten, load_state, save_state

__all__ = ["Session", "feature_settings", "without_labels"]

AnyPrompts = Prompts | TensorPrompts
KIND = "preparation"


class Session:
    """Runs many detectors on one model: learns, records, fits and scores.

    Detectors that are given together share passes over the prompts wherever their plans agree;
    each of them is scored as it would be alone. Labels are removed before anything is read.

    Without a folder everything stays in memory. With one, what features learned is kept in
    ``prepared/`` and recorded rows in ``rows/NAME/``: the same call finds them there, also after
    a kill, and several workers share the shards. The rows are bitwise the same either way.

    Args:
        model: the model that is watched.
        folder: where what was learned and recorded is kept.
        world: which of several workers this is; read from the environment if left out.
        quiet: show no progress.
    """

    def __init__(
        self,
        model: Model,
        folder: Path | None = None,
        *,
        world: World | None = None,
        quiet: bool = True,
    ) -> None:
        self.model, self.folder, self.quiet = model, folder, quiet
        self.world = world

    def fit(
        self,
        detectors: Sequence[RowScorer],
        trusted: AnyPrompts,
        *,
        pool: AnyPrompts | None = None,
        calibration: AnyPrompts | None = None,
        seed: int = 0,
    ) -> TrustedSplit:
        """Fits detectors on trusted prompts; see :meth:`offkey.detect.Detector.fit`.

        Returns:
            What each trusted prompt served for.

        Raises:
            NotEnoughData: too few trusted prompts for a score or for an ``alpha``.
            Mismatch: a prompt of the pool is among the trusted ones.
        """
        split = TrustedSplit.of(trusted, calibration, seed)
        split.check_alpha(detectors)
        prompts = without_labels(trusted, calibration)
        if pool is not None and (shared := set(pool.ids) & set(prompts.ids)):
            raise Mismatch(
                f"{len(shared)} of its prompts are among the trusted ones too",
                where="pool",
                mend="Take them out",
            )
        self.learn(detectors, prompts, split.fit)
        passes = self._passes(detectors)
        rows, pooled = self._record(passes, prompts, "trusted", wait=True), None
        if pool is not None and any(d.score_template.needs_pool for d in detectors):
            pooled = self._record(passes, without_labels(pool), "pool", wait=True)
        fit_rows(detectors, rows, self.model, split, pool=pooled)

        return split

    def score(
        self,
        detectors: Sequence[RowScorer],
        prompts: AnyPrompts,
        *,
        name: str = "test",
        other_model: bool = False,
    ) -> list[Scores]:
        """Scores prompts by fitted detectors.

        Args:
            detectors: fitted.
            prompts: what to score.
            name: what the prompts are called in the folder.
            other_model: allow a model other than the one the detectors were fitted on.

        Raises:
            Mismatch: a detector was fitted on another model.
            BadInput: there are no prompts.
        """
        for detector in detectors:
            detector.check_model(self.model, other_model=other_model)
        check(len(prompts) > 0, "there are no prompts to score", where=name, error=BadInput)
        prompts = without_labels(prompts)
        if self.folder is not None:
            rows = self._record(self._passes(detectors), prompts, name, wait=True)
            return [d.score_rows(r) for d, r in zip(detectors, rows, strict=True)]
        # In memory the rows of one shard are held at a time, whatever the number of prompts.
        raw: list[list[Float64[np.ndarray, "n sites"]]] = [[] for _ in detectors]
        for shared in self._passes(detectors):
            recorder = self._recorder(shared)
            for part in recorder.parts(prompts):
                shard = recorder.shard(part)
                for number in shared.detectors:
                    raw[number].append(_raw(detectors[number], shard))

        return [
            detector.score_raw(prompts.ids, np.concatenate(parts))
            for detector, parts in zip(detectors, raw, strict=True)
        ]

    def score_reading(
        self, detectors: Sequence[RowScorer], reading: Reading, *, other_model: bool = False
    ) -> list[Scores]:
        """Scores the prompts of one reading, which was made by :meth:`plan`.

        Args:
            detectors: fitted.
            reading: what :meth:`offkey.models.Model.read` gave.
            other_model: allow a model other than the one the detectors were fitted on.

        Raises:
            Mismatch: a detector was fitted on another model, or they cannot share a pass.
        """
        for detector in detectors:
            detector.check_model(self.model, other_model=other_model)
        self.plan(detectors)
        scores: dict[int, Scores] = {}
        for shared in self._passes(detectors):
            rows = {name: x.cpu() for name, x in shared.rows(self.model, reading).items()}
            shard = ShardRows(reading.batch.ids, rows)
            for place in shared.detectors:
                detector = detectors[place]
                scores[place] = detector.score_raw(shard.ids, _raw(detector, shard))

        return [scores[place] for place in sorted(scores)]

    def plan(self, detectors: Sequence[RowScorer]) -> Plan:
        """What one reading must hold for all of the detectors.

        Raises:
            Mismatch: they read at different positions or ask for different metrics.
        """
        return Plan.union(detector.feature.plan(self.model) for detector in detectors)

    def learn(
        self, detectors: Sequence[RowScorer], trusted: AnyPrompts, ids: frozenset[str]
    ) -> None:
        """Lets features that learn from trusted prompts see those that scores are fitted on.

        All whose plans agree share one pass. With a folder, what they learned is kept there: a
        second call with the same arguments takes it from there, and one that was interrupted
        starts its pass anew with features that have seen nothing. The features handed in stay as
        they were; each detector is given its own that has learned.

        Args:
            detectors: whose features learn.
            trusted: the trusted prompts.
            ids: ids of those that scores are fitted on; the others stay unseen.

        Raises:
            BadInput: a prompt lacks a column that a feature needs.
            Mismatch: the folder holds what was learned with another configuration.
        """
        learners = {}
        for detector in detectors:
            if detector.feature.learns:
                learners[self._key(detector.feature)] = detector.feature
        if not learners:
            return
        prompts = trusted.take([n for n, id in enumerate(trusted.ids) if id in ids])
        for feature in learners.values():
            feature.check_trusted(prompts)
        features = list(learners.values())
        plans = [feature.learning_plan(self.model) for feature in features]
        ready: dict[str, Feature] = {}
        for number, group in enumerate(Plan.groups(plans)):
            for feature in self._learned([features[n] for n in group], prompts, number):
                ready[self._key(feature)] = feature
        for detector in detectors:
            if detector.feature.learns:
                detector.feature = ready[self._key(detector.feature)]

    def record_features(
        self, detectors: Sequence[RowScorer], prompts: AnyPrompts, name: str
    ) -> list[Rows]:
        """Records the rows of every detector's feature, in as few passes as their plans allow.

        Args:
            detectors: whose features are recorded; those that learn must have learned.
            prompts: what the model is given, without labels.
            name: what the prompts are called in the folder.

        Returns:
            The rows for each detector; those that share a pass share the object.

        Raises:
            Mismatch: the folder holds rows of another configuration under that name.
        """
        return self._record(self._passes(detectors), prompts, name)

    def _record(
        self,
        passes: Sequence["_SharedPass"],
        prompts: AnyPrompts,
        name: str,
        *,
        wait: bool | None = None,
    ) -> list[Rows]:
        recorded: dict[int, Rows] = {}
        for number, shared in enumerate(passes):
            recorder = self._recorder(shared)
            if self.folder is None:
                shards = []
                for part in recorder.parts(prompts):
                    shards.append(recorder.shard(part))
                rows = Rows.in_memory(shards, SHARD_SIZE)
            else:
                rows = recorder.to_folder(
                    prompts,
                    self.folder / "rows" / name / f"pass-{number}",
                    {"features": [_described(feature) for feature in shared.features]},
                    world=self.world,
                    quiet=self.quiet,
                    wait=wait,
                )
            for place in shared.detectors:
                recorded[place] = rows

        return [recorded[place] for place in sorted(recorded)]

    def _passes(self, detectors: Sequence[RowScorer]) -> list["_SharedPass"]:
        """Which features share a pass, and which detectors each pass serves.

        Features of one name and settings that learned different things make rows of one name, so
        they go through passes of their own.
        """
        features: dict[tuple[int, str], Feature] = {}
        places: dict[tuple[int, str], list[int]] = {}
        for place, detector in enumerate(detectors):
            feature = detector.feature
            key = 0, row_name(feature, str(feature.sites_on(self.model)))
            while key in features and not _are_equal(features[key], feature):
                key = key[0] + 1, key[1]
            features.setdefault(key, feature)
            places.setdefault(key, []).append(place)
        passes = []
        for variant in sorted({number for number, _ in features}):
            keys = [key for key in features if key[0] == variant]
            plans: list[Plan] = []
            for key in keys:
                plans.append(features[key].plan(self.model))
            passes += [
                _SharedPass(
                    tuple(features[keys[n]] for n in group),
                    tuple(plans[n] for n in group),
                    tuple(place for n in group for place in places[keys[n]]),
                )
                for group in Plan.groups(plans)
            ]

        return passes

    def _recorder(self, shared: "_SharedPass") -> RowRecorder:
        def extract(reading: Reading) -> Mapping[str, Tensor]:
            return shared.rows(self.model, reading)

        return RowRecorder(self.model, Plan.union(shared.plans), extract)

    def _learned(
        self, features: Sequence[Feature], prompts: AnyPrompts, number: int
    ) -> list[Feature]:
        """The features after they have learned in one pass, or as the folder has them."""
        if self.folder is None:
            states = [feature.state() for feature in self._learning_pass(features, prompts)]
        else:
            home = self.folder / "prepared" / f"pass-{number}"
            config = {
                "features": [[f.name, feature_settings(f)] for f in features],
                "model": self.model.fingerprint,
                "prompts": prompts.digest,
            }
            world = self.world or World.from_environment()
            if world.is_main and not (home / "artefact.json").exists():
                states = [feature.state() for feature in self._learning_pass(features, prompts)]
                save_state(home, {"config": config, "learned": states}, kind=KIND)
            states = _kept_states(home, config)

        return [type(f).from_state(state) for f, state in zip(features, states, strict=True)]

    def _learning_pass(self, features: Sequence[Feature], prompts: AnyPrompts) -> list[Feature]:
        fresh = [deepcopy(feature) for feature in features]
        plan = Plan.union(feature.learning_plan(self.model) for feature in fresh)
        what = f"{len(prompts)} prompts to learn from"
        with progress(what, len(prompts), quiet=self.quiet) as advance:

            def counted() -> Iterator[Reading]:
                for reading in readings(self.model, prompts, plan):
                    yield reading
                    for _ in reading.batch.ids:
                        advance()

            learn_together(fresh, self.model, counted())

        return fresh

    def _key(self, feature: Feature) -> str:
        return row_name(feature, str(feature.sites_on(self.model)))


@dataclass(frozen=True)
class _SharedPass:
    """Features that share a pass, their plans, and the numbers of the detectors that it serves."""

    features: tuple[Feature, ...]
    plans: tuple[Plan, ...]
    detectors: tuple[int, ...]

    def rows(self, model: Model, reading: Reading) -> dict[str, Tensor]:
        """Rows of every feature and site; what two features share is made once."""
        rows: dict[str, Tensor] = {}
        for feature, plan in zip(self.features, self.plans, strict=True):
            vectors = feature.rows(model, own_reading(reading, plan))
            for site, vector in vectors.items():
                rows.setdefault(row_name(feature, str(site)), vector)

        return rows


def without_labels(prompts: AnyPrompts, more: AnyPrompts | None = None) -> AnyPrompts:
    """Prompts (and more of them) without the columns that say what is anomalous."""
    parts = [part.without("label", "agrees") for part in (prompts, more) if part is not None]

    return parts[0] if len(parts) == 1 else type(parts[0]).concat(parts)  # type: ignore[arg-type]


def feature_settings(feature: Feature) -> dict[str, Any]:
    """A feature's settings, as JSON has them."""
    return {
        name: value
        for name, value in feature.settings().items()
        if value is None or isinstance(value, bool | str | int | float | list)
    }


def _raw(detector: RowScorer, shard: ShardRows) -> Float64[np.ndarray, "n sites"]:
    """Scores of a shard by site; none where the detector could not learn."""
    return np.empty((len(shard.ids), 0)) if detector.fitted.reason else detector.raw(shard)


def _are_equal(one: Feature, other: Feature) -> bool:
    """Whether two features of the same settings make the same rows."""
    return one is other or not one.learns or _described(one) == _described(other)


def _described(feature: Feature) -> list[Any]:
    """A feature's name, settings and a digest of what it learned, as JSON values."""
    settings, tensors = flatten(feature.state())
    if not tensors:
        return [feature.name, settings]
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    for value in tensors.values():
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())

    return [feature.name, feature_settings(feature), digest.hexdigest()]


def _kept_states(home: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What features learned, once the worker that lets them learn is done."""
    while not (home / "artefact.json").exists():
        time.sleep(0.1)
    state = load_state(home, KIND)
    if difference := first_difference(state["config"], config):
        raise Mismatch(
            f"its features were prepared with another {difference[0]}",
            where=str(home),
            mend="Give another folder, or the settings of that run",
        )
    states: list[dict[str, Any]] = state["learned"]

    return states
