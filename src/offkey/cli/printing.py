"""Tables on the console."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

__all__ = ["print_rows"]

MOST = 25
WIDTH = 160
"""Characters in a line where the output is a file or a pipe."""


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    by: str = "score",
    hidden: Sequence[str] = ("detector", "status"),
    most: int = MOST,
) -> None:
    """Prints the rows with the highest ``by``; leaves out ``hidden`` and empty columns."""
    if not rows:
        print(f"{title}: there is nothing to score")
        return
    ordered = sorted(rows, key=lambda row: (row[by] is None, -(row[by] or 0.0)))
    shown = [name for name in rows[0] if name not in hidden and any(row[name] for row in rows)]
    table = Table(box=None, pad_edge=False)
    for name in shown:
        is_text = isinstance(rows[0][name], str)
        justify: Literal["left", "right"] = "left" if is_text else "right"
        # Words may wrap where the terminal is narrow; half a number would be a wrong one.
        widest = max(len(_text(row[name])) for row in ordered[:most])
        least = None if is_text else max(len(name), widest)
        table.add_column(name, justify=justify, overflow="fold", min_width=least)
    for row in ordered[:most]:
        table.add_row(*(_text(row[name]) for name in shown))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(title)
    console.print(table)
    if len(rows) > most:
        console.print(f"… and {len(rows) - most} more; --out FILE or --json gives them all")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else ""

    return f"{value:.4g}" if isinstance(value, float) else str(value)
