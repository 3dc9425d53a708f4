"""The page of a bench: its table, AUROC by task, by layer and against quirkiness."""

from dataclasses import dataclass
from pathlib import Path

from offkey.bench import Correlation, correlation
from offkey.detect import MetricInterval
from offkey.report._folders import BenchData, interval
from offkey.report._format import Notes, Strip, TableCell, flat, render, strip_of
from offkey.report.figures import bench_figures, quirkiness_points
from offkey.storage import write_text

__all__ = ["bench_report"]

_COLUMNS = ("average", "agrees", "disagrees")


@dataclass(frozen=True)
class BenchLine:
    """One detector's line of the table."""

    name: str
    about: str
    cells: dict[str, TableCell]
    strip: Strip | None
    n_tasks: int | None


def bench_report(folder: str | Path) -> Path:
    """Writes ``report.html`` into a bench folder: one file that needs no network.

    Args:
        folder: a bench folder with ``run.json`` and the tables of :mod:`offkey.bench.rows`.

    Returns:
        The path of the page.

    Raises:
        BadInput: no such folder or file.
        Damaged: a file was truncated or edited.
        Unwritable: the folder cannot be written.
    """
    bench = BenchData.read(folder)
    notes, task_notes = Notes(), Notes()
    lines = [_line(bench, name, notes) for name in bench.detectors]
    html = render(
        "bench.html.jinja",
        lines=lines,
        headline=_headline(bench),
        detectors=bench.detectors,
        heat=_heat(bench, task_notes),
        task_notes=task_notes.pairs,
        notes=notes.pairs,
        figures={drawing.name: drawing for drawing in bench_figures(bench)},
        correlations=[(name, _correlation(bench, name)) for name in bench.detectors],
        n_tasks=len(bench.tasks),
        settings=flat(bench.record.config),
        versions=flat(bench.record.versions),
    )
    page = bench.folder / "report.html"
    write_text(page, html)

    return page


def _line(bench: BenchData, name: str, notes: Notes) -> BenchLine:
    cells = {}
    for column in _COLUMNS:
        row = bench.table.get((name, column))
        value = None if row is None else interval(row.auroc, row.low, row.high)
        missing = f"no task has a figure for {name}, {column}"
        cells[column] = notes.cell(value, (row and row.reason) or missing)
    row = bench.table[name, "average"]
    missing = f"{name} was not fitted on the clean model"
    clean = interval(row.clean, row.clean_low, row.clean_high)
    excess = interval(row.excess, row.excess_low, row.excess_high)
    cells |= {"clean": notes.cell(clean, missing), "excess": notes.cell(excess, missing)}
    about = " · ".join(part for part in (row.mode, row.cost) if part)
    ends = [row.low for row in bench.table.values() if row.low is not None]
    start = 0.4 if min(ends, default=0.0) >= 0.4 else 0.0
    strip = strip_of(interval(row.auroc, row.low, row.high), start, row.clean)

    return BenchLine(name, about, cells, strip, row.n_tasks)


def _headline(bench: BenchData) -> str:
    best = bench.detectors[0]
    row = bench.table[best, "average"]
    if row.auroc is None:
        return "No detector has an average: see the reasons below."
    tied = [name for name in bench.detectors if _rounded(bench, name) == _rounded(bench, best)]
    who = f"{best} does best" if len(tied) == 1 else f"{len(tied)} detectors tie for the best"
    text = (
        f"{who}: AUROC {row.auroc:.3f} on average over "
        f"{row.n_tasks} task{'' if row.n_tasks == 1 else 's'}"
    )
    if len(tied) > 1:
        text += f" ({', '.join(tied)})"
    elif row.clean is not None:
        text += f"; on models without the anomaly {row.clean:.3f}"

    return text + "."


def _rounded(bench: BenchData, name: str) -> float | None:
    """The average of a detector as the page prints it."""
    value = bench.cell(name, "average")

    return None if value is None else round(value, 3)


def _heat(bench: BenchData, notes: Notes) -> list[tuple[str, str, list[tuple[TableCell, str]]]]:
    """Lines of the table of tasks: task, quirkiness, cells with the class of their colour."""
    lines = []
    for task in bench.tasks:
        cells = []
        for name in bench.detectors:
            value = bench.auroc.get((task, name))
            cells.append((notes.cell(value, "not measured"), _shade(value)))
        quirk = bench.quirkiness.get(task)
        lines.append((task, "–" if quirk is None else f"{quirk:.2f}".replace("-", "−"), cells))

    return lines


def _shade(value: MetricInterval | None) -> str:
    if value is None:
        return "none"
    step = min(4, int(abs(value.value - 0.5) / 0.1 + 0.5 + 1e-9))

    return "" if step == 0 else f"{'up' if value.value > 0.5 else 'down'}{step}"


def _correlation(bench: BenchData, name: str) -> Correlation:
    """Correlation of quirkiness and AUROC of one detector, over tasks."""
    points = quirkiness_points(bench, name)

    return correlation([quirk for _, quirk, _ in points], [auroc for _, _, auroc in points])
