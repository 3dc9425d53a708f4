"""The rows of the benchmark's tables: written by the bench, read by its page and by documents."""

from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from offkey.stats import Interval
from offkey.storage import read_table

__all__ = [
    "BenchRow",
    "LayerRow",
    "QuirkinessRow",
    "SiteRow",
    "StoredRow",
    "SummaryRow",
    "TableRow",
    "TaskRow",
    "read_rows",
    "with_interval",
]


@dataclass(frozen=True)
class BenchRow:
    """A row of a table; missing values are null."""

    def flat(self) -> dict[str, Any]:
        """The row as a flat object, its columns in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class StoredRow(BenchRow):
    """A row of one of the Parquet files in a bench folder."""

    FILE: ClassVar[str]
    """Name of the file."""


@dataclass(frozen=True)
class TaskRow(StoredRow):
    """One detector on one task, beside itself refitted on the clean model.

    Attributes:
        task: name of the organism.
        detector: name of the row.
        kind: what it sees: ``internal``, ``input``, ``output``, or the labels (``ceiling``).
        published: whether it is a row of the published table.
        mode: how it stands to the test prompts.
        forwards: forward passes a prompt at scoring time.
        backwards: backward passes a prompt at scoring time.
        seconds: time on the organism, of reading, fitting and scoring.
        memory_mib: size of the fitted detector, in MiB.
        auroc: over all labelled prompts.
        agrees: the same where normal and anomalous behaviour give the same answer.
        disagrees: the same where they differ.
        low: lower end of the interval of ``auroc``.
        high: upper end of that interval.
        clean: AUROC of the same detector refitted on the clean model.
        excess: ``auroc`` less the larger of 0.5 and ``clean``.
        excess_low: lower end of the interval of ``excess``.
        excess_high: upper end of that interval.
        average_precision: area under the precision-recall curve.
        tpr_at_1pct_fpr: true-positive rate where 1 % of the normal prompts are flagged.
        flagged_normal: share of the normal prompts that was flagged.
        flagged_anomalous: share of the anomalous prompts that was flagged.
        test_prompts: number of test prompts.
        reason: why there are no figures.
    """

    FILE = "tasks.parquet"

    task: str
    detector: str
    kind: str
    published: bool
    mode: str
    forwards: int
    backwards: int
    seconds: float | None
    memory_mib: float | None
    auroc: float | None
    agrees: float | None
    disagrees: float | None
    low: float | None
    high: float | None
    clean: float | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    average_precision: float | None
    tpr_at_1pct_fpr: float | None
    flagged_normal: float | None
    flagged_anomalous: float | None
    test_prompts: int
    reason: str


@dataclass(frozen=True)
class SiteRow(StoredRow):
    """AUROC of one detector at one site alone, on one task."""

    FILE = "sites.parquet"

    task: str
    detector: str
    site: str
    auroc: float | None


@dataclass(frozen=True)
class QuirkinessRow(StoredRow):
    """How surely an organism plays both characters, in nats."""

    FILE = "quirkiness.parquet"

    task: str
    quirkiness: float | None


@dataclass(frozen=True)
class TableRow(StoredRow):
    """One cell of the printed table: a detector in one of three columns.

    Attributes:
        detector: name of the row.
        column: ``average``, ``agrees`` or ``disagrees``.
        auroc: mean over tasks.
        low: lower end of its interval.
        high: upper end of its interval.
        n_tasks: number of tasks with a figure.
        clean: mean AUROC on the clean model; in the column ``average`` only.
        clean_low: lower end of its interval.
        clean_high: upper end of its interval.
        excess: mean excess; in the column ``average`` only.
        excess_low: lower end of its interval.
        excess_high: upper end of its interval.
        mode: how the detector stands to the test prompts.
        cost: passes a prompt, in words.
        reason: why there are no figures.
    """

    FILE = "table.parquet"

    detector: str
    column: str
    auroc: float | None
    low: float | None
    high: float | None
    n_tasks: int
    clean: float | None
    clean_low: float | None
    clean_high: float | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    mode: str
    cost: str
    reason: str


@dataclass(frozen=True)
class SummaryRow(BenchRow):
    """One detector over all tasks; each mean has its interval.

    Attributes:
        detector: name of the row.
        kind: what it sees.
        published: whether it is a row of the published table.
        mode: how it stands to the test prompts.
        forwards: forward passes a prompt at scoring time.
        backwards: backward passes a prompt at scoring time.
        seconds: mean time on an organism.
        memory_mib: mean size of the fitted detector, in MiB.
        tasks: number of tasks with a figure; organisms of one task count once.
        output_only: the best mean, over the same tasks, of a control that sees the output only.
        average: mean AUROC over all prompts.
        agrees: mean AUROC where normal and anomalous behaviour give the same answer.
        disagrees: mean AUROC where they differ.
        clean: mean AUROC on the clean model.
        excess: mean excess over the clean model.
        seeds: number of seeds that ``over_seeds`` compares; 0 where it is null.
        over_seeds: mean over the tasks that have several organisms, with a t-interval over seeds.
        tpr_at_1pct_fpr: mean true-positive rate at a false-positive rate of 1 %.
        flagged_normal: mean share of the normal prompts that was flagged.
        flagged_anomalous: mean share of the anomalous prompts that was flagged.
        lowest: lowest AUROC on any organism.
        status: ``ok``, or ``failed`` where no task has a figure.
        reason: why figures are missing.
    """

    detector: str
    kind: str
    published: bool
    mode: str
    forwards: int
    backwards: int
    seconds: float | None
    memory_mib: float | None
    tasks: int
    output_only: float | None
    average: float | None
    average_low: float | None
    average_high: float | None
    agrees: float | None
    agrees_low: float | None
    agrees_high: float | None
    disagrees: float | None
    disagrees_low: float | None
    disagrees_high: float | None
    clean: float | None
    clean_low: float | None
    clean_high: float | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    seeds: int
    over_seeds: float | None
    over_seeds_low: float | None
    over_seeds_high: float | None
    tpr_at_1pct_fpr: float | None
    flagged_normal: float | None
    flagged_anomalous: float | None
    lowest: float | None
    status: str
    reason: str


@dataclass(frozen=True)
class LayerRow(BenchRow):
    """AUROC of one detector at one site: mean over tasks, and the middle half of organisms.

    Attributes:
        detector: name of the row.
        site: name of the site.
        layer: number of its block; null for sites outside the blocks.
        average: mean over tasks.
        low_quartile: lower quartile of the organisms.
        high_quartile: upper quartile of the organisms.
        lowest: lowest AUROC on any organism.
        tasks: number of tasks.
    """

    detector: str
    site: str
    layer: int | None
    average: float
    low_quartile: float
    high_quartile: float
    lowest: float
    tasks: int


Stored = TypeVar("Stored", bound=StoredRow)


def read_rows(kind: type[Stored], folder: str | PathLike[str]) -> list[Stored]:
    """The rows of one kind in a bench folder.

    Raises:
        BadInput: the file is missing.
        Damaged: it was truncated or edited.
    """
    columns = [field.name for field in fields(kind)]
    rows = read_table(Path(folder) / kind.FILE, columns).to_pylist()

    return [kind(**{name: row[name] for name in columns}) for row in rows]


def with_interval(name: str, mean: Interval) -> dict[str, Any]:
    """An estimate and its interval as three columns."""
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
