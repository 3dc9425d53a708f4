"""How odd a vector is, given trusted behaviour.

Higher is more anomalous, everywhere, and a row's score never depends on the rows scored with it.
Scores are had by name (:func:`get_score`); each module here holds one family.
"""

from offkey.scores.registry import SCORES, get_score, restore_score, score_class, score_names
from offkey.scores.score import Score, SitesScore, TensorScore, largest_dependence

__all__ = [
    "SCORES",
    "Score",
    "SitesScore",
    "TensorScore",
    "get_score",
    "largest_dependence",
    "restore_score",
    "score_class",
    "score_names",
]
