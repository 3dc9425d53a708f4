"""The model under test: load it, name its sites, read, edit and differentiate there.

A :class:`Pass` is one batch in a model; ``Model.read``, ``run``, ``generate`` and ``steps`` are
short functions over it. Several threads may use one model. What its outputs say is in one
vocabulary: :func:`last_logits`, :func:`preferred_answer`, :func:`choice_logits`, :func:`kl`.
"""

from offkey.models.edits import Edit, PassContext
from offkey.models.families import FAMILIES, Family
from offkey.models.generation import Generation, Step, Steps
from offkey.models.hooks import Hook
from offkey.models.loading import load
from offkey.models.model import Model, TextReadings
from offkey.models.outputs import (
    ChoiceLogitDifference,
    KLToReference,
    Metric,
    PreferredAnswer,
    ResponseCrossEntropy,
    TopLogProb,
    choice_logits,
    default_metric,
    kl,
    last_logits,
    log_probabilities,
    logits_of,
    preferred_answer,
    wide,
)
from offkey.models.passing import Pass, Positions, Reading
from offkey.models.reruns import CachedPrefix, ResumedForward
from offkey.models.sites import Site

__all__ = [
    "FAMILIES",
    "CachedPrefix",
    "ChoiceLogitDifference",
    "Edit",
    "Family",
    "Generation",
    "Hook",
    "KLToReference",
    "Metric",
    "Model",
    "Pass",
    "PassContext",
    "Positions",
    "PreferredAnswer",
    "Reading",
    "ResponseCrossEntropy",
    "ResumedForward",
    "Site",
    "Step",
    "Steps",
    "TextReadings",
    "TopLogProb",
    "choice_logits",
    "default_metric",
    "kl",
    "last_logits",
    "load",
    "log_probabilities",
    "logits_of",
    "preferred_answer",
    "wide",
]
