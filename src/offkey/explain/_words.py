"""Prompts without each of their words in turn."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from offkey.data import Prompts
from offkey.explain._explanation import WordShare

__all__ = ["MOST_WORDS", "Variant", "variants", "word_shares"]

Array = np.ndarray
MOST_WORDS = 80
SPACED = re.compile(r"\S+")


@dataclass(frozen=True)
class Variant:
    """A prompt that lacks one word.

    Attributes:
        id: of the variant.
        source: id of the whole prompt.
        word: what is left out.
        place: its number among the words.
    """

    id: str
    source: str
    word: str
    place: int


def variants(prompts: Prompts) -> tuple[list[Variant], Prompts | None]:
    """Every prompt of at most :data:`MOST_WORDS` words without each word, and what they are.

    Chats, prompts of one word and longer ones have none.
    """
    told: list[Variant] = []
    rows: list[dict[str, Any]] = []
    for row in prompts.without("label", "agrees").rows():
        text = row.get("prompt")
        found = list(SPACED.finditer(text or ""))
        if not 1 < len(found) <= MOST_WORDS:
            continue
        for place, match in enumerate(found):
            variant = Variant(f"{row['id']} without {place}", row["id"], match[0], place)
            told.append(variant)
            rows.append({**row, "id": variant.id, "prompt": _without(text, match.span())})
    if not rows:
        return told, None

    return told, Prompts({name: [row[name] for row in rows] for name in rows[0]})


def word_shares(
    made: list[Variant],
    without: Float64[Array, " variants"],
    whole: dict[str, float],
    count: int,
) -> dict[str, tuple[WordShare, ...]]:
    """The words without which each prompt's score falls most, by the prompt's id.

    Args:
        made: the prompts that lack a word.
        without: their scores; NaN where there is none.
        whole: score of each whole prompt, by id.
        count: most words of each.
    """
    told: dict[str, list[WordShare]] = {}
    for variant, score in zip(made, without.tolist(), strict=True):
        if not np.isnan(score):
            fall = whole[variant.source] - score
            share = WordShare(variant.word, variant.place, score, fall)
            told.setdefault(variant.source, []).append(share)

    return {id: tuple(sorted(row, key=lambda w: -w.share)[:count]) for id, row in told.items()}


def _without(text: str, span: tuple[int, int]) -> str:
    """The text lacking a span and the spaces that parted it from what stands before or after."""
    head, tail = text[: span[0]], text[span[1] :]
    starts_a_line = not head or head.endswith("\n")

    return head + tail.lstrip(" ") if starts_a_line else head.rstrip(" ") + tail
