"""What the score would be if a prompt had the words of a trusted one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from jaxtyping import Float64

from offkey.data import Prompts
from offkey.explain.explanation import Swap

__all__ = ["Variant", "swap_shares", "variants"]

Array = np.ndarray
PIECE = re.compile(r"\s*\S+")
LONGEST = 400
"""Most words of a prompt that is compared word by word."""


@dataclass(frozen=True)
class Variant:
    """A prompt in which some words are those of a trusted prompt.

    Attributes:
        id: of the variant.
        source: id of the prompt.
        beside: id of the trusted prompt.
        words: what was taken out; empty where words were added.
        instead: what was put in; empty where words were left out.
    """

    id: str
    source: str
    beside: str
    words: str
    instead: str


def variants(
    prompts: Prompts, neighbours: Mapping[str, Sequence[tuple[str, str | None]]]
) -> tuple[list[Variant], Prompts | None]:
    """Every prompt with each stretch in which it differs from a neighbour swapped for its words.

    Stretches of as many words on both sides are swapped word by word. Chats have none, and texts
    of more than 400 words.

    Args:
        prompts: the prompts.
        neighbours: id and text of trusted prompts, by the prompt's id.
    """
    made: list[Variant] = []
    rows: list[dict[str, Any]] = []
    for row in prompts.rows():
        for beside, other in neighbours[row["id"]]:
            text = row.get("prompt")
            if text is None or other is None:
                continue
            for words, instead, changed in _exchanges(text, other):
                id = f"{row['id']} swap {len(made)}"
                made.append(Variant(id, row["id"], beside, words, instead))
                rows.append({**row, "id": id, "prompt": changed})
    if not rows:
        return made, None

    return made, Prompts({name: [row[name] for row in rows] for name in rows[0]})


def swap_shares(
    made: Sequence[Variant],
    scores: Float64[Array, " variants"],
    whole: Mapping[str, float],
    count: int,
) -> dict[str, tuple[Swap, ...]]:
    """The swaps by which each prompt's score falls most, by the prompt's id.

    The same words swapped for those of several neighbours are listed once, with the mean score.

    Args:
        made: the prompts with words swapped.
        scores: of these; NaN where there is none.
        whole: score of each prompt as it is, by id.
        count: most swaps listed of each.
    """
    groups: dict[str, dict[str, list[tuple[Variant, float]]]] = {}
    for variant, score in zip(made, scores.tolist(), strict=True):
        if not np.isnan(score):
            of_prompt = groups.setdefault(variant.source, {})
            of_prompt.setdefault(variant.words, []).append((variant, score))
    shares = {}
    for id, of_prompt in groups.items():
        swaps = [_swap(rows, whole[id]) for rows in of_prompt.values()]
        shares[id] = tuple(sorted(swaps, key=lambda swap: -swap.share)[:count])

    return shares


def _swap(rows: Sequence[tuple[Variant, float]], whole: float) -> Swap:
    score = float(np.mean([score for _, score in rows]))

    return Swap(
        words=rows[0][0].words,
        instead=tuple(dict.fromkeys(variant.instead for variant, _ in rows)),
        score=score,
        share=whole - score,
    )


def _exchanges(text: str, other: str) -> Iterator[tuple[str, str, str]]:
    """Words taken out, words put in, and the text that results, for each difference."""
    ours, theirs = PIECE.findall(text), PIECE.findall(other)
    if max(len(ours), len(theirs)) > LONGEST:
        return
    tail = text[len("".join(ours)) :]
    plain = [piece.strip() for piece in ours], [piece.strip() for piece in theirs]
    for kind, a, b, c, d in SequenceMatcher(None, *plain, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        stretches = [(a, b, c, d)]
        if b - a == d - c:
            places = zip(range(a, b), range(c, d), strict=True)
            stretches = [(i, i + 1, j, j + 1) for i, j in places]
        for start, end, first, last in stretches:
            instead = _spaced(theirs[first:last], ours[start:end])
            changed = "".join([*ours[:start], *instead, *ours[end:]])
            if changed.strip():
                words, others = plain[0][start:end], plain[1][first:last]
                yield " ".join(words), " ".join(others), changed + tail


def _spaced(pieces: Sequence[str], instead_of: Sequence[str]) -> list[str]:
    """Pieces that begin with the space of those they replace."""
    if not pieces or not instead_of:
        return list(pieces)
    space = instead_of[0][: len(instead_of[0]) - len(instead_of[0].lstrip())]

    return [space + pieces[0].lstrip(), *pieces[1:]]
