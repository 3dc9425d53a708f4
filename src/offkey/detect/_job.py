"""The main job: fit on trusted prompts, score others, leave a run folder."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offkey.data import Prompts, TensorPrompts
from offkey.detect._detector import Detector
from offkey.detect._fit import Parts, fit_rows
from offkey.detect._many import harvest, trusted_prompts
from offkey.detect._prepare import fit_part, plain_settings, prepare
from offkey.detect._scores import Scores
from offkey.detect._tables import about, lengths, prompt_table, site_table, text_of
from offkey.detect.evaluation import drift_checks, evaluate, site_aurocs
from offkey.detect.records import METRICS_FILE, DetectorMetrics, RunMetrics
from offkey.errors import BadInput, BadValue, Damaged, Mismatch, NonFinite, NotEnoughData
from offkey.models import Model
from offkey.passes import Rows, World
from offkey.stats import flag_count
from offkey.storage import RunFolder, write_bytes, write_json

__all__ = ["Job"]

AnyPrompts = Prompts | TensorPrompts
TABLE_VERSION = 1


@dataclass(frozen=True)
class Job:
    """Everything one detection run is made of.

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
    _seconds: dict[str, float] = field(default_factory=dict, repr=False)

    def check(self) -> dict[str, Any]:
        """Checks model, prompts and settings without running the model.

        Returns:
            What would be done: prompts of each part, sites of each detector.

        Raises:
            OffkeyError: whatever is wrong with them.
        """
        names = [d.name for d in self.detectors]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadValue(f"{sorted(twice)[0]!r} is named twice", where="detectors",
                           mend="Give them names that differ")  # fmt: skip
        parts = Parts.of(self.trusted, self.calibration, self.seed)
        parts.check(self.detectors)
        for prompts in self._sets().values():
            lengths(self.model, prompts)
            for detector in self.detectors:
                detector.feature.plan(self.model).check(prompts)
        if self.pool is not None and set(self.pool.ids) & set(self.trusted.ids):
            raise Mismatch("some of its prompts are among the trusted ones too", where="pool",
                           mend="Take them out")  # fmt: skip
        learned_from = fit_part(self.trusted, parts.fit)
        for detector in self.detectors:
            detector.feature.check_trusted(learned_from)
            if detector.score_template.needs_pool and self.pool is None:
                raise BadValue("needs a pool of unlabelled prompts",
                               where=f"score {detector.score_template.name}",
                               mend="Give pool=, or --pool FILE")  # fmt: skip
        return {
            "parts": {**parts.counts, "test": len(self.test)},
            "sites": {
                d.name: [str(site) for site in d.feature.sites_on(self.model)]
                for d in self.detectors
            },
        }

    def run(self, out: str | Path) -> RunMetrics | None:
        """Runs the job and fills ``out``; the same job goes on where it was stopped.

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
        with _as_before(Path(out)) if world.size == 1 else nullcontext():
            folder = RunFolder.open(out, self._config())
            if not world.is_main:
                self._read(folder, world)
                return None
            with folder as run:
                return self._run(run, world)

    def _run(self, run: RunFolder, world: World) -> RunMetrics:
        rows = self._read(run, world)
        with self._timed("fit"):
            parts = Parts.of(self.trusted, self.calibration, self.seed)
            fit_rows(self.detectors, rows["trusted"], self.model, parts,
                     pool=rows.get("pool"), seed=self.seed,
                     tolerant=len(self.detectors) > 1)  # fmt: skip
        with self._timed("score"):
            scores = [d.score_rows(r) for d, r in zip(self.detectors, rows["test"], strict=True)]
        with self._timed("score calibration"):
            calibration = [
                d.score_rows(r).select(parts.calibrate)
                for d, r in zip(self.detectors, rows["trusted"], strict=True)
            ]
        metrics = self._metrics(scores)
        told = {"test": scores, "calibration": calibration}
        known = {
            "test": about(self.model, self.test, redact=self.redact),
            "calibration": about(
                self.model, trusted_prompts(self.trusted, self.calibration), redact=self.redact
            ),
        }
        run.write_table("scores", prompt_table(told, known), version=TABLE_VERSION)
        run.write_table("site_scores", site_table(told), version=TABLE_VERSION)
        for detector in (d for d in self.detectors if not d.fitted.reason):
            detector.save(run.file("detector") / detector.name.replace("/", "-"))
        self._keep_prompts(run)
        write_json(run.file(METRICS_FILE), metrics.as_json())

        return metrics

    def _keep_prompts(self, run: RunFolder) -> None:
        """Leaves the texts beside the scores, so that a flag can be explained later."""
        if self.redact:
            return
        for name, prompts in (("trusted", self.trusted), ("test", self.test)):
            if isinstance(prompts, Prompts):
                prompts.to_jsonl(run.file("prompts") / f"{name}.jsonl")

    def _read(self, run: RunFolder, world: World) -> dict[str, list[Rows]]:
        rows, sets = {}, self._sets()
        with self._timed("prepare"):
            prepare(
                self.detectors,
                self.model,
                sets["trusted"],
                Parts.of(self.trusted, self.calibration, self.seed).fit,
                run.file("prepared"),
                world=world,
                quiet=self.quiet or not world.is_main,
            )
        for name, prompts in sets.items():
            with self._timed(f"read {name}"):
                rows[name] = harvest(
                    self.model,
                    prompts,
                    self.detectors,
                    run.file("rows") / name,
                    world=world,
                    quiet=self.quiet or not world.is_main,
                )

        return rows

    def _metrics(self, scores: Sequence[Scores]) -> RunMetrics:
        return RunMetrics(
            alpha=self.detectors[0].alpha,
            mode=scores[0].mode,
            detectors=tuple(
                self._row(detector, told)
                for detector, told in zip(self.detectors, scores, strict=True)
            ),
            controls=(),
            sites=tuple(row for told in scores for row in site_aurocs(told, self.test)),
            drift=tuple(
                drift_checks(
                    text_of(self.trusted),
                    text_of(self.test),
                    lengths(self.model, self.trusted),
                    lengths(self.model, self.test),
                    seed=self.seed,
                )
            ),
            warnings=tuple(self._warnings()),
            seconds=self._seconds,
        )

    def _row(self, detector: Detector, scores: Scores) -> DetectorMetrics:
        plan, fitted = detector.feature.plan(self.model), detector.fitted
        flagged = int(scores.flagged.sum())
        told = int((~np.isnan(scores.p_value)).sum())
        expected = flag_count(len(fitted.calibration), told, detector.alpha) if told else None
        forwards = plan.extra_forwards + bool(plan.reads or plan.logits or plan.metric)

        return DetectorMetrics(
            **dict(evaluate(scores, self.test)),
            detector=detector.name,
            feature=detector.feature.name,
            score=detector.score_template.name,
            sites=fitted.sites,
            left_out=dict(fitted.left_out),
            combine=detector.combine.name,
            mode=scores.mode,
            cost=f"{forwards} forward"
            + (
                f", {plan.extra_backwards + bool(plan.gradients)} backward"
                if plan.gradients or plan.extra_backwards
                else ""
            ),
            n_trusted=fitted.counts["fit"] + fitted.counts["standardise"],
            n_calibration=fitted.counts["calibrate"],
            n_test=len(scores),
            reasons={"auroc": fitted.reason} if fitted.reason else {},
            flagged=flagged if told else None,
            expected=expected.expected if expected else None,
            expected_low=expected.low if expected else None,
            expected_high=expected.high if expected else None,
        )

    def _sets(self) -> dict[str, AnyPrompts]:
        """What the model is run over, without the columns that say what is anomalous."""
        sets = {
            "trusted": trusted_prompts(self.trusted, self.calibration),
            "pool": self._unlabelled,
            "test": self.test.without("label", "agrees"),
        }
        return {name: prompts for name, prompts in sets.items() if prompts is not None}

    @property
    def _unlabelled(self) -> AnyPrompts | None:
        """The pool, where a score needs one."""
        needed = any(detector.score_template.needs_pool for detector in self.detectors)

        return self.pool.without("label", "agrees") if self.pool is not None and needed else None

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
                    "feature_settings": plain_settings(d.feature),
                    "score": d.score_template.name,
                    "combine": d.combine.name,
                    "alpha": d.alpha,
                }
                for d in self.detectors
            ],
            "seed": self.seed,
            "redact": self.redact,
        }

    def _warnings(self) -> list[str]:
        shared = len(set(self.trusted["source"]) & set(self.test["source"]))
        told = [f"{shared} test prompts come from a source that is trusted too"] if shared else []
        left = {site: why for d in self.detectors for site, why in d.fitted.left_out.items()}

        told += [f"site {site} was left out: it {why}" for site, why in left.items()]

        return told + [d.fitted.reason for d in self.detectors if d.fitted.reason]

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[what] = round(time.perf_counter() - start, 3)


@contextmanager
def _as_before(out: Path) -> Iterator[None]:
    """Leaves the folder as it was where the user's input turns out to be wrong on the way.

    Mended input is another configuration, which a folder claimed by the wrong one would refuse;
    and a finished run stays one where somebody damaged a shard of it later.
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
