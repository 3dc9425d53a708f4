"""One task: detectors and controls on the organism, and again, refitted, on the clean model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offkey.bench.lineup import CONTROLS, control_detectors, default_detector
from offkey.bench.organisms import TaskModels
from offkey.bench.rows import BenchRow
from offkey.bench.table import credit
from offkey.data import Prompts
from offkey.detect import (
    METRICS_FILE,
    ControlMetrics,
    DetectionRun,
    Detector,
    DetectorMetrics,
    MetricInterval,
    RunMetrics,
    Scores,
)
from offkey.stats import paired_auroc_difference
from offkey.storage import read_table, write_json

__all__ = ["TaskComparison", "DemoRow", "compare", "demo", "demo_rows"]

TASK = "agreement"


@dataclass(frozen=True)
class TaskComparison:
    """What detectors find on an organism, beside what they must beat.

    Attributes:
        metrics: of the organism's run, with controls; each detector has its ``clean`` AUROC, its
            ``excess`` and ``flagged_normal``.
        detectors: the same for each detector and each control, which is a detector too.
    """

    metrics: RunMetrics
    detectors: tuple[DetectorMetrics, ...]

    def as_json(self) -> dict[str, Any]:
        """The metrics as JSON values, with all detectors under ``all``."""
        return {**self.metrics.as_json(), "all": [row.as_json() for row in self.detectors]}


@dataclass(frozen=True)
class DemoRow(BenchRow):
    """The AUROC of a detector or control.

    Attributes:
        detector: its name.
        kind: ``detector``, or what the control is: ``clean``, ``input`` or ``output``.
        auroc: on the organism; of ``clean``, on the clean model.
        low: lower end of its interval.
        high: upper end of its interval.
    """

    detector: str
    kind: str
    auroc: float | None
    low: float | None
    high: float | None


def demo(out: str | Path, *, seed: int = 0, quiet: bool = False) -> TaskComparison:
    """Detects the anomalous answers of a bundled organism, and compares with the clean model.

    Args:
        out: the folder to write to; the organism's run folder is ``out/organism``.
        seed: of the splits and draws.
        quiet: show no progress.
    """
    return compare(TaskModels.of(TASK), [default_detector()], Path(out), seed=seed, quiet=quiet)


def demo_rows(comparison: TaskComparison) -> list[DemoRow]:
    """The figures of the demo: its detectors, and each control."""
    metrics = comparison.metrics
    detectors = [_demo_row(row.detector, "detector", row.auroc) for row in metrics.detectors]
    controls = [_demo_row(row.control, row.kind, row.auroc) for row in metrics.controls]

    return detectors + controls


def compare(
    models: TaskModels,
    detectors: Sequence[Detector],
    out: Path,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> TaskComparison:
    """Runs detectors and controls on the organism, and again, refitted, on the clean model.

    A detector is credited with its excess, see :func:`offkey.bench.table.credit`.

    Args:
        models: models and prompts.
        detectors: what is compared.
        out: gets the run folders ``organism`` and ``clean``.
        seed: of splits and draws.
        quiet: show no progress.
    """
    runs = {}
    for name, model in (("organism", models.organism), ("clean", models.clean)):
        run = DetectionRun(
            model,
            [*detectors, *control_detectors()],
            models.trusted,
            models.test,
            pool=models.pool,
            seed=seed,
            quiet=quiet,
        )
        runs[name] = run.run(out / name)
    metrics = runs["organism"]
    assert metrics is not None
    organism, clean = (_read_scores(out / name, metrics, models.test) for name in runs)
    every = tuple(
        _with_credit(row, organism, clean, models.test, seed) for row in metrics.detectors
    )
    metrics = metrics.model_copy(
        update={
            "detectors": tuple(row for row in every if row.detector not in CONTROLS),
            "controls": tuple(_control_rows(every, organism, models.test)),
            "sites": tuple(row for row in metrics.sites if row.detector not in CONTROLS),
        }
    )
    write_json(out / "organism" / METRICS_FILE, metrics.as_json())

    return TaskComparison(metrics, every)


def _demo_row(name: str, kind: str, auroc: MetricInterval | None) -> DemoRow:
    if auroc is None:
        return DemoRow(name, kind, None, None, None)

    return DemoRow(name, kind, auroc.value, auroc.low, auroc.high)


def _with_credit(
    row: DetectorMetrics,
    organism: Mapping[str, Scores],
    clean: Mapping[str, Scores],
    test: Prompts,
    seed: int,
) -> DetectorMetrics:
    """The organism's metrics with those on the clean model and what is added to them."""
    added = credit(organism[row.detector], clean[row.detector], test, seed=seed)

    return row.model_copy(
        update={
            "clean": added.clean,
            "excess": added.excess,
            "flagged_normal": added.flagged_normal,
        }
    )


def _control_rows(
    every: Sequence[DetectorMetrics], scores: Mapping[str, Scores], test: Prompts
) -> list[ControlMetrics]:
    """What the first detector must beat: itself on the clean model, and the controls."""
    first = next(row for row in every if row.detector not in CONTROLS)
    clean = ControlMetrics(
        control=f"clean model, {first.detector}",
        kind="clean",
        auroc=first.clean,
        excess=first.excess,
    )
    others = [
        ControlMetrics(
            control=row.detector,
            kind=CONTROLS[row.detector],
            auroc=row.auroc,
            excess=_gain(scores[first.detector], scores[row.detector], test),
            reasons=row.reasons,
        )
        for row in every
        if row.detector in CONTROLS
    ]

    return [clean, *others]


def _gain(detector: Scores, control: Scores, test: Prompts) -> MetricInterval | None:
    """AUROC of a detector less that of a control on the same prompts."""
    gain = paired_auroc_difference(detector.score, control.score, test["label"])

    return MetricInterval.from_stats(gain)


def _read_scores(run: Path, metrics: RunMetrics, test: Prompts) -> dict[str, Scores]:
    """The scores of the test prompts in a run folder, by detector."""
    rows = {
        (row["detector"], row["id"]): row
        for row in read_table(run / "scores.parquet").to_pylist()
        if row["role"] == "test"
    }

    def column(detector: str, name: str) -> np.ndarray:
        return np.array([rows[detector, id][name] for id in test.ids], dtype=np.float64)

    return {
        row.detector: Scores(
            row.detector,
            row.mode,
            metrics.alpha,
            tuple(test.ids),
            column(row.detector, "score"),
            column(row.detector, "p_value"),
            (),
            np.empty((len(test), 0)),
            {},
        )
        for row in metrics.detectors
    }
