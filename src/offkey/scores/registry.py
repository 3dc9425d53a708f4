"""Scores by name."""

from collections.abc import Mapping
from typing import Any

from offkey.registry import Registry
from offkey.scores.score import Score

__all__ = ["SCORES", "get_score", "restore_score", "score_class", "score_names"]


class ScoreRegistry(Registry[Score]):
    """The registered scores, and every detector of PyOD."""

    def find(self, name: str) -> type[Score]:
        """The class of a score; ``pyod:`` and a name stands for a detector of PyOD."""
        if name.startswith("pyod:"):
            from offkey.scores.pyod import pyod_score

            return pyod_score(name)

        return super().find(name)


SCORES = ScoreRegistry(
    "score",
    {
        "activation-model": "offkey.scores.activation_model:ActivationModelScore",
        "activation-model-joint": "offkey.scores.activation_model:JointActivationModel",
        "beatrix": "offkey.scores.beatrix:Beatrix",
        "exceedance": "offkey.scores.mahalanobis:Exceedance",
        "flow-laplace": "offkey.scores.flow:FlowLaplace",
        "flow-mahalanobis": "offkey.scores.flow:FlowMahalanobis",
        "functional-class-ccc": "offkey.scores.functional:ClassConcordance",
        "functional-mean": "offkey.scores.functional:MeanCorrelation",
        "functional-mean-ccc": "offkey.scores.functional:MeanConcordance",
        "functional-top-ccc": "offkey.scores.functional:TopConcordance",
        "isolation-forest": "offkey.scores.forest:IsolationForest",
        "knn": "offkey.scores.neighbours:NearestNeighbours",
        "knn-cosine": "offkey.scores.neighbours:CosineNeighbours",
        "knn-ratio": "offkey.scores.neighbours:NeighbourRatio",
        "lcf": "offkey.scores.layers:LayerwiseConvergence",
        "likelihood-ratio": "offkey.scores.pool:LikelihoodRatio",
        "lof": "offkey.scores.neighbours:LocalOutlierFactor",
        "mahalanobis": "offkey.scores.mahalanobis:Mahalanobis",
        "mahalanobis-concatenated": "offkey.scores.layers:ConcatenatedMahalanobis",
        "mahalanobis-diagonal": "offkey.scores.mahalanobis:DiagonalMahalanobis",
        "mahalanobis-l2": "offkey.scores.mahalanobis:NormalisedMahalanobis",
        "mahalanobis-pca": "offkey.scores.mahalanobis:PrincipalMahalanobis",
        "mahalanobis-relative": "offkey.scores.mahalanobis:RelativeMahalanobis",
        "que": "offkey.scores.pool:QuantumEntropy",
        "sae-l0": "offkey.scores.sparse:NovelLatents",
        "sae-mahalanobis": "offkey.scores.sparse:SparseMahalanobis",
        "spectral": "offkey.scores.pool:SpectralSignature",
        "ted": "offkey.scores.layers:TopologicalEvolution",
        "trajectory": "offkey.scores.layers:TrajectoryVolatility",
        "vae": "offkey.scores.networks:VariationalAutoencoder",
    },
    group="offkey.scores",
)


def score_names() -> list[str]:
    """Names of the scores: those built in, and those that installed packages add.

    Any PyOD detector can be named besides, such as ``pyod:LOF``.
    """
    return list(SCORES.names)


def score_class(name: str) -> type[Score]:
    """The class of a score.

    Args:
        name: one of :func:`score_names`, or ``pyod:`` and a detector of PyOD.

    Raises:
        UnknownName: there is no such score; names the nearest.
        MissingExtra: a PyOD detector was named and PyOD is not installed.
    """
    return SCORES.find(name)


def get_score(name: str, **settings: Any) -> Score:
    """A score that has learned nothing yet.

    Args:
        name: one of :func:`score_names`, or ``pyod:`` and a detector of PyOD.
        settings: its constructor's arguments.

    Raises:
        UnknownName: there is no such score; names the nearest.
        BadValue: a setting that it does not have, or a value that it does not take.
        MissingExtra: a PyOD detector was named and PyOD is not installed.
    """
    return SCORES.make(name, **settings)


def restore_score(name: str, state: Mapping[str, Any]) -> Score:
    """The score that ``state()`` of the score called ``name`` described."""
    return score_class(name).from_state(state)
