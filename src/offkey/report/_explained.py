"""What was found out about single prompts, as the page shows it."""

from dataclasses import dataclass

from offkey.errors import Mismatch

from ._files import parse, read_json
from ._format import plain_text, significant
from ._run import Run
from ._schema import Explained, Explanations, LatentShare, ReadOut, SiteShare, TellingWord, Token
from ._sites import site_order

__all__ = ["ExplainedCard", "explained", "telling"]

_FILE = "explanations.json"
_FORMAT = 1
_LONGEST = 2_000
_MOST_BARS = 6
_MOST_WORDS = 12
_MOST_TOKENS = 3
_LEAST = 0.005
_WIDTH = 100.0

Tokens = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Share:
    """One site's bar: what it adds to the score."""

    site: str
    share: str
    standardised: str
    x: float
    width: float
    lowers: bool


@dataclass(frozen=True)
class Line:
    """A name, its figure and what it is compared with."""

    name: str
    figure: str
    about: str


@dataclass(frozen=True)
class Lens:
    """Tokens read at a layer, and beside them those of trusted prompts."""

    site: str
    tokens: Tokens
    beside: tuple[Tokens, ...]


@dataclass(frozen=True)
class Near:
    """A trusted prompt near by."""

    id: str
    text: str | None
    distance: str


@dataclass(frozen=True)
class ExplainedCard:
    """One prompt's explanation, in words and figures."""

    id: str
    detector: str
    text: str | None
    score: float
    p_value: float | None
    flagged: bool | None
    combine: str
    shares: tuple[Share, ...]
    rest: str
    swaps: tuple[Line, ...]
    heads: tuple[Line, ...]
    latents: tuple[Line, ...]
    dictionary: str
    lens: tuple[Lens, ...]
    nearest: tuple[Near, ...]
    notes: tuple[tuple[str, str], ...]


def explained(run: Run, *, redact: bool = False) -> list[ExplainedCard]:
    """The explanations in the folder, those of the highest scores first."""
    told = _read(run).prompts if (run.folder / _FILE).exists() else []

    return [_card(row, redact) for row in sorted(told, key=lambda row: (-row.score, row.id))]


def telling(run: Run) -> list[TellingWord]:
    """Words that go with high scores, the least probable first."""
    return _read(run).words[:_MOST_WORDS] if (run.folder / _FILE).exists() else []


def _read(run: Run) -> Explanations:
    path = run.folder / _FILE
    found = parse(Explanations, read_json(path), where=str(path))
    if found.format > _FORMAT:
        raise Mismatch(f"format {found.format} is later than this version's {_FORMAT}",
                       where=str(path), mend="Use the offkey version that wrote it")  # fmt: skip

    return found


def _card(row: Explained, redact: bool) -> ExplainedCard:
    notes = dict(row.notes)
    if redact:
        notes["swaps"] = "texts are redacted"
    shares, rest = _shares(row.sites)

    return ExplainedCard(
        id=row.id,
        detector=row.detector,
        text=_shown(row.text, redact),
        score=row.score,
        p_value=row.p_value,
        flagged=row.flagged,
        combine=row.combine,
        shares=shares,
        rest=rest,
        swaps=() if redact else tuple(
            Line(_swap(s.words, s.instead), significant(s.score), f"{significant(-s.share)}")
            for s in row.swaps if s.share > 0
        ),
        heads=tuple(
            Line(f"{h.site} head {h.head}", significant(h.effect), significant(h.usual))
            for h in row.heads
        ),
        latents=tuple(_latent(one) for one in row.latents),
        dictionary=row.latents[0].site if row.latents else "",
        lens=tuple(_lens(one) for one in sorted(row.read_outs, key=lambda r: site_order(r.site))),
        nearest=tuple(
            Near(n.id, _shown(n.text, redact), significant(n.distance)) for n in row.nearest
        ),
        notes=tuple((_PARTS.get(part, part), why) for part, why in notes.items()),
    )  # fmt: skip


_PARTS = {
    "sites": "Sites",
    "swaps": "Words",
    "heads": "Heads",
    "latents": "Latents",
    "read_outs": "Logit lens",
}


def _shares(sites: list[SiteShare]) -> tuple[tuple[Share, ...], str]:
    """Bars of the largest shares, in the model's order, and a sentence about the others."""
    largest = sorted(sites, key=lambda s: -abs(s.share))
    kept = sorted(largest[:_MOST_BARS], key=lambda s: site_order(s.site))
    top = max(0.0, *(s.share for s in kept))
    bottom = min(0.0, *(s.share for s in kept))
    unit = _WIDTH / ((top - bottom) or 1.0)
    bars = tuple(
        Share(
            site=s.site,
            share=significant(s.share),
            standardised=significant(s.standardised),
            x=round((min(s.share, 0.0) - bottom) * unit, 2),
            width=round(max(abs(s.share) * unit, 0.5), 2),
            lowers=s.share < 0,
        )
        for s in kept
    )
    others = largest[_MOST_BARS:]
    total = significant(sum(s.share for s in others))
    which = "the other site adds" if len(others) == 1 else f"the other {len(others)} sites add"

    return bars, f"{which} {total}" if others else ""


def _latent(row: LatentShare) -> Line:
    tokens = ", ".join(_quoted(token) for token in row.promotes)
    often = "never" if row.trusted == 0 else f"on {100 * row.trusted:.2g} %"

    return Line(str(row.latent), significant(row.activation),
                often + (f" · raises {tokens}" if tokens else ""))  # fmt: skip


def _lens(row: ReadOut) -> Lens:
    return Lens(row.site, _tokens(row.tokens), tuple(_tokens(one) for one in row.beside))


def _tokens(tokens: list[Token]) -> Tokens:
    return tuple(
        (_quoted(t.token), f"{100 * t.probability:.0f} %")
        for n, t in enumerate(tokens[:_MOST_TOKENS])
        if n == 0 or t.probability >= _LEAST
    )


def _quoted(token: str) -> str:
    """A token with its spaces made visible."""
    return plain_text(token.replace(" ", "␣").replace("\n", "⏎").replace("\xa0", "‹U+00A0›"))


def _swap(words: str, instead: list[str]) -> str:
    others = " / ".join(f"“{plain_text(w, 60)}”" if w else "nothing" for w in instead)

    return f"“{plain_text(words, 60)}” → {others}" if words else f"nothing → {others}"


def _shown(text: str | None, redact: bool) -> str | None:
    return None if text is None or redact else plain_text(text, _LONGEST)
