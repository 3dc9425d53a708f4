"""A detector: a feature composed with a score, fitted and used on a model."""

from inspect import signature
from pathlib import Path
from typing import Self

import torch

from offkey.data import Prompts, TensorPrompts
from offkey.detect.scores import Scores
from offkey.detect.scoring import Fitted, RowScorer, Scale
from offkey.detect.session import Session
from offkey.errors import check
from offkey.features import FEATURES, Feature, get_feature
from offkey.models import Model, Positions, Reading
from offkey.scores import Score, get_score, restore_score
from offkey.storage import load_state, save_state

__all__ = ["Detector"]

DEFAULT_SITES = "resid_post.last-quarter"
VERSION = 2


class Detector(RowScorer):
    """Says how unusual a prompt is handled inside a model, given trusted prompts.

    Args:
        feature: what is looked at: a name such as ``"activations"``, or a feature.
        score: how odd that is: a name such as ``"mahalanobis"``, or a score; if left out
            ``"knn-cosine"`` for activations and ``"mahalanobis"`` for other features.
        sites: where to look, for features that can look anywhere; ``"resid_post.last-quarter"``
            for activations if left out.
        combine: how sites become one score; see :class:`Combine`.
        alpha: false-alarm rate at which prompts are flagged.
        name: what tables call it; made of feature and score if left out.

    Example:
        >>> detector = Detector("activations", "mahalanobis", sites="resid_post.later")
        >>> detector.name
        'activations/mahalanobis'
    """

    def __init__(
        self,
        feature: str | Feature = "activations",
        score: str | Score | None = None,
        *,
        sites: str | tuple[str, ...] | None = None,
        combine: str = "mean",
        alpha: float = 0.05,
        name: str | None = None,
    ) -> None:
        if isinstance(feature, str):
            feature = _feature(feature, sites)
        else:
            check(
                sites is None,
                "sites are part of a feature that was made already",
                where="sites",
                mend="Give them to the feature",
            )
        score = feature.default_score if score is None else score
        score = get_score(score) if isinstance(score, str) else score
        super().__init__(feature, score, combine=combine, alpha=alpha, name=name)

    @classmethod
    def named(
        cls,
        name: str,
        *,
        sites: str | None = None,
        positions: Positions = "last",
        combine: str = "mean",
        alpha: float = 0.05,
    ) -> Self:
        """A detector from ``FEATURE/SCORE``, such as ``activations/mahalanobis``.

        Args:
            name: a feature and a score; the feature's default if only that is named.
            sites: where it looks, for features that can look anywhere; ``resid_post.last-quarter``
                for activations if left out.
            positions: at which tokens, for such features.
            combine: how sites become one score.
            alpha: false-alarm rate at which prompts are flagged.

        Raises:
            UnknownName: no such feature or score.
        """
        feature, _, score = name.partition("/")
        asked = {"sites": sites, "positions": positions}
        if feature == "activations":
            asked["sites"] = sites or DEFAULT_SITES
        known = signature(FEATURES.find(feature)).parameters
        given = {name: v for name, v in asked.items() if name in known and v is not None}

        return cls(get_feature(feature, **given), score or None, combine=combine, alpha=alpha)

    def __repr__(self) -> str:
        return f"Detector({self.name!r}, combine={self.combine.name!r}, alpha={self.alpha})"

    def fit(
        self,
        model: Model,
        trusted: Prompts | TensorPrompts,
        *,
        pool: Prompts | TensorPrompts | None = None,
        calibration: Prompts | TensorPrompts | None = None,
        seed: int = 0,
    ) -> Self:
        """Learns from prompts that are known to be handled normally.

        They are split by source: 60 % to fit the score, 20 % to bring sites to one scale, 20 % to
        calibrate p-values (all of ``calibration`` where it is given). Labels are not looked at.

        Args:
            model: the model to watch.
            trusted: prompts known to be normal.
            pool: unlabelled prompts, for scores that need them.
            calibration: trusted prompts kept for p-values.
            seed: decides the split.

        Raises:
            NotEnoughData: too few trusted prompts for the score or for ``alpha``.
        """
        Session(model).fit([self], trusted, pool=pool, calibration=calibration, seed=seed)

        return self

    def score(
        self, model: Model, prompts: Prompts | TensorPrompts, *, other_model: bool = False
    ) -> Scores:
        """Scores prompts.

        Args:
            model: the model that is watched.
            prompts: what to score.
            other_model: allow a model other than the one the detector was fitted on.

        Raises:
            Mismatch: it was fitted on another model.
        """
        return Session(model).score([self], prompts, other_model=other_model)[0]

    def score_reading(
        self, model: Model, reading: Reading, *, other_model: bool = False
    ) -> Scores:
        """Scores the prompts of a reading that was made by the feature's plan.

        Args:
            model: the model that was read.
            reading: what :meth:`offkey.models.Model.read` gave for ``feature.plan(model)``.
            other_model: allow a model other than the one the detector was fitted on.

        Raises:
            Mismatch: it was fitted on another model.
        """
        return Session(model).score_reading([self], reading, other_model=other_model)[0]

    def save(self, folder: str | Path) -> None:
        """Writes the detector as JSON and safetensors, under its final name when it is whole.

        Raises:
            Unwritable: the folder cannot be written.
        """
        fitted = self.fitted
        save_state(
            folder,
            {
                "name": self.name,
                "alpha": self.alpha,
                "combine": self.combine.name,
                "feature": {"name": self.feature.name, "state": self.feature.state()},
                "score": self.score_template.name,
                "model": fitted.model,
                "sites": list(fitted.sites),
                "columns": list(fitted.scores),
                "scores": {str(n): s.state() for n, s in enumerate(fitted.scores.values())},
                "centre": torch.from_numpy(fitted.scale.centre),
                "spread": torch.from_numpy(fitted.scale.spread),
                "calibration": torch.from_numpy(fitted.calibration),
                "counts": dict(fitted.counts),
                "left_out": dict(fitted.left_out),
                "pool": sorted(fitted.pool),
            },
            kind="detector",
            version=VERSION,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a detector that :meth:`save` wrote.

        Raises:
            Damaged: a file was truncated or edited.
            Mismatch: the folder holds something else, or a newer format.
        """
        state = load_state(folder, "detector", version=VERSION)
        feature = FEATURES.find(state["feature"]["name"]).from_state(state["feature"]["state"])
        scores = {
            column: restore_score(state["score"], state["scores"][str(n)])
            for n, column in enumerate(state["columns"])
        }
        detector = cls(
            feature,
            next(iter(scores.values())),
            combine=state["combine"],
            alpha=state["alpha"],
            name=state["name"],
        )
        detector.fitted_ = Fitted(
            model=state["model"],
            sites=tuple(state["sites"]),
            scores=scores,
            scale=Scale(state["centre"].numpy(), state["spread"].numpy()),
            calibration=state["calibration"].numpy(),
            counts=state["counts"],
            left_out=state["left_out"],
            pool=frozenset(state["pool"]),
        )

        return detector


def _feature(name: str, sites: str | tuple[str, ...] | None) -> Feature:
    if name == "activations":
        return get_feature(name, sites=sites or DEFAULT_SITES)
    if sites is not None:
        return get_feature(name, sites=sites)

    return get_feature(name)
