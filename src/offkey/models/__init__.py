"""The model under test: load it, name its sites, read, edit and differentiate there."""

from offkey.models._edits import Edit
from offkey.models._generate import Generation
from offkey.models._load import load
from offkey.models._model import Model
from offkey.models._positions import Positions
from offkey.models._reading import Reading
from offkey.models._run import Run
from offkey.models._sites import Site
from offkey.models.families import FAMILIES, Family
from offkey.models.metrics import (
    ChoiceLogitDifference,
    KLToReference,
    Metric,
    ResponseCrossEntropy,
    TopLogProb,
    default_metric,
)

__all__ = [
    "FAMILIES",
    "ChoiceLogitDifference",
    "Edit",
    "Family",
    "Generation",
    "KLToReference",
    "Metric",
    "Model",
    "Positions",
    "Reading",
    "ResponseCrossEntropy",
    "Run",
    "Site",
    "TopLogProb",
    "default_metric",
    "load",
]
