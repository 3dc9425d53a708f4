"""Matplotlib figures as SVG in the style of the page: its fonts, its colours, light or dark.

Matplotlib writes its own colours, fonts and ids. Figures here are drawn in named inks, which
become CSS variables; style attributes become presentation attributes, which a strict content
security policy allows; ids are made unique; a title and a description are added for readers who
cannot see the figure. The same figure gives the same bytes.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

__all__ = ["Drawing", "ink", "palette", "series_dash", "series_ink"]


SERIES: Final = 8
_NAMES: Final = (
    *("ink", "muted", "grid", "accent", "trusted", "normal", "anomalous", "paper"),
    *(f"s{i}" for i in range(1, SERIES + 1)),
)
_INKS: Final = {name: f"#0101{i:02x}" for i, name in enumerate(_NAMES)}
_BY_HEX: Final = {code: name for name, code in _INKS.items()}
_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
_ATTRIBUTES: Final = frozenset(
    {
        "fill",
        "stroke",
        "stroke-width",
        "stroke-linecap",
        "stroke-linejoin",
        "stroke-dasharray",
        "stroke-dashoffset",
        "stroke-opacity",
        "fill-opacity",
        "opacity",
        "text-anchor",
        "fill-rule",
        "stroke-miterlimit",
        "font-weight",
    }
)
_MARGIN: Final = 14
_FONT: Final = re.compile(r"(?:(?P<weight>bold|[1-9]00) )?(?P<size>[\d.]+)px")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Drawing:
    """A figure, painted when it is asked for.

    Attributes:
        name: slug, unique on a page.
        title: what the figure is.
        description: what it shows, in words.
        paint: draws into axes, in colours from :func:`ink`.
        legend: pairs of label and ink.
        size: width and height in CSS pixels.
    """

    name: str
    title: str
    description: str
    paint: Callable[[Axes], None]
    legend: Sequence[tuple[str, str]] = ()
    size: tuple[float, float] = (460, 300)

    def svg(self) -> str:
        """The element for a page, which gives it colours and writes the legend as text."""
        return self._draw(standalone=False)

    def file(self) -> str:
        """A whole SVG file, with legend and palette."""
        return self._draw(standalone=True)

    def _draw(self, *, standalone: bool) -> str:
        with house_style():
            figure = new_figure(*self.size)
            axes = figure.add_subplot()
            self.paint(axes)
            plain_ticks(axes)
            if standalone:
                _draw_legend(figure, self.legend)

            return to_svg(
                figure,
                self.name,
                title=self.title,
                description=self.description,
                standalone=standalone,
            )


def ink(name: str) -> str:
    """The stand-in colour that becomes the page's variable ``--name``."""
    return _INKS[name]


def series_ink(place: int) -> str:
    """The ink of the series at ``place``; after eight they repeat."""
    return f"s{place % SERIES + 1}"


def series_dash(place: int) -> Any:
    """The dash of the series at ``place``: where inks repeat, dashes differ."""
    return _DASHES[(place // SERIES) % len(_DASHES)]


def palette() -> str:
    """The style sheet that gives the variables their colours, light and dark."""
    return (files("offkey.report") / "templates" / "palette.css").read_text(encoding="utf-8")


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings for the figures drawn inside; the process's own come back after."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.hashsalt": "offkey",
                "svg.fonttype": "none",
                "text.parse_math": False,
                "axes.unicode_minus": True,
                "font.size": 11,
                "axes.edgecolor": ink("muted"),
                "axes.labelcolor": ink("ink"),
                "text.color": ink("ink"),
                "xtick.color": ink("muted"),
                "ytick.color": ink("muted"),
                "xtick.labelcolor": ink("ink"),
                "ytick.labelcolor": ink("ink"),
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.8,
                "axes.grid": True,
                "grid.color": ink("grid"),
                "grid.linewidth": 0.7,
                "axes.axisbelow": True,
                "axes.facecolor": "none",
                "figure.facecolor": "none",
                "lines.linewidth": 1.8,
                "lines.solid_capstyle": "round",
                "legend.frameon": False,
                "xtick.major.size": 3,
                "ytick.major.size": 0,
                "xtick.major.pad": 5,
            }
        )
        yield


def plain_ticks(axes: Axes) -> None:
    """Writes powers on logarithmic axes as numbers: figures hold text, and set no mathematics."""
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def new_figure(width: float = 460, height: float = 300) -> Figure:
    """An empty figure of so many CSS pixels; for use within :func:`house_style`."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    FigureCanvasSVG(figure)

    return figure


def _draw_legend(figure: Figure, legend: Sequence[tuple[str, str]]) -> None:
    if not legend:
        return
    handles = [
        Line2D([], [], color=ink(colour), linestyle=series_dash(i), label=text)
        for i, (text, colour) in enumerate(legend)
    ]
    longest = max(len(text) for text, _ in legend)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if longest < 30 and len(legend) > 1 else 1,
        fontsize=9.5,
    )


def to_svg(
    figure: Figure, name: str, *, title: str, description: str, standalone: bool = False
) -> str:
    """The figure as one ``<svg>`` element.

    Args:
        figure: drawn within :func:`house_style`, in colours from :func:`ink`.
        name: a slug that no other figure of the page has; prefixes every id.
        title: what the figure is, for screen readers and tooltips.
        description: what it shows, in words and numbers.
        standalone: a file of its own, with palette, font and size, instead of a part of a page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "offkey", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        _clean(element, name)
    _drop(root)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "class": "plot"})
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    _describe(root, name, title, description)
    if standalone:
        _stand_alone(root, box)
    ET.indent(root, space="")

    return ET.tostring(root, encoding="unicode") + "\n"


def _clean(element: ET.Element, name: str) -> None:
    element.tag = element.tag.partition("}")[2]
    attributes = dict(element.attrib)
    element.attrib.clear()
    for key, value in attributes.items():
        if key == "style":
            element.attrib.update(_presentation(value))
        elif key == "id":
            element.set("id", f"{name}-{value}")
        elif key == _XLINK:
            element.set("href", f"#{name}-{value.removeprefix('#')}")
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        else:
            element.set(key, _colour(value) if key in {"fill", "stroke"} else value)


def _presentation(style: str) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for part in style.split(";"):
        key, _, value = (s.strip() for s in part.partition(":"))
        if key in _ATTRIBUTES:
            attributes[key] = _colour(value)
        elif key == "font-size":
            attributes[key] = value.removesuffix("px")
        elif key == "font" and (match := _FONT.match(value)):
            attributes["font-size"] = match["size"]
            if match["weight"]:
                attributes["font-weight"] = match["weight"]

    return attributes


def _colour(value: str) -> str:
    return f"var(--{_BY_HEX[value]})" if value in _BY_HEX else value


def _drop(root: ET.Element) -> None:
    """Removes the metadata, the global style sheet and ids that nothing refers to."""
    used: set[str] = set()
    for element in root.iter():
        used.update(v for k, v in element.attrib.items() if k in {"href", "clip-path"})
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {"metadata", "style"}:
                parent.remove(child)
        own = parent.get("id")
        if own is not None and not {f"#{own}", f"url(#{own})"} & used:
            del parent.attrib["id"]


def _describe(root: ET.Element, name: str, title: str, description: str) -> None:
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)


def _stand_alone(root: ET.Element, box: str) -> None:
    _, _, width, height = (float(part) for part in box.split())
    width, height = width + 2 * _MARGIN, height + 2 * _MARGIN
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"{-_MARGIN} {-_MARGIN} {width:g} {height:g}",
            "width": f"{width:g}",
            "height": f"{height:g}",
        }
    )
    style = ET.Element("style")
    style.text = palette() + (
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}\n"
        "svg{background:var(--paper)}\n"
    )
    root.insert(0, style)
