"""Tables and figures for documents, made from results files so that no number is ever typed.

A results file's rows are flat objects. ``X_low`` and ``X_high`` are the interval of ``X``; a bare
``low`` and ``high`` are the interval of the value just before them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from offkey.errors import BadInput, check
from offkey.report._format import DASH, decimal, plain_text, significant
from offkey.report._svg import Drawing, ink, series_dash, series_ink
from offkey.storage import read_json

__all__ = ["curve_svg", "forest_svg", "read_results", "table_markdown", "truth_svg"]


Row = Mapping[str, Any]
_BOUND = re.compile(r"(?:.+_)?(low|high)")
_MARKS = "os^Dv<>P"
_SIGNS = "●■▲◆▼◀▶✚"


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results file, ``docs/results/NAME.json``.

    Raises:
        BadInput: there is no such file, or it has no rows.
        Damaged: it cannot be read as JSON.
    """
    content = read_json(Path(path), mend="Name a file that write_results has written")
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise BadInput("no rows", where=str(path), mend="A results file has a list named rows")

    return rows


def table_markdown(
    rows: Sequence[Row],
    columns: Sequence[str] | None = None,
    *,
    headings: Mapping[str, str] | None = None,
    digits: int = 3,
) -> str:
    """A Markdown table of results rows, with intervals in brackets and a dash for null.

    Args:
        rows: flat objects of one results file.
        columns: keys to show, in order; all without intervals' ends by default.
        headings: words for the head in place of keys, whose underscores become spaces.
        digits: digits after the point of figures that are not whole.

    Raises:
        BadValue: no rows, or a column that no row has.
    """
    check(bool(rows), "there are no rows to print", where="table_markdown")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = list(columns) if columns is not None else [k for k in keys if not _BOUND.fullmatch(k)]
    for name in shown:
        what, mend = f"no row has a column {name!r}", f"The rows have {', '.join(keys)}"
        check(name in keys, what, where="table_markdown", mend=mend)
    words = headings or {}
    right = [_is_number_column(rows, name) for name in shown]
    head = [_escape(words.get(name, name.replace("_", " "))) for name in shown]
    lines = [head, ["---:" if number else "---" for number in right]]
    lines += [[_cell(row, name, keys, digits) for name in shown] for row in rows]

    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def forest_svg(
    rows: Sequence[Row], *, label: str, value: str, title: str, reference: float | None = None
) -> str:
    """An SVG file of one dot and interval a row, the first row on top.

    Args:
        rows: flat objects; a row whose value is null is named with a dash.
        label: key of the row's name.
        value: key of the figure; its interval is found as in :func:`table_markdown`.
        title: what the figure shows.
        reference: where a line stands, such as 0.5 for chance.

    Raises:
        BadValue: a row lacks ``label`` or ``value``.
    """
    _need(rows, (label, value))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    names = [str(r[label]) + ("" if r[value] is not None else f" {DASH}") for r in rows]

    def paint(axes: Axes) -> None:
        if reference is not None:
            axes.axvline(reference, color=ink("muted"), linewidth=1, linestyle=(0, (2, 3)))
        for place, row in enumerate(rows):
            if row[value] is None:
                continue
            low, high = _bounds(row, value, keys)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=ink("accent"), alpha=0.5, linewidth=3)
            axes.plot([row[value]], [place], "o", color=ink("accent"), markersize=5)
        axes.set_yticks(range(len(rows)), names)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=value.replace("_", " "))
        axes.spines["left"].set_visible(False)

    text = "; ".join(f"{n}: {significant(r[value])}" for n, r in zip(names, rows, strict=True))

    return Drawing("forest", title, f"{text}.", paint, size=(560, 60 + 24 * len(rows))).file()


def curve_svg(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    title: str,
    series: str | None = None,
    logarithmic: bool = False,
) -> str:
    """An SVG file of a measured curve, with a band where rows have intervals.

    Args:
        rows: flat objects; a row whose ``y`` is null is a gap.
        x: key of the horizontal axis.
        y: key of the vertical axis; its interval is found as in :func:`table_markdown`.
        title: what the figure shows.
        series: key of the name of each line.
        logarithmic: whether the horizontal axis is logarithmic.

    Raises:
        BadValue: a row lacks one of the keys.
    """
    _need(rows, (x, y) if series is None else (x, y, series))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault("" if series is None else str(row[series]), []).append(row)

    def paint(axes: Axes) -> None:
        for i, line in enumerate(lines.values()):
            line.sort(key=lambda row: float(row[x]))
            across = [row[x] for row in line]
            ends = [_bounds(row, y, keys) for row in line]
            low, high = ([_gap(end[side]) for end in ends] for side in (0, 1))
            axes.fill_between(across, low, high, color=ink(series_ink(i)), alpha=0.15, linewidth=0)
            style: dict[str, Any] = {"color": ink(series_ink(i)), "linestyle": series_dash(i)}
            axes.plot(across, [_gap(row[y]) for row in line], marker="o", markersize=3.5, **style)
        if logarithmic:
            axes.set_xscale("log")
            marks = sorted({row[x] for row in rows})
            axes.set_xticks(marks, [f"{m:g}" for m in marks], minor=False)
            axes.minorticks_off()
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))

    text = "; ".join(
        f"{name + ': ' if name else ''}{significant(line[0][y])} at {line[0][x]} to "
        f"{significant(line[-1][y])} at {line[-1][x]}"
        for name, line in lines.items()
    )
    legend = [(n, series_ink(i)) for i, n in enumerate(lines)] if series is not None else []

    return Drawing("curve", title, f"{text}.", paint, legend).file()


def truth_svg(
    rows: Sequence[Mapping[str, Any]],
    *,
    truth: str,
    estimate: str,
    series: str,
    title: str,
    least: float = 1e-12,
) -> str:
    """An SVG file of one mark a row: the truth to the right, the estimate upwards.

    The dotted diagonal is where they agree. Rows whose estimate is null or below ``least`` stand
    hollow on the lower edge.

    Args:
        rows: flat objects of one results file.
        truth: key of the true value, above 0.
        estimate: key of the estimate.
        series: key of the name of each method.
        title: what the figure shows.
        least: where the vertical axis begins.

    Raises:
        BadValue: no rows, or a row lacks one of the keys.
    """
    has_all = all(key in row for row in rows for key in (truth, estimate, series))
    what = f"a row lacks {truth!r}, {estimate!r} or {series!r}"
    check(bool(rows) and has_all, what, where="truth_svg")
    methods = list(dict.fromkeys(str(row[series]) for row in rows))
    truths = [float(row[truth]) for row in rows]

    def paint(axes: Axes) -> None:
        ends = min(truths) / 2, max(truths) * 2
        axes.plot(ends, ends, color=ink("muted"), linewidth=1, linestyle=(0, (2, 3)))
        for place, method in enumerate(methods):
            own = [row for row in rows if row[series] == method]
            shown = [row for row in own if (row[estimate] or 0.0) >= least]
            style: dict[str, Any] = {
                "color": ink(series_ink(place)),
                "linestyle": "none",
                "markersize": 4.5,
            }
            mark = _MARKS[place % len(_MARKS)]
            axes.plot([r[truth] for r in shown], [r[estimate] for r in shown], mark, **style)
            rest = [row[truth] for row in own if row not in shown]
            axes.plot(rest, [least * 1.6**place] * len(rest), mark, fillstyle="none", **style)
        axes.set(xscale="log", yscale="log", xlim=ends, xlabel=truth, ylabel=estimate)
        axes.set_ylim(least / 2, 2.0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(base=100.0))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))

    counts = (
        f"{method}: {sum(row[series] == method and row[estimate] is not None for row in rows)} of "
        f"{sum(row[series] == method for row in rows)} targets with an estimate"
        for method in methods
    )
    legend = [
        (f"{_SIGNS[place % len(_SIGNS)]} {method}", series_ink(place))
        for place, method in enumerate(methods)
    ]
    text = "; ".join(counts)

    return Drawing("truths", title, f"{text}.", paint, legend, size=(560, 460)).file()


def _need(rows: Sequence[Row], names: Sequence[str]) -> None:
    check(bool(rows), "there are no rows to draw", where="figure")
    for i, row in enumerate(rows):
        for name in names:
            mend = f"The row has {', '.join(row)}"
            check(name in row, f"no column {name!r}", where=f"row {i}", mend=mend)


def _is_number_column(rows: Sequence[Row], name: str) -> bool:
    values = [row.get(name) for row in rows if row.get(name) is not None]

    return bool(values) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )


def _cell(row: Row, name: str, keys: Sequence[str], digits: int) -> str:
    value = row.get(name)
    low, high = _bounds(row, name, keys)
    text = _text(value, digits)
    if value is None or low is None or high is None:
        return text

    return f"{text} [{_text(low, digits)}, {_text(high, digits)}]"


def _text(value: Any, digits: int) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        is_plain = value == 0 or 10**-digits <= abs(value) < 1000

        return decimal(value, digits) if is_plain else significant(value)

    return _escape(str(value))


def _bounds(row: Row, name: str, keys: Sequence[str]) -> tuple[Any, Any]:
    """The ends of the interval of ``name``: its own, or the bare ones that follow it."""
    own = (row.get(f"{name}_low"), row.get(f"{name}_high"))
    if own != (None, None) or "low" not in keys:
        return own
    before = [key for key in keys[: keys.index("low")] if not _BOUND.fullmatch(key)]

    return (row.get("low"), row.get("high")) if before and before[-1] == name else (None, None)


def _escape(text: str) -> str:
    flat = " ".join(plain_text(text).split())

    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", flat)


def _gap(value: Any) -> float:
    return float("nan") if value is None else float(value)
