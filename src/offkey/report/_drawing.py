"""A figure, painted for a page or as a file of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ._svg import SERIES, house_style, ink, new_figure, plain_ticks, to_svg

__all__ = ["Drawing", "series_dash", "series_ink"]

_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Drawing:
    """A figure, painted when it is asked for.

    Attributes:
        name: slug, unique on a page.
        title: what the figure is.
        description: what it shows, in words.
        paint: draws into axes, in colours from :func:`offkey.report._svg.ink`.
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


def series_ink(place: int) -> str:
    """The ink of the series at ``place``; they come round again after eight."""
    return f"s{place % SERIES + 1}"


def series_dash(place: int) -> Any:
    """The dash of the series at ``place``: whole lines first, so colour is not alone."""
    return _DASHES[(place // SERIES) % len(_DASHES)]


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
