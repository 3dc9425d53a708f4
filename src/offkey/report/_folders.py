"""Run and bench folders as the report reads them: files only, checked as they are read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offkey.bench import QuirkinessRow, SiteRow, TableRow, TaskRow, read_rows
from offkey.detect import MetricInterval, RunMetrics, read_metrics
from offkey.errors import Damaged, check
from offkey.report._format import site_order
from offkey.storage import RunRecord, read_run, read_table

__all__ = ["BenchData", "RunData", "ScoreRows", "SiteScores", "interval", "is_bench"]

Array = NDArray[np.float64]
Role = Literal["calibration", "test"]
R = TypeVar("R")
_SCORE_COLUMNS = (
    "id",
    "detector",
    "role",
    "score",
    "p_value",
    "flagged",
    "worst_site",
    "status",
    "reason",
    "label",
    "agrees",
    "length",
)
_SITE_COLUMNS = ("id", "detector", "role", "site", "score")


def is_bench(folder: str | Path) -> bool:
    """Whether a folder is that of a bench rather than of a run."""
    return (Path(folder) / "table.parquet").is_file()


@dataclass(frozen=True)
class ScoreRows:
    """The scores of one detector and role; what is null in the file is NaN here.

    Attributes:
        table: the rows with every column.
        score: one a prompt.
        p_value: one a prompt.
        label: 1 where the prompt is anomalous, 0 where it is normal.
        flagged: 1 where the prompt was flagged, 0 where it was not.
    """

    table: pa.Table
    score: Array
    p_value: Array
    label: Array
    flagged: Array

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Takes the numbers out of a table of scores."""
        numbers = ("score", "p_value", "label", "flagged")

        return cls(table, *(_floats(table, name) for name in numbers))

    def __len__(self) -> int:
        return len(self.score)

    def scores_of(self, label: int | None = None) -> Array:
        """The scores that are not null, of one label where it is given."""
        keep = ~np.isnan(self.score)
        if label is not None:
            keep &= self.label == label

        return self.score[keep]

    @property
    def is_labelled(self) -> bool:
        """Whether both classes occur among the scored rows."""
        return bool(len(self.scores_of(0)) and len(self.scores_of(1)))


@dataclass(frozen=True)
class SiteScores:
    """Standardised scores of prompts by site.

    Attributes:
        ids: names of the prompts.
        sites: names of the sites, in the model's order.
        z: ``[prompt, site]``, NaN where there is no score.
    """

    ids: list[str]
    sites: list[str]
    z: Array

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Turns a table with one row for each prompt and site into a matrix."""
        prompts, sites = (pc.dictionary_encode(table[n].combine_chunks()) for n in ("id", "site"))
        names = sites.dictionary.to_pylist()
        order = sorted(names, key=site_order)
        z = np.full((len(prompts.dictionary), len(names)), np.nan)
        columns = np.array([order.index(name) for name in names], dtype=int)
        if len(table):
            places = columns[sites.indices.to_numpy()]
            z[prompts.indices.to_numpy(), places] = _floats(table, "score")

        return cls(prompts.dictionary.to_pylist(), order, z)

    def of_prompt(self, prompt: str) -> dict[str, float]:
        """One prompt's standardised score at each site where it has one."""
        if prompt not in self.ids:
            return {}
        row = self.z[self.ids.index(prompt)]

        return {s: float(v) for s, v in zip(self.sites, row, strict=True) if not np.isnan(v)}


@dataclass(frozen=True)
class RunData:
    """A run's folder, read and checked.

    Attributes:
        folder: where it is.
        record: what ``run.json`` holds.
        metrics: what ``metrics.json`` holds.
        scores: the rows of ``scores.parquet``.
    """

    folder: Path
    record: RunRecord
    metrics: RunMetrics
    scores: pa.Table

    @classmethod
    def read(cls, folder: str | Path, *, redact: bool = False) -> Self:
        """Reads a folder that ``offkey detect`` has written.

        Args:
            folder: the run folder.
            redact: do not even read the texts of the prompts.

        Raises:
            BadInput: no such folder or file, or a run that has not ended.
            Damaged: a file was truncated or edited, or two files disagree.
            Mismatch: a later format.
        """
        run = read_run(folder)
        leave_out = ("text",) if redact else ()
        metrics = read_metrics(run.path)
        scores = read_table(run.file("scores.parquet"), _SCORE_COLUMNS, leave_out=leave_out)
        data = cls(run.path, run.record, metrics, scores)
        data._check()

        return data

    def rows(self, detector: str, role: Role) -> ScoreRows:
        """One detector's rows, in the order of the file."""
        keep = pc.and_(
            pc.equal(self.scores["detector"], detector), pc.equal(self.scores["role"], role)
        )

        return ScoreRows.of(self.scores.filter(keep))

    def site_scores(
        self, detector: str, role: Role, ids: Sequence[str] | None = None
    ) -> SiteScores:
        """Standardised scores by site; empty without ``site_scores.parquet``.

        Args:
            detector: name of the detector.
            role: of the prompts.
            ids: names of prompts; all if left out.
        """
        path = self.folder / "site_scores.parquet"
        if not path.exists():
            return SiteScores([], [], np.empty((0, 0)))
        filters: list[tuple[str, str, Any]] = [("detector", "==", detector), ("role", "==", role)]
        if ids is not None:
            filters.append(("id", "in", list(ids) or [""]))

        return SiteScores.of(read_table(path, _SITE_COLUMNS, filters=filters))

    def _check(self) -> None:
        """Refuses scores that are not those of the metrics."""
        where, mend = str(self.folder / "scores.parquet"), "Run the detection again"
        for row in self.metrics.detectors:
            test = self.rows(row.detector, "test")
            what = f"no test row for detector {row.detector!r} of metrics.json"
            check(len(test) > 0, what, where=where, mend=mend, error=Damaged)
            flagged = int(np.nansum(test.flagged))
            what = f"{row.detector}: {flagged} flagged, but {row.flagged} in metrics.json"
            ok = row.flagged is None or row.flagged == flagged
            check(ok, what, where=where, mend=mend, error=Damaged)


@dataclass(frozen=True)
class BenchData:
    """A bench folder, read and checked.

    Attributes:
        folder: where it is.
        record: what ``run.json`` holds.
        table: by detector and column, which is ``average``, ``agrees`` or ``disagrees``.
        auroc: by task and detector; null where there is none.
        sites: AUROC of each detector at each site of each task.
        quirkiness: by task, in nats.
    """

    folder: Path
    record: RunRecord
    table: Mapping[tuple[str, str], TableRow]
    auroc: Mapping[tuple[str, str], MetricInterval | None]
    sites: Sequence[SiteRow]
    quirkiness: Mapping[str, float | None]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Reads a folder that ``offkey bench`` has written.

        Raises:
            BadInput: no such folder or file.
            Damaged: a file was truncated or edited, or holds two rows for one thing.
        """
        run = read_run(folder)
        table = read_rows(TableRow, run.path)
        where = str(run.path / TableRow.FILE)
        check(bool(table), "no rows", where=where, mend="Run the bench again", error=Damaged)
        tasks = _unique(read_rows(TaskRow, run.path), ("task", "detector"), run.path)
        quirkiness = _unique(read_rows(QuirkinessRow, run.path), ("task",), run.path)

        return cls(
            run.path,
            run.record,
            _unique(table, ("detector", "column"), run.path),
            {key: interval(row.auroc, row.low, row.high) for key, row in tasks.items()},
            read_rows(SiteRow, run.path),
            {task: row.quirkiness for (task,), row in quirkiness.items()},
        )

    @property
    def detectors(self) -> list[str]:
        """Names of the detectors, highest average first, those without one last."""

        def average(name: str) -> float:
            value = self.cell(name, "average")
            return -1.0 if value is None else value

        return sorted({name for name, _ in self.table}, key=lambda name: (-average(name), name))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, most quirky first."""

        def quirkiness(name: str) -> float:
            value = self.quirkiness.get(name)
            return -np.inf if value is None else value

        names = {*self.quirkiness, *(task for task, _ in self.auroc)}

        return sorted(names, key=lambda name: (-quirkiness(name), name))

    def cell(self, detector: str, column: str) -> float | None:
        """The AUROC in a cell of the table; null where there is none."""
        row = self.table.get((detector, column))

        return None if row is None else row.auroc


def interval(value: float | None, low: float | None, high: float | None) -> MetricInterval | None:
    """A value with its interval; null where there is no value."""
    return None if value is None else MetricInterval(value=value, low=low, high=high)


def _unique(rows: Iterable[R], names: tuple[str, ...], folder: Path) -> dict[Any, R]:
    """Rows by some of their columns.

    Raises:
        Damaged: two rows differ that have the same values there.
    """
    by_key: dict[Any, R] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in names)
        what = f"two rows for {', '.join(map(str, key))}"
        same = by_key.setdefault(key, row) == row
        check(same, what, where=str(folder), mend="Run the bench again", error=Damaged)

    return by_key


def _floats(table: pa.Table, name: str) -> Array:
    values = pc.cast(table[name], pa.float64())

    return np.asarray(values.to_numpy(), dtype=np.float64)
