"""How numbers, texts, sites, cells and pages are written: one way everywhere in this room."""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from offkey.detect import MetricInterval
from offkey.report._svg import palette

__all__ = [
    "DASH",
    "Notes",
    "Strip",
    "TableCell",
    "block_of",
    "count",
    "decimal",
    "duration",
    "flat",
    "kind_of",
    "moment",
    "p_value",
    "plain_text",
    "ranges",
    "render",
    "significant",
    "site_order",
    "strip_of",
]

DASH: Final = "–"
_ISO: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(Z|\+00:00)?")
# Joiners and marks that ordinary writing in some scripts needs.
_ORDINARY_FORMAT = frozenset("\u200c\u200d\u200e\u200f\u061c\u00ad")


def decimal(value: float | None, digits: int = 3) -> str:
    """A figure between 0 and 1, such as an AUROC; a dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """A number of any size to ``digits`` significant digits; a dash where there is none."""
    if value is None:
        return DASH

    return (f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}").replace(
        "-", "−"
    )


def count(value: float | None) -> str:
    """A count, thousands apart; one decimal where it is not whole (an expected count)."""
    if value is None:
        return DASH

    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def moment(written: str | None) -> str:
    """A time in ISO 8601 as people write it; anything else as it stands."""
    if written is None:
        return DASH

    return _ISO.sub(lambda m: f"{m[1]} {m[2]} UTC" if m[3] else f"{m[1]} {m[2]}", written)


def p_value(value: float | None) -> str:
    """A p-value to two significant digits."""
    if value is None:
        return DASH

    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``0.8 s``, ``41 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"

    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain_text(text: str, limit: int | None = None) -> str:
    """A prompt's text with what the eye cannot see made visible.

    Control characters, direction overrides, zero-width spaces and tag characters are written as
    ``‹U+202E›``: an auditor must see what the model saw. Line breaks and tabs stay.

    Args:
        text: any text, hostile ones too.
        limit: longest text kept whole; of a longer one the start is kept and the rest counted.
    """
    tail = ""
    if limit is not None and len(text) > limit:
        tail = f" … ({len(text) - limit:,} more characters)"
        text = text[:limit]

    return "".join(_visible(c) for c in text.replace("\r\n", "\n")) + tail


def _visible(character: str) -> str:
    if character in "\n\t" or character in _ORDINARY_FORMAT:
        return character
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
        return f"‹U+{ord(character):04X}›"

    return character


_BLOCK = re.compile(r"([a-z_]+)\.(\d+)")
_ENDS = {"embed": -1, "final": 1, "logits": 2}
# Places within a block in the order in which they are computed.
_KINDS = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "resid_post",
)


def block_of(site: str) -> int | None:
    """The block that a site lies in; null for ``embed``, ``final``, module paths and the like."""
    match = _BLOCK.fullmatch(site)

    return int(match[2]) if match else None


def kind_of(site: str) -> str:
    """The site's name without the number of its block."""
    match = _BLOCK.fullmatch(site)

    return match[1] if match else site


def site_order(site: str) -> tuple[int, int, int, str]:
    """Sort key: ``embed``, the blocks from the ground up, ``final``, ``logits``, the rest."""
    block = block_of(site)
    if block is None:
        return (_ENDS.get(site, 3), 0, 0, site)
    kind = kind_of(site)

    return (0, block, _KINDS.index(kind) if kind in _KINDS else len(_KINDS), site)


def ranges(sites: Sequence[str]) -> list[str]:
    """Names of sites, with consecutive blocks joined: ``resid_post.15-29``."""
    runs: list[tuple[str, str]] = []
    for site in sites:
        block = block_of(site)
        first, last = runs[-1] if runs else ("", "")
        if block is not None and kind_of(last) == kind_of(site) and block_of(last) == block - 1:
            runs[-1] = (first, site)
        else:
            runs.append((site, site))

    return [a if a == b else f"{a}-{block_of(b)}" for a, b in runs]


@dataclass(frozen=True)
class TableCell:
    """What stands in a cell: the figure, its interval, the mark of a note."""

    text: str
    interval: str = ""
    note: str = ""


@dataclass
class Notes:
    """Reasons why figures are missing; the same reason has one mark."""

    reasons: list[str] = field(default_factory=list)

    def mark(self, reason: str) -> str:
        """The mark of ``reason``: a letter, then numbers."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        place = self.reasons.index(reason)

        return chr(ord("a") + place) if place < 26 else str(place + 1)

    def cell(self, value: MetricInterval | float | None, reason: str) -> TableCell:
        """The figure with its interval, or a dash marked with ``reason``."""
        if value is None:
            return TableCell(DASH, note=self.mark(reason))
        if isinstance(value, float):
            return TableCell(decimal(value))
        if value.low is None or value.high is None:
            return TableCell(decimal(value.value))

        return TableCell(decimal(value.value), f"{decimal(value.low)}–{decimal(value.high)}")

    def count(self, value: float | None, reason: str) -> TableCell:
        """A count, or a dash marked with ``reason``."""
        return (
            TableCell(DASH, note=self.mark(reason)) if value is None else TableCell(count(value))
        )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Marks and reasons, in the order of the marks."""
        return [(self.mark(reason), reason) for reason in self.reasons]


@dataclass(frozen=True)
class Strip:
    """Places, 0 to 100, of an AUROC on a line that begins at ``start``."""

    value: float
    low: float
    high: float
    chance: float | None
    control: float | None


def strip_of(value: MetricInterval | None, start: float, control: float | None) -> Strip | None:
    """Where an AUROC and its interval stand on a line from ``start`` to 1."""
    if value is None:
        return None

    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - start) / (1 - start))), 2)

    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high

    return Strip(
        place(value.value),
        place(low),
        place(high),
        place(0.5) if start < 0.5 else None,
        None if control is None else place(control),
    )


def flat(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a text, in their order."""
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value):
            for i, part in enumerate(value):
                pairs += flat({str(i): part}, f"{name}.")
        elif isinstance(value, (list, tuple)):
            pairs.append((name, ", ".join(str(v) for v in value) or "none"))
        else:
            pairs.append((name, "none" if value is None else str(value)))

    return pairs


def render(template: str, **context: Any) -> str:
    """The page, with its style sheet inside and a policy that forbids everything else.

    Texts are escaped; only figures made by this package pass as they are.
    """
    css = palette() + (files("offkey.report") / "templates" / "page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )

    return (
        _environment().get_template(template).render(css=Markup(css), policy=policy, **context)
        + "\n"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("offkey.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {
            "count": count,
            "decimal": decimal,
            "duration": duration,
            "moment": moment,
            "p_value": p_value,
            "significant": significant,
            "visible": plain_text,
            "breakable": _breakable,
            "svg": lambda drawing: Markup(drawing.svg()),
        }
    )

    return environment


def _breakable(name: str) -> Markup:
    """A name that may be broken after its slashes and dots."""
    return Markup("").join(
        escape(part) + (Markup("<wbr>") if part in "/._" else "")
        for part in re.split(r"([/._])", name)
        if part
    )
