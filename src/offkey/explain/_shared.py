"""Words that flagged prompts share and others do not."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

__all__ = ["SharedWord", "shared_words", "words_of"]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class SharedWord:
    """A word that stands in more flagged prompts than chance would have it.

    Attributes:
        word: in lower case.
        flagged: flagged prompts that hold it.
        others: other prompts that hold it.
        p_value: one-sided, of Fisher's exact test, times the number of words tested.
    """

    word: str
    flagged: int
    others: int
    p_value: float


def words_of(text: str) -> set[str]:
    """The words of a text, each once, in lower case."""
    return {word.lower() for word in WORD.findall(text)}


def shared_words(
    flagged: Sequence[str], others: Sequence[str], *, alpha: float = 0.05
) -> tuple[SharedWord, ...]:
    """Words over-represented among flagged prompts, the least probable first.

    Every word of the flagged prompts is tested by Fisher's exact test (hypergeometric, one
    sided), with Bonferroni's correction.

    Args:
        flagged: texts of the flagged prompts.
        others: texts of the prompts that were not flagged.
        alpha: largest corrected p-value that is told.

    References:
        Fisher, 1935, "The logic of inductive inference".
    """
    inside, outside = _counts(flagged), _counts(others)
    n, total = len(flagged), len(flagged) + len(others)
    found = []
    for word, k in inside.items():
        p = float(hypergeom.sf(k - 1, total, k + outside[word], n)) * len(inside)
        if p <= alpha:
            found.append(SharedWord(word, k, outside[word], min(p, 1.0)))

    return tuple(sorted(found, key=lambda row: (row.p_value, -row.flagged, row.word)))


def _counts(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in words_of(text))
