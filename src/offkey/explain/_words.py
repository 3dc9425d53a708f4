"""Words that go with high scores."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from offkey.errors import BadInput

__all__ = ["TellingWord", "telling_words", "words_of"]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class TellingWord:
    """A word whose prompts score higher than those without it.

    Attributes:
        word: in lower case.
        prompts: prompts that hold it.
        flagged: flagged ones among them.
        score: median score of these prompts.
        others: median score of the prompts without it.
        p_value: one-sided, of the test of Mann and Whitney, times the number of words tested.
    """

    word: str
    prompts: int
    flagged: int
    score: float
    others: float
    p_value: float


def words_of(text: str) -> set[str]:
    """The words of a text, each once, in lower case."""
    return {word.lower() for word in WORD.findall(text)}


def telling_words(
    texts: Sequence[str],
    scores: Sequence[float],
    flagged: Sequence[bool],
    *,
    least: int = 3,
    alpha: float = 0.05,
) -> tuple[TellingWord, ...]:
    """Words whose prompts have higher scores than the others, the least probable first.

    Scores are compared by their ranks, so that words are found where all prompts were flagged,
    or none. A word whose ``p_value`` is above ``alpha`` is no more than chance would have in as
    many words; it is told so that words of one kind, each too rare to stand out, can be seen
    side by side.

    Args:
        texts: the prompts.
        scores: theirs; higher is more anomalous.
        flagged: whether each was flagged.
        least: how many prompts must hold a word, and how many lack it, for it to be tested.
        alpha: largest p-value, before the correction, that is told.

    Raises:
        BadInput: the three are not of one length, or a score is NaN.

    References:
        Mann, Whitney, 1947 (the test, with the normal approximation and the correction for ties).
        https://doi.org/10.1214/aoms/1177730491
    """
    if not len(texts) == len(scores) == len(flagged) or np.isnan(scores).any():
        raise BadInput(
            "texts, scores and flags do not go together", mend="Give one of each a text"
        )
    values, flags = np.asarray(scores, dtype=float), np.asarray(flagged, dtype=bool)
    holders: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        for word in words_of(text):
            holders.setdefault(word, []).append(place)
    n, ranks = len(texts), rankdata(values)
    tested = {word: np.array(places) for word, places in sorted(holders.items())
              if least <= len(places) <= n - least}  # fmt: skip
    found = []
    for word, places in tested.items():
        p = _higher(ranks, places)
        if p <= alpha:
            without = np.delete(values, places)
            found.append(TellingWord(
                word, len(places), int(flags[places].sum()), float(np.median(values[places])),
                float(np.median(without)), min(1.0, p * len(tested)),
            ))  # fmt: skip

    return tuple(sorted(found, key=lambda row: (row.p_value, -row.score, row.word)))


def _higher(ranks: np.ndarray, places: np.ndarray) -> float:
    """Chance of ranks as high as those in some places, were they drawn from all."""
    n, k = len(ranks), len(places)
    _, ties = np.unique(ranks, return_counts=True)
    variance = k * (n - k) / 12 * (n + 1 - (ties**3 - ties).sum() / (n * (n - 1)))
    above = ranks[places].sum() - k * (n + 1) / 2 - 0.5

    return float(norm.sf(above / np.sqrt(variance))) if variance > 0 else 1.0
