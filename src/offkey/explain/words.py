"""Words that go with high scores."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.stats import norm, rankdata

from offkey.errors import BadInput
from offkey.explain.explanation import FlaggedWord

__all__ = ["flagged_words"]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def flagged_words(
    texts: Sequence[str],
    scores: Sequence[float],
    flagged: Sequence[bool],
    *,
    least: int = 3,
    most: int = 12,
    alpha: float = 0.05,
) -> tuple[FlaggedWord, ...]:
    """Words that go with high scores, one after another.

    The word whose prompts rank highest above the others is listed, and the search goes on among
    the prompts without it: where several words have the same effect, as the names of a trigger
    have, each would otherwise be compared with prompts that hold the others. Ranks are compared,
    so that words are found where all prompts were flagged, or none. A word whose ``p_value`` is
    near 1 is what chance brings in as many words.

    Args:
        texts: the prompts.
        scores: of the prompts; higher is more anomalous.
        flagged: whether each prompt was flagged.
        least: how many prompts must hold a word, and how many lack it, for it to be tested.
        most: most words listed.
        alpha: largest p-value, before the correction, of a word that is listed.

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
    holders = _holders(texts)
    left, words = set(range(len(texts))), list[FlaggedWord]()
    while len(words) < most:
        tested = {word: places & left for word, places in holders.items()}
        tested = {
            word: places
            for word, places in tested.items()
            if least <= len(places) <= len(left) - least
        }
        ranks = dict(zip(sorted(left), rankdata(values[sorted(left)]), strict=True))
        p_values = {word: _p_value(ranks, places) for word, places in tested.items()}
        word = min(p_values, key=lambda word: (p_values[word], word), default="")
        if not word or p_values[word] > alpha:
            break
        here, left = sorted(tested[word]), left - tested[word]
        words.append(
            FlaggedWord(
                word=word,
                prompts=len(here),
                flagged=int(flags[here].sum()),
                score=float(np.median(values[here])),
                others=float(np.median(values[sorted(left)])),
                p_value=min(1.0, p_values[word] * len(tested)),
            )
        )

    return tuple(words)


def _holders(texts: Sequence[str]) -> dict[str, set[int]]:
    """The places of the texts that hold each word, in lower case."""
    holders: dict[str, set[int]] = {}
    for place, text in enumerate(texts):
        for word in {word.lower() for word in _WORD.findall(text)}:
            holders.setdefault(word, set()).add(place)

    return holders


def _p_value(ranks: Mapping[int, float], places: Collection[int]) -> float:
    """Probability of ranks as high as those in some places, were they drawn from all."""
    n, k = len(ranks), len(places)
    _, ties = np.unique(list(ranks.values()), return_counts=True)
    variance = k * (n - k) / 12 * (n + 1 - (ties**3 - ties).sum() / (n * (n - 1)))
    above = sum(ranks[place] for place in places) - k * (n + 1) / 2 - 0.5

    return float(norm.sf(above / np.sqrt(variance))) if variance > 0 else 1.0
