"""The table of a run on the console, at most a hundred columns wide."""

from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from offkey.detect import ControlMetrics, DetectorMetrics, MetricInterval, RunMetrics
from offkey.report._format import DASH, count, decimal, plain_text
from offkey.report.run_page import drift_sentence

__all__ = ["print_table"]

_WIDEST = 100
_LONGEST_NAME = 32
_ESTIMATES = {
    "AUROC": "auroc",
    "agrees": "agrees",
    "disagrees": "disagrees",
    "TPR@1%": "tpr_at_1pct_fpr",
}
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "detector": "left",
    "AUROC": "left",
    "agrees": "right",
    "disagrees": "right",
    "TPR@1%": "right",
    "flagged": "right",
    "mode": "left",
    "cost": "left",
}


def print_table(metrics: RunMetrics, *, console: Console | None = None) -> None:
    """Prints detectors with their controls, modes and intervals.

    Args:
        metrics: of a run.
        console: where to print; standard output by default.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal or console.width > _WIDEST:
        console.width = _WIDEST
    lines = [_detector(row) for row in metrics.detectors]
    controls = [_control(row) for row in metrics.controls]
    hidden = _hidden(metrics, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name, justify in _COLUMNS.items():
        if name not in hidden:
            longest = max(len(row.get(name, "")) for row in (*lines, *controls))
            whole = name != "cost" and longest <= _LONGEST_NAME
            table.add_column(name, justify=justify, overflow="fold", no_wrap=whole)
    for row in lines:
        table.add_row(*(text for name, text in row.items() if name not in hidden))
    table.add_section()
    for row in controls:
        table.add_row(*(row.get(name, Text()) for name in _COLUMNS if name not in hidden))
    console.print(table)
    for line in _below(metrics):
        console.print(Text(line))


def _hidden(metrics: RunMetrics, width: int) -> set[str]:
    """Columns that no row fills, and those for which a narrow console has no room."""
    rows = metrics.detectors
    hidden = {
        column
        for column, name in _ESTIMATES.items()
        if all(getattr(row, name) is None for row in rows)
    }
    if any(c.auroc for c in metrics.controls):
        hidden.discard("AUROC")

    if width < _WIDEST - 4:
        hidden.add("cost")
    if width < _WIDEST - 16:
        hidden |= {"agrees", "disagrees", "TPR@1%"}

    return hidden


def _detector(row: DetectorMetrics) -> dict[str, Text]:
    flagged = DASH if row.flagged is None else count(row.flagged)
    if row.flagged is not None and row.expected is not None:
        flagged += f" ({count(row.expected)})"

    return {
        "detector": Text(plain_text(row.detector), style="bold"),
        "AUROC": _estimate(row.auroc),
        "agrees": _bare(row.agrees),
        "disagrees": _bare(row.disagrees),
        "TPR@1%": Text(decimal(row.tpr_at_1pct_fpr)),
        "flagged": Text(flagged),
        "mode": Text(row.mode),
        "cost": Text(row.cost),
    }


def _control(row: ControlMetrics) -> dict[str, Text]:
    return {
        "detector": Text(plain_text(row.control)),
        "AUROC": _estimate(row.auroc),
        "mode": Text("control", style="dim"),
    }


def _below(metrics: RunMetrics) -> list[str]:
    lines = [f"flagged at α = {metrics.alpha} (in brackets: expected if nothing is anomalous)"]
    if any(row.auroc for row in metrics.detectors):
        lines[0] = f"AUROC with 95 % intervals; {lines[0]}"
    else:
        lines.append("No AUROC: the test prompts carry no labels of both classes.")
    for control in metrics.controls:
        if control.excess is not None:
            lines.append(f"excess over {control.control}: {_span(control.excess)}")
    for row in metrics.detectors:
        lines += [f"{row.detector}: {name} {DASH} {why}" for name, why in row.reasons.items()]
        if row.dropped:
            lines.append(f"{row.detector}: {count(row.dropped)} prompts have no score")
    warnings = [drift_sentence(d) for d in metrics.drift if d.warn] + list(metrics.warnings)

    return [plain_text(line) for line in (*lines, *(f"warning: {w}" for w in warnings))]


def _bare(value: MetricInterval | None) -> Text:
    return Text(decimal(value.value if value else None))


def _estimate(value: MetricInterval | None) -> Text:
    if value is None:
        return Text(DASH)
    figure, _, span = _span(value).partition(" ")

    return Text.assemble((figure, "bold"), f" {span}" if span else "")


def _span(value: MetricInterval) -> str:
    if value.low is None or value.high is None:
        return decimal(value.value)

    return f"{decimal(value.value)} {decimal(value.low, 2)}–{decimal(value.high, 2)}"
