"""Why a prompt was flagged: the sites, heads, latents and words behind its score.

:func:`explain` takes a fitted detector, :func:`explain_run` the folder of a finished run. Both
give plain values, one :class:`Explanation` a prompt. What a site adds is exact: the shares of a
score sum to it. Heads, latents and read-outs say what else was unusual inside the model on that
prompt, against trusted prompts; they point at causes and do not prove them.
"""

from offkey.explain.explaining import explain
from offkey.explain.explanation import (
    Detail,
    Explanation,
    Explanations,
    FlaggedWord,
    HeadShare,
    LatentShare,
    Neighbour,
    ReadOut,
    SiteShare,
    Swap,
    Token,
    read_explanations,
)
from offkey.explain.run import explain_run
from offkey.explain.words import flagged_words

__all__ = [
    "Detail",
    "Explanation",
    "Explanations",
    "FlaggedWord",
    "HeadShare",
    "LatentShare",
    "Neighbour",
    "ReadOut",
    "SiteShare",
    "Swap",
    "Token",
    "explain",
    "explain_run",
    "flagged_words",
    "read_explanations",
]
