"""Words that go with high scores."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from offkey.errors import BadInput

__all__ = ["TellingWord", "telling_words", "words_of"]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class TellingWord:
    """A word whose prompts score higher than those that hold neither it nor a word told before it.

    Attributes:
        word: in lower case.
        prompts: prompts that hold it, and none of the words before.
        flagged: flagged ones among them.
        score: their median score.
        others: median score of the prompts that are left.
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
    most: int = 12,
    alpha: float = 0.05,
) -> tuple[TellingWord, ...]:
    """Words that go with high scores, one after another.

    The word whose prompts rank highest above the others is told, and the search goes on among the
    prompts without it: where several words have the same effect, as the names of a trigger have,
    each would else be compared with prompts that hold the others. Ranks are compared, so that
    words are found where all prompts were flagged, or none. A word whose ``p_value`` is near 1 is
    what chance brings in as many words.

    Args:
        texts: the prompts.
        scores: theirs; higher is more anomalous.
        flagged: whether each was flagged.
        least: how many prompts must hold a word, and how many lack it, for it to be tested.
        most: words told.
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
    holders: dict[str, set[int]] = {}
    for place, text in enumerate(texts):
        for word in words_of(text):
            holders.setdefault(word, set()).add(place)
    left, told = set(range(len(texts))), list[TellingWord]()
    while len(told) < most:
        tested = {word: places & left for word, places in holders.items()}
        tested = {word: places for word, places in tested.items()
                  if least <= len(places) <= len(left) - least}  # fmt: skip
        ranks = dict(zip(sorted(left), rankdata(values[sorted(left)]), strict=True))
        found = {word: _higher(ranks, places) for word, places in tested.items()}
        word = min(found, key=lambda word: (found[word], word), default="")
        if not word or found[word] > alpha:
            break
        here, left = sorted(tested[word]), left - tested[word]
        told.append(
            TellingWord(
                word=word,
                prompts=len(here),
                flagged=int(flags[here].sum()),
                score=float(np.median(values[here])),
                others=float(np.median(values[sorted(left)])),
                p_value=min(1.0, found[word] * len(tested)),
            )
        )

    return tuple(told)


def _higher(ranks: Mapping[int, float], places: Collection[int]) -> float:
    """Chance of ranks as high as those in some places, were they drawn from all."""
    n, k = len(ranks), len(places)
    _, ties = np.unique(list(ranks.values()), return_counts=True)
    variance = k * (n - k) / 12 * (n + 1 - (ties**3 - ties).sum() / (n * (n - 1)))
    above = sum(ranks[place] for place in places) - k * (n + 1) / 2 - 0.5

    return float(norm.sf(above / np.sqrt(variance))) if variance > 0 else 1.0
