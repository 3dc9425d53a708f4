"""The directive ``results``: tables and figures of ``docs/results/NAME.json``.

::

    ```{results} trusted_prompts
    :columns: detector, trusted, auroc
    :curve: trusted auroc detector
    ```

``curve`` names the horizontal axis, the vertical one and, if there are several lines, what tells
them apart; ``forest`` names the label and the figure; ``most`` cuts a long table. A file that is
not there yet is said so.
"""

import base64
import json
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from offkey.report import curve_svg, forest_svg, read_results, table_markdown

__all__ = ["MISSING", "origin", "setup", "words"]

LONGEST = 240
"""Characters of a command that are shown."""

MISSING = "*Not measured yet: there is no `docs/results/{name}.json`.*"


def words(text: str | None) -> list[str] | None:
    """A list given as ``a, b, c``; ``None`` where nothing was."""
    return [word.strip() for word in text.split(",")] if text else None


def origin(path: Path) -> str:
    """Says in one line which command made a results file, when and where."""
    made = json.loads(path.read_text(encoding="utf-8"))
    machine = made.get("machine", {})
    where = ", ".join(
        f"{machine[key]}{unit}"
        for key, unit in (("cpu", ""), ("cores", " cores"), ("memory_gib", " GiB"))
        if machine.get(key) is not None
    )
    day = str(made.get("finished", ""))[:10]

    command = shorten(made["command"], LONGEST, placeholder=" …")
    name = path.as_posix().rpartition("/results/")[2]
    whole = "" if command == made["command"] else f", whole in `docs/results/{name}`"

    return (
        f"Made by `{command}`{whole}"
        + (f" on {day}" if day else "")
        + (f" ({where})." if where else ".")
    )


def chosen(rows: list[dict[str, Any]], where: str | None) -> list[dict[str, Any]]:
    """The rows that have a value in a column, given as ``column = value``; else all."""
    if not where:
        return rows
    column, _, value = (word.strip() for word in where.partition("="))

    return [row for row in rows if str(row.get(column)) == value]


class Results(SphinxDirective):
    """A table, and where asked a figure, of one results file."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "where": directives.unchanged,
        "columns": directives.unchanged,
        "headings": directives.unchanged,
        "most": directives.positive_int,
        "digits": directives.nonnegative_int,
        "curve": directives.unchanged,
        "forest": directives.unchanged,
        "title": directives.unchanged,
        "logarithmic": directives.flag,
        "no-table": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """The nodes that stand in its place."""
        name = self.arguments[0]
        path = Path(self.env.srcdir) / "results" / f"{name}.json"
        self.env.note_dependency(str(path))
        if not path.exists():
            return self.parse_text_to_nodes(MISSING.format(name=name))
        rows = chosen(read_results(path), self.options.get("where"))
        text = origin(path)
        if "no-table" not in self.options:
            columns = words(self.options.get("columns"))
            heads = words(self.options.get("headings"))
            table = table_markdown(
                rows[: self.options.get("most")],
                columns,
                headings=dict(zip(columns or [], heads or [], strict=False)),
                digits=self.options.get("digits", 3),
            )
            text = f"{table}\n{text}"

        return [*self._figure(rows), *self.parse_text_to_nodes(text)]

    def _figure(self, rows: list[dict[str, Any]]) -> list[nodes.Node]:
        title = self.options.get("title", self.arguments[0].replace("_", " "))
        if "curve" in self.options:
            x, y, *series = self.options["curve"].split()
            known = [row for row in rows if row.get(x) is not None]
            drawn = curve_svg(
                known,
                x=x,
                y=y,
                title=title,
                series=series[0] if series else None,
                logarithmic="logarithmic" in self.options,
            )
        elif "forest" in self.options:
            label, value = self.options["forest"].split()
            drawn = forest_svg(rows, label=label, value=value, title=title, reference=0.5)
        else:
            return []
        data = base64.b64encode(drawn.encode()).decode()
        image = (
            f'<img class="figure" alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
        )

        return [nodes.raw("", image, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("results", Results)

    return {"parallel_read_safe": True}
