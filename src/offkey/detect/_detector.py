"""A detector: a feature composed with a score."""

from inspect import signature
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.detect._combine import Combine, Scale
from offkey.detect._fitted import Fitted, raw_scores, row_name
from offkey.detect._scores import Scores
from offkey.detect.records import Mode
from offkey.errors import BadValue, Mismatch
from offkey.features import FEATURES, Feature, get_feature
from offkey.models import Model, Positions
from offkey.passes import Rows, ShardRows
from offkey.scores import Score, get_score, restore_score
from offkey.stats import conformal_p_values
from offkey.storage import load_state, save_state

__all__ = ["Detector"]

Array = np.ndarray
DEFAULT_SITES = "resid_post.last-quarter"
VERSION = 2


class Detector:
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
        if not 0 < alpha < 1:
            raise BadValue(f"{alpha} is not between 0 and 1", where="alpha")
        if isinstance(feature, str):
            feature = _feature(feature, sites)
        elif sites is not None:
            raise BadValue("sites are part of a feature that was made already", where="sites",
                           mend="Give them to the feature")  # fmt: skip
        self.feature = feature
        score = feature.default_score if score is None else score
        self.score_template = get_score(score) if isinstance(score, str) else score
        self.combine = Combine(combine)
        self.alpha = alpha
        self.name = name or f"{feature.name}/{self.score_template.name}"
        self.fitted_: Fitted | None = None

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
        from offkey.detect._many import fit_all

        fit_all([self], model, trusted, pool=pool, calibration=calibration, seed=seed)

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
        from offkey.detect._many import score_all

        return score_all([self], model, prompts, other_model=other_model)[0]

    @property
    def fitted(self) -> Fitted:
        """What was learned.

        Raises:
            BadValue: the detector has not been fitted.
        """
        if self.fitted_ is None:
            raise BadValue("not fitted yet", where=f"detector {self.name}",
                           mend="Call fit, or Detector.load")  # fmt: skip
        return self.fitted_

    def check_model(self, model: Model, *, other_model: bool = False) -> None:
        """Refuses a model other than the one the detector was fitted on."""
        if self.fitted.model != model.fingerprint and not other_model:
            raise Mismatch(
                f"fitted on the model {self.fitted.model[:12]}, and this is "
                f"{model.fingerprint[:12]} ({model.name})",
                where=f"detector {self.name}",
                mend="Fit it again, or allow another model by other_model=True or --other-model",
            )

    def mode(self, ids: tuple[str, ...]) -> Mode:
        """How the detector stands to prompts with these ids.

        Raises:
            Mismatch: some of them were in its pool and some were not.
        """
        pool = self.fitted.pool
        inside = sum(id in pool for id in ids)
        if not pool:
            return "online"
        if not inside:
            return "offline"
        if inside < len(ids):
            raise Mismatch(
                f"{inside} of {len(ids)} prompts were in its pool",
                where=f"detector {self.name}",
                mend="Score the whole pool, or prompts outside it",
            )
        return "transductive"

    def raw(self, shard: ShardRows) -> Float64[Array, "n sites"]:
        """Scores by site, as the score gives them; NaN where a prompt has no row."""
        columns = {site: shard[row_name(self.feature, site)] for site in self.fitted.sites}

        return raw_scores(self.fitted.scores, columns)

    def columns(self, rows: Rows) -> dict[str, Float[Tensor, "n d"]]:
        """What its feature recorded of every prompt, by fitted site."""
        return {site: rows.column(row_name(self.feature, site)) for site in self.fitted.sites}

    def score_rows(self, rows: Rows) -> Scores:
        """Scores rows that were recorded before; the model is not needed."""
        fitted = self.fitted
        if fitted.reason:
            return Scores.missing(self.name, self.alpha, rows.ids, fitted.reason)
        z = fitted.scale(np.concatenate([self.raw(shard) for shard in rows.shards()]))
        score = self.combine(z)
        mode = self.mode(rows.ids)
        p_value = np.full(len(score), np.nan)
        known = ~np.isnan(score)
        if mode != "transductive":
            p_value[known] = conformal_p_values(fitted.calibration, score[known])
        missing = {rows.ids[row]: "the feature has no value at a fitted site"
                   for row in np.flatnonzero(~known)}  # fmt: skip

        return Scores(self.name, mode, self.alpha, rows.ids, score, p_value,
                      tuple(fitted.scores), z, missing)  # fmt: skip

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
