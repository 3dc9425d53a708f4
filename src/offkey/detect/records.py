"""What a run folder says beyond its tables: written once by the run, read once by whoever asks.

Every record is frozen. A field without a default must be given by whoever makes a record, so that
nothing can be named here and never be written; the few fields with a default are left out of the
file where they were not given.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from offkey.stats import Difference, Interval
from offkey.storage import Record, read_record

__all__ = [
    "METRICS_FILE",
    "ControlMetrics",
    "DetectorMetrics",
    "DriftCheck",
    "Evaluation",
    "MetricInterval",
    "Mode",
    "RunMetrics",
    "SiteMetrics",
    "read_metrics",
]

METRICS_FILE = "metrics.json"
_AGAIN = "Run the command that made the folder again"

Mode = Literal["online", "offline", "transductive", "ceiling"]


class MetricInterval(Record):
    """A metric with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end; null where no interval can be given.
        high: upper end; null where no interval can be given.
    """

    value: float
    low: float | None
    high: float | None

    @classmethod
    def from_stats(cls, interval: Interval | Difference) -> "MetricInterval | None":
        """The same as statistics give it; null where there is no value."""
        if interval.value is None:
            return None

        return cls(value=interval.value, low=interval.low, high=interval.high)


class Evaluation(Record):
    """How well scores separate anomalous prompts from normal ones; null where labels allow none.

    Attributes:
        auroc: over all labelled prompts.
        agrees: over prompts for which normal and anomalous behaviour give the same answer, so
            that the answer cannot give the anomaly away.
        disagrees: over the other prompts.
        average_precision: area under the precision-recall curve.
        tpr_at_1pct_fpr: true-positive rate where 1 % of the normal prompts are flagged.
        dropped: prompts without a score.
    """

    auroc: MetricInterval | None
    agrees: MetricInterval | None
    disagrees: MetricInterval | None
    average_precision: float | None
    tpr_at_1pct_fpr: float | None
    dropped: int


class DetectorMetrics(Evaluation):
    """What a run found with one detector.

    Attributes:
        detector: its name.
        feature: name of its feature.
        score: name of its score.
        sites: the sites whose rows were scored.
        left_out: sites that were not, and why.
        combine: how sites became one score.
        mode: how the detector stands to the test prompts.
        cost: passes a prompt, such as ``"1 forward, 1 backward"``.
        n_trusted: trusted prompts that it was fitted and standardised on.
        n_calibration: trusted prompts that its p-values are counted against.
        n_test: prompts scored.
        reasons: why a metric is null, by its name.
        flagged: prompts flagged; null where there are no p-values.
        expected: how many would be flagged if all were like the calibration prompts.
        expected_low: lower end of the 95 % range of that number.
        expected_high: upper end of that range.
        clean: AUROC of the same detector on the clean model; in a run with a clean model only.
        excess: AUROC less the larger of 0.5 and ``clean``; in a run with a clean model only.
        flagged_normal: share of normal test prompts that were flagged; in a run with a clean
            model only.
    """

    detector: str
    feature: str
    score: str
    sites: tuple[str, ...]
    left_out: Mapping[str, str]
    combine: str
    mode: Mode
    cost: str
    n_trusted: int
    n_calibration: int
    n_test: int
    reasons: Mapping[str, str]
    flagged: int | None
    expected: float | None
    expected_low: int | None
    expected_high: int | None
    clean: MetricInterval | None = None
    excess: MetricInterval | None = None
    flagged_normal: float | None = None


class ControlMetrics(Record):
    """What a detector must beat.

    Attributes:
        control: its name.
        kind: the clean model, a detector that sees the input alone, or one that sees the output
            alone.
        auroc: its AUROC on the same prompts.
        excess: AUROC of the run's first detector less that of the control.
        reasons: why a metric is null, by its name.
    """

    control: str
    kind: Literal["clean", "input", "output"]
    auroc: MetricInterval | None
    excess: MetricInterval | None
    reasons: Mapping[str, str] = Field(default_factory=dict)


class SiteMetrics(Record):
    """AUROC of one detector at one site alone."""

    detector: str
    site: str
    auroc: MetricInterval | None


class DriftCheck(Record):
    """Whether the test prompts differ from the trusted ones in something plain.

    Attributes:
        what: ``"length"`` or ``"topic"``.
        p_value: of a permutation test; null where there are too few prompts.
        effect: size of the difference.
        warn: whether the p-value is small enough to be mentioned.
        trusted: median of the trusted prompts; null for topics.
        test: median of the test prompts; null for topics.
    """

    what: Literal["length", "topic"]
    p_value: float | None
    effect: float | None
    warn: bool
    trusted: float | None
    test: float | None


class RunMetrics(Record):
    """What ``metrics.json`` holds.

    Attributes:
        alpha: false-alarm rate at which prompts were flagged.
        mode: of the first detector.
        detectors: one object a detector.
        controls: what the first detector must beat; empty unless controls were run.
        sites: AUROC of each site alone, by detector.
        drift: whether the prompts themselves drifted; empty for prompts that are not text.
        warnings: sentences about shared sources and sites left out.
        seconds: wall time of each stage.
    """

    alpha: float
    mode: Mode
    detectors: tuple[DetectorMetrics, ...] = Field(min_length=1)
    controls: tuple[ControlMetrics, ...]
    sites: tuple[SiteMetrics, ...]
    drift: tuple[DriftCheck, ...]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """The metrics as JSON values, without the fields that were not given."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def best_control(self) -> ControlMetrics | None:
        """The control with the highest AUROC; null where none has one."""
        known = [(control.auroc.value, control) for control in self.controls if control.auroc]

        return max(known, key=lambda pair: pair[0])[1] if known else None


def read_metrics(folder: str | PathLike[str]) -> RunMetrics:
    """The metrics of a run's folder.

    Raises:
        BadInput: the folder has no ``metrics.json``.
        Damaged: the file was truncated or edited.
    """
    return read_record(RunMetrics, Path(folder) / METRICS_FILE, mend=_AGAIN)
