"""The run behind ``offkey detect``: fit on trusted prompts, score others, fill a run folder."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offkey.data import Prompts, TensorPrompts
from offkey.detect.detector import Detector
from offkey.detect.evaluation import drift_checks, evaluate, site_aurocs
from offkey.detect.fitting import TrustedSplit, fit_rows
from offkey.detect.records import METRICS_FILE, DetectorMetrics, RunMetrics
from offkey.detect.scores import (
    Scores,
    lengths,
    prompt_facts,
    prompt_table,
    site_table,
    text_of,
)
from offkey.detect.session import Session, feature_settings, without_labels
from offkey.errors import BadInput, BadValue, Damaged, Mismatch, NonFinite, NotEnoughData
from offkey.models import Model
from offkey.passes import Rows, World
from offkey.stats import flag_count
from offkey.storage import RunFolder, write_bytes

__all__ = ["DetectionRun"]

AnyPrompts = Prompts | TensorPrompts
TABLE_VERSION = 1


@dataclass(frozen=True)
class DetectionRun:
    """Everything that one detection run is made of.

    Attributes:
        model: the model that is watched.
        detectors: what watches it; their names must differ.
        trusted: prompts known to be handled normally.
        test: prompts to score.
        pool: unlabelled prompts, for scores that need them.
        calibration: trusted prompts kept for p-values.
        seed: of the split and of everything random.
        redact: keep the texts of prompts out of the run folder.
        quiet: show no progress.
    """

    model: Model
    detectors: Sequence[Detector]
    trusted: AnyPrompts
    test: AnyPrompts
    pool: AnyPrompts | None = None
    calibration: AnyPrompts | None = None
    seed: int = 0
    redact: bool = False
    quiet: bool = False

    def check(self) -> dict[str, Any]:
        """Checks model, prompts and settings without running the model.

        Returns:
            What would be done: prompts of each part, sites of each detector.

        Raises:
            OffkeyError: whatever is wrong with them.
        """
        names = [d.name for d in self.detectors]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadValue(
                f"{sorted(twice)[0]!r} is named twice",
                where="detectors",
                mend="Give them names that differ",
            )
        split = self._split
        split.check_alpha(self.detectors)
        self._check_prompts(split)

        return {
            "parts": {**split.counts, "test": len(self.test)},
            "sites": {
                d.name: [str(site) for site in d.feature.sites_on(self.model)]
                for d in self.detectors
            },
        }

    def run(self, out: str | Path) -> RunMetrics | None:
        """Fills the folder ``out``; the same run goes on where it was stopped.

        Leaves ``run.json``, ``scores.parquet``, ``site_scores.parquet``, ``metrics.json``, the
        fitted detectors, the recorded rows and, unless redacted, the prompts. Of several workers
        the first one writes; the others only record their shards.

        Returns:
            The metrics, as in ``metrics.json``; null on a worker that is not the first.

        Raises:
            Mismatch: the folder holds a run of another configuration.
            Unwritable: the folder cannot be written.
        """
        self.check()
        world = World.from_environment()
        with _restored_on_error(Path(out)) if world.size == 1 else nullcontext():
            folder = RunFolder.open(out, self._config())
            if not world.is_main:
                self._record(folder, world, _Clock())
                return None
            with folder:
                return self._fill(folder, world)

    def _fill(self, folder: RunFolder, world: World) -> RunMetrics:
        clock = _Clock()
        rows = self._record(folder, world, clock)
        split = self._split
        with clock.stage("fit"):
            tolerant, pool = len(self.detectors) > 1, rows.get("pool")
            fit_rows(
                self.detectors, rows["trusted"], self.model, split, pool=pool, tolerant=tolerant
            )
        with clock.stage("score"):
            test = _scored(self.detectors, rows["test"])
        with clock.stage("score calibration"):
            trusted = _scored(self.detectors, rows["trusted"])
            calibration = [scores.select(split.calibrate) for scores in trusted]
        self._write_tables(folder, {"test": test, "calibration": calibration})
        for detector in self.detectors:
            if not detector.fitted.reason:
                detector.save(folder.file("detector") / detector.name.replace("/", "-"))
        self._keep_prompts(folder)
        metrics = self._metrics(test, clock.seconds)
        metrics.write(folder.file(METRICS_FILE))

        return metrics

    def _record(self, folder: RunFolder, world: World, clock: "_Clock") -> dict[str, list[Rows]]:
        """Lets features learn and records the rows of every set of prompts."""
        quiet = self.quiet or not world.is_main
        session = Session(self.model, folder.path, world=world, quiet=quiet)
        rows, sets = {}, self._sets()
        with clock.stage("prepare"):
            session.learn(self.detectors, sets["trusted"], self._split.fit)
        for name, prompts in sets.items():
            with clock.stage(f"read {name}"):
                rows[name] = session.record_features(self.detectors, prompts, name)

        return rows

    def _write_tables(self, folder: RunFolder, scores: dict[str, list[Scores]]) -> None:
        trusted = without_labels(self.trusted, self.calibration)
        facts = {
            "test": prompt_facts(self.model, self.test, redact=self.redact),
            "calibration": prompt_facts(self.model, trusted, redact=self.redact),
        }
        folder.write_table("scores", prompt_table(scores, facts), version=TABLE_VERSION)
        folder.write_table("site_scores", site_table(scores), version=TABLE_VERSION)

    def _keep_prompts(self, folder: RunFolder) -> None:
        """Leaves the texts beside the scores, so that a flag can be explained later."""
        if self.redact:
            return
        for name, prompts in (("trusted", self.trusted), ("test", self.test)):
            if isinstance(prompts, Prompts):
                prompts.to_jsonl(folder.file("prompts") / f"{name}.jsonl")

    def _metrics(self, scores: Sequence[Scores], seconds: dict[str, float]) -> RunMetrics:
        pairs = list(zip(self.detectors, scores, strict=True))
        drift = drift_checks(
            text_of(self.trusted),
            text_of(self.test),
            lengths(self.model, self.trusted),
            lengths(self.model, self.test),
            seed=self.seed,
        )

        return RunMetrics(
            alpha=self.detectors[0].alpha,
            mode=scores[0].mode,
            detectors=tuple(self._detector_metrics(detector, each) for detector, each in pairs),
            controls=(),
            sites=tuple(row for each in scores for row in site_aurocs(each, self.test)),
            drift=tuple(drift),
            warnings=tuple(self._warnings()),
            seconds=seconds,
        )

    def _detector_metrics(self, detector: Detector, scores: Scores) -> DetectorMetrics:
        fitted = detector.fitted
        with_p_value = int((~np.isnan(scores.p_value)).sum())
        expected = None
        if with_p_value:
            expected = flag_count(len(fitted.calibration), with_p_value, detector.alpha)

        return DetectorMetrics(
            **dict(evaluate(scores, self.test)),
            detector=detector.name,
            feature=detector.feature.name,
            score=detector.score_template.name,
            sites=fitted.sites,
            left_out=dict(fitted.left_out),
            combine=detector.combine.name,
            mode=scores.mode,
            cost=_cost(detector, self.model),
            n_trusted=fitted.counts["fit"] + fitted.counts["standardise"],
            n_calibration=fitted.counts["calibrate"],
            n_test=len(scores),
            reasons={"auroc": fitted.reason} if fitted.reason else {},
            flagged=int(scores.flagged.sum()) if with_p_value else None,
            expected=expected and expected.expected,
            expected_low=expected and expected.low,
            expected_high=expected and expected.high,
        )

    def _warnings(self) -> list[str]:
        warnings = []
        if shared := len(set(self.trusted["source"]) & set(self.test["source"])):
            warnings.append(f"{shared} test prompts come from a source that is trusted too")
        left = {site: why for d in self.detectors for site, why in d.fitted.left_out.items()}
        warnings += [f"site {site} was left out: it {why}" for site, why in left.items()]
        warnings += [d.fitted.reason for d in self.detectors if d.fitted.reason]

        return warnings

    @property
    def _split(self) -> TrustedSplit:
        return TrustedSplit.of(self.trusted, self.calibration, self.seed)

    def _sets(self) -> dict[str, AnyPrompts]:
        """What the model is run over, without the columns that say what is anomalous."""
        sets = {"trusted": without_labels(self.trusted, self.calibration)}
        if self.pool is not None and any(d.score_template.needs_pool for d in self.detectors):
            sets["pool"] = without_labels(self.pool)

        return {**sets, "test": without_labels(self.test)}

    def _check_prompts(self, split: TrustedSplit) -> None:
        for prompts in self._sets().values():
            lengths(self.model, prompts)
            for detector in self.detectors:
                detector.feature.plan(self.model).check(prompts)
        known = set(without_labels(self.trusted, self.calibration).ids)
        if self.pool is not None and set(self.pool.ids) & known:
            raise Mismatch(
                "some of its prompts are among the trusted ones too",
                where="pool",
                mend="Take them out",
            )
        to_fit = self.trusted.take([n for n, id in enumerate(self.trusted.ids) if id in split.fit])
        for detector in self.detectors:
            detector.feature.check_trusted(to_fit)
            if detector.score_template.needs_pool and self.pool is None:
                raise BadValue(
                    "needs a pool of unlabelled prompts",
                    where=f"score {detector.score_template.name}",
                    mend="Give pool=, or --pool FILE",
                )

    def _config(self) -> dict[str, Any]:
        def described(prompts: AnyPrompts | None) -> dict[str, Any] | None:
            return None if prompts is None else {"n": len(prompts), "digest": prompts.digest}

        return {
            "model": self.model.name,
            "adapter": self.model.adapter,
            "fingerprint": self.model.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "trusted": described(self.trusted),
            "test": described(self.test),
            "pool": described(self.pool),
            "calibration": described(self.calibration),
            "detectors": [
                {
                    "name": d.name,
                    "feature": d.feature.name,
                    "feature_settings": feature_settings(d.feature),
                    "score": d.score_template.name,
                    "combine": d.combine.name,
                    "alpha": d.alpha,
                }
                for d in self.detectors
            ],
            "seed": self.seed,
            "redact": self.redact,
        }


class _Clock:
    """Wall time of each stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _scored(detectors: Sequence[Detector], rows: Sequence[Rows]) -> list[Scores]:
    return [detector.score_rows(each) for detector, each in zip(detectors, rows, strict=True)]


def _cost(detector: Detector, model: Model) -> str:
    """Passes a prompt, such as ``"1 forward, 1 backward"``."""
    plan = detector.feature.plan(model)
    forwards = plan.extra_forwards + bool(plan.reads or plan.logits or plan.metric)
    backwards = plan.extra_backwards + bool(plan.gradients)

    return f"{forwards} forward" + (f", {backwards} backward" if backwards else "")


@contextmanager
def _restored_on_error(out: Path) -> Iterator[None]:
    """Leaves the folder as it was where the user's input turns out to be wrong on the way.

    Corrected input is another configuration, which a folder claimed by the wrong one would
    refuse; and a finished run stays one where somebody damaged a shard of it later.
    """
    existed, index = out.exists(), out / "run.json"
    record = index.read_bytes() if index.is_file() else None
    is_new = not existed or (out.is_dir() and not any(out.iterdir()))
    try:
        yield
    except (BadInput, BadValue, Damaged, Mismatch, NonFinite, NotEnoughData):
        if is_new:
            for path in out.iterdir() if existed else (out,):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif record is not None and index.read_bytes() != record:
            write_bytes(index, record)
        raise
