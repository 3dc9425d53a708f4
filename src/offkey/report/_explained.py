"""Explanations of single prompts, as the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offkey.explain import (
    Explanation,
    FlaggedWord,
    LatentShare,
    ReadOut,
    SiteShare,
    Token,
    read_explanations,
)
from offkey.report._format import plain_text, significant, site_order

__all__ = ["ExplanationCard", "explanation_cards", "word_rows"]

_LONGEST = 2_000
_MOST_BARS = 6
_MOST_WORDS = 12
_MOST_TOKENS = 3
_LEAST = 0.005
_WIDTH = 100.0

Tokens = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ShareBar:
    """One site's bar: what it adds to the score."""

    site: str
    share: str
    standardised: str
    x: float
    width: float
    lowers: bool


@dataclass(frozen=True)
class CardLine:
    """A name, its figure and what it is compared with."""

    name: str
    figure: str
    about: str


@dataclass(frozen=True)
class LensLine:
    """Tokens read at a layer, and beside them those of trusted prompts."""

    site: str
    tokens: Tokens
    beside: tuple[Tokens, ...]


@dataclass(frozen=True)
class NearPrompt:
    """A trusted prompt near by."""

    id: str
    text: str | None
    distance: str


@dataclass(frozen=True)
class ExplanationCard:
    """One prompt's explanation, in words and figures."""

    id: str
    detector: str
    text: str | None
    score: float
    p_value: float | None
    flagged: bool | None
    combine: str
    shares: tuple[ShareBar, ...]
    rest: str
    swaps: tuple[CardLine, ...]
    heads: tuple[CardLine, ...]
    latents: tuple[CardLine, ...]
    dictionary: str
    lens: tuple[LensLine, ...]
    nearest: tuple[NearPrompt, ...]
    notes: tuple[tuple[str, str], ...]


def explanation_cards(folder: Path, *, redact: bool = False) -> list[ExplanationCard]:
    """The explanations in a run folder, those of the highest scores first."""
    explanations = read_explanations(folder)
    prompts = explanations.prompts if explanations else ()

    return [_card(row, redact) for row in sorted(prompts, key=lambda row: (-row.score, row.id))]


def word_rows(folder: Path) -> Sequence[FlaggedWord]:
    """Words that go with high scores, the least probable first."""
    explanations = read_explanations(folder)

    return explanations.words[:_MOST_WORDS] if explanations else ()


def _card(row: Explanation, redact: bool) -> ExplanationCard:
    notes = dict(row.notes)
    if redact:
        notes["swaps"] = "texts are redacted"
    shares, rest = _shares(row.sites)
    lowering = [] if redact else [swap for swap in row.swaps if swap.share > 0]

    return ExplanationCard(
        id=row.id,
        detector=row.detector,
        text=_shown(row.text, redact),
        score=row.score,
        p_value=row.p_value,
        flagged=row.flagged,
        combine=row.combine,
        shares=shares,
        rest=rest,
        swaps=tuple(
            CardLine(_swap(s.words, s.instead), significant(s.score), significant(-s.share))
            for s in lowering
        ),
        heads=tuple(
            CardLine(f"{h.site} head {h.head}", significant(h.effect), significant(h.usual))
            for h in row.heads
        ),
        latents=tuple(_latent(latent) for latent in row.latents),
        dictionary=row.latents[0].site if row.latents else "",
        lens=tuple(_lens(r) for r in sorted(row.read_outs, key=lambda r: site_order(r.site))),
        nearest=tuple(
            NearPrompt(n.id, _shown(n.text, redact), significant(n.distance)) for n in row.nearest
        ),
        notes=tuple((_PARTS.get(part, part), why) for part, why in notes.items()),
    )


_PARTS = {
    "sites": "Sites",
    "swaps": "Words",
    "heads": "Heads",
    "latents": "Latents",
    "read_outs": "Logit lens",
}


def _shares(sites: Sequence[SiteShare]) -> tuple[tuple[ShareBar, ...], str]:
    """Bars of the largest shares, in the model's order, and a sentence about the others."""
    largest = sorted(sites, key=lambda s: -abs(s.share))
    kept = sorted(largest[:_MOST_BARS], key=lambda s: site_order(s.site))
    top = max(0.0, *(s.share for s in kept))
    bottom = min(0.0, *(s.share for s in kept))
    unit = _WIDTH / ((top - bottom) or 1.0)
    bars = tuple(
        ShareBar(
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


def _latent(row: LatentShare) -> CardLine:
    tokens = ", ".join(_quoted(token) for token in row.promotes)
    often = "never" if row.trusted == 0 else f"on {100 * row.trusted:.2g} %"

    about = often + (f" · raises {tokens}" if tokens else "")

    return CardLine(str(row.latent), significant(row.activation), about)


def _lens(row: ReadOut) -> LensLine:
    return LensLine(row.site, _tokens(row.tokens), tuple(_tokens(one) for one in row.beside))


def _tokens(tokens: Sequence[Token]) -> Tokens:
    return tuple(
        (_quoted(t.token), f"{100 * t.probability:.0f} %")
        for n, t in enumerate(tokens[:_MOST_TOKENS])
        if n == 0 or t.probability >= _LEAST
    )


def _quoted(token: str) -> str:
    """A token with its spaces made visible."""
    return plain_text(token.replace(" ", "␣").replace("\n", "⏎").replace("\xa0", "‹U+00A0›"))


def _swap(words: str, instead: Sequence[str]) -> str:
    others = " / ".join(f"“{plain_text(w, 60)}”" if w else "nothing" for w in instead)

    return f"“{plain_text(words, 60)}” → {others}" if words else f"nothing → {others}"


def _shown(text: str | None, redact: bool) -> str | None:
    return None if text is None or redact else plain_text(text, _LONGEST)
