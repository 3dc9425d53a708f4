"""Recorded rows to scores: a feature's score at every site, the sites combined, a p-value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offkey.detect.records import Mode
from offkey.detect.scores import Scores
from offkey.errors import BadValue, Mismatch, check
from offkey.features import Feature
from offkey.models import Model
from offkey.passes import Rows, ShardRows
from offkey.scores import Score
from offkey.stats import conformal_p_values

__all__ = ["ALL_SITES", "Combine", "Fitted", "RowScorer", "Scale", "raw_scores", "row_name"]

Array = np.ndarray
ALL_SITES = "all sites"
"""What tables call the one score of a detector that looks at all sites at once."""


@dataclass(frozen=True)
class Combine:
    """How the standardised scores of several sites become one.

    ``mean`` and ``max`` over the sites, ``later-half`` the mean over the later half of them, in
    the model's order, ``top-M`` the mean of the M highest of each prompt.

    Attributes:
        name: ``"mean"``, ``"max"``, ``"later-half"`` or ``"top-M"``, such as ``"top-3"``.
    """

    name: str = "mean"

    def __post_init__(self) -> None:
        check(
            self.name in ("mean", "max", "later-half") or self._top > 0,
            f"unknown way {self.name!r} to combine sites",
            where="combine",
            mend="Use mean, max, later-half or top-M, such as top-3",
        )

    @property
    def _top(self) -> int:
        match = re.fullmatch(r"top-(\d+)", self.name)
        return int(match[1]) if match else 0

    def __call__(self, z: Float64[Array, "n sites"]) -> Float64[Array, " n"]:
        """Combines standardised scores; a NaN at any site makes the prompt's NaN."""
        if self.name == "max":
            return np.asarray(z.max(axis=1))
        if self.name == "later-half":
            return np.asarray(z[:, z.shape[1] // 2 :].mean(axis=1))
        if self._top:
            highest = np.sort(z, axis=1)[:, -min(self._top, z.shape[1]) :]
            return np.asarray(highest.mean(axis=1))

        return np.asarray(z.mean(axis=1))

    def shares(self, z: Float64[Array, "n sites"]) -> Float64[Array, "n sites"]:
        """What each site adds to the combined score; a row's shares sum to it.

        A site that the combination passes over adds 0: with ``max`` all but the highest one.
        """
        order = np.argsort(z, axis=1, kind="stable")
        taken = np.ones_like(z)
        if self.name == "later-half":
            taken[:, : z.shape[1] // 2] = 0
        elif self.name == "max" or self._top:
            most = min(self._top or 1, z.shape[1])
            np.put_along_axis(taken, order[:, : z.shape[1] - most], 0, axis=1)

        return np.asarray(z * taken / taken.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Scale:
    """Centre and spread of each site's scores on trusted prompts.

    The median and the median absolute deviation (times 1.4826, its ratio to the standard
    deviation of a normal law), so that a few odd trusted prompts do not set the scale; the
    standard deviation where more than half the scores are equal.
    """

    centre: Float64[Array, " sites"]
    spread: Float64[Array, " sites"]

    @classmethod
    def of(cls, scores: Float64[Array, "n sites"]) -> Self:
        """Measures scores; the spread is 0 at a site where they are all equal."""
        centre = np.nanmedian(scores, axis=0)
        spread = 1.4826 * np.nanmedian(np.abs(scores - centre), axis=0)

        return cls(centre, np.where(spread > 0, spread, np.nanstd(scores, axis=0)))

    def __call__(self, scores: Float64[Array, "n sites"]) -> Float64[Array, "n sites"]:
        """Scores as robust z values."""
        return np.asarray((scores - self.centre) / self.spread)

    def keep(self, sites: Any) -> Self:
        """The same for some of the sites."""
        return type(self)(self.centre[sites], self.spread[sites])


@dataclass(frozen=True)
class Fitted:
    """What a detector learned.

    Attributes:
        model: fingerprint of the model it was fitted on.
        sites: the sites whose rows are scored.
        scores: one score a site, or one for :data:`ALL_SITES`.
        scale: centre and spread of each site's scores.
        calibration: combined scores of the calibration prompts, sorted.
        counts: trusted prompts used to fit, standardise and calibrate.
        left_out: sites without variation on trusted prompts, and why.
        pool: ids of the pool's prompts; empty where none was used.
        reason: why nothing could be learned; such a detector gives no scores.
    """

    model: str
    sites: tuple[str, ...]
    scores: Mapping[str, Score]
    scale: Scale
    calibration: Float64[Array, " n"]
    counts: Mapping[str, int]
    left_out: Mapping[str, str]
    pool: frozenset[str] = frozenset()
    reason: str = ""

    @classmethod
    def nothing(cls, model: str, counts: Mapping[str, int], reason: str) -> Self:
        """What a detector is left with that could not learn."""
        none = np.empty(0)

        return cls(model, (), {}, Scale(none, none), none, counts, {}, reason=reason)


class RowScorer:
    """A feature composed with a score, as far as the model is not needed: rows in, scores out.

    Args:
        feature: what is looked at.
        score: how odd that is; what is fitted are copies of it.
        combine: how sites become one score; see :class:`Combine`.
        alpha: false-alarm rate at which prompts are flagged.
        name: what tables call it; made of feature and score if left out.
    """

    def __init__(
        self,
        feature: Feature,
        score: Score,
        *,
        combine: str = "mean",
        alpha: float = 0.05,
        name: str | None = None,
    ) -> None:
        check(0 < alpha < 1, f"{alpha} is not between 0 and 1", where="alpha")
        self.feature = feature
        self.score_template = score
        self.combine = Combine(combine)
        self.alpha = alpha
        self.name = name or f"{feature.name}/{score.name}"
        self.fitted_: Fitted | None = None

    @property
    def fitted(self) -> Fitted:
        """What was learned.

        Raises:
            BadValue: the detector has not been fitted.
        """
        if self.fitted_ is None:
            raise BadValue(
                "not fitted yet",
                where=f"detector {self.name}",
                mend="Call fit, or Detector.load",
            )

        return self.fitted_

    def check_model(self, model: Model, *, other_model: bool = False) -> None:
        """Refuses a model other than the one the detector was fitted on."""
        check(
            self.fitted.model == model.fingerprint or other_model,
            f"fitted on the model {self.fitted.model[:12]}, and this is "
            f"{model.fingerprint[:12]} ({model.name})",
            where=f"detector {self.name}",
            mend="Fit it again, or allow another model by other_model=True or --other-model",
            error=Mismatch,
        )

    def mode(self, ids: Sequence[str]) -> Mode:
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
        check(
            inside == len(ids),
            f"{inside} of {len(ids)} prompts were in its pool",
            where=f"detector {self.name}",
            mend="Score the whole pool, or prompts outside it",
            error=Mismatch,
        )

        return "transductive"

    def raw(self, shard: ShardRows) -> Float64[Array, "n sites"]:
        """Scores by site, before they are standardised; NaN where a prompt has no row."""
        columns = {site: shard[row_name(self.feature, site)] for site in self.fitted.sites}

        return raw_scores(self.fitted.scores, columns)

    def columns(self, rows: Rows) -> dict[str, Float[Tensor, "n d"]]:
        """What the feature recorded of every prompt, by fitted site."""
        return {site: rows.column(row_name(self.feature, site)) for site in self.fitted.sites}

    def score_rows(self, rows: Rows) -> Scores:
        """Scores rows that were recorded before; the model is not needed."""
        if self.fitted.reason:
            return self.score_raw(rows.ids, np.empty((len(rows), 0)))

        return self.score_raw(rows.ids, np.concatenate([self.raw(s) for s in rows.shards()]))

    def score_raw(self, ids: Sequence[str], raw: Float64[Array, "n sites"]) -> Scores:
        """Standardises and combines what :meth:`raw` gave, and adds p-values."""
        fitted, ids = self.fitted, tuple(ids)
        if fitted.reason:
            return Scores.missing(self.name, self.alpha, ids, fitted.reason)
        z = fitted.scale(raw)
        score = self.combine(z)
        mode = self.mode(ids)
        p_value = np.full(len(score), np.nan)
        known = ~np.isnan(score)
        if mode != "transductive":
            p_value[known] = conformal_p_values(fitted.calibration, score[known])
        unknown = np.flatnonzero(~known)
        reasons = {ids[row]: "the feature has no value at a fitted site" for row in unknown}
        columns = tuple(fitted.scores)

        return Scores(self.name, mode, self.alpha, ids, score, p_value, columns, z, reasons)


def row_name(feature: Feature, site: str) -> str:
    """What a feature's rows at a site are called in the record of a pass.

    Features that differ only in the sites they were given name the same rows, unless they learn
    something from these sites first.
    """
    settings = {
        name: value
        for name, value in sorted(feature.settings().items())
        if (name != "sites" or feature.learns) and isinstance(value, str | int | float | list)
    }
    shown = ",".join(f"{name}={value}" for name, value in settings.items())

    return f"{feature.name}({shown})|{site}"


def raw_scores(
    scores: Mapping[str, Score], columns: Mapping[str, Float[Tensor, "n d"]]
) -> Float64[Array, "n sites"]:
    """Scores rows site by site, or all sites at once; NaN where a prompt lacks a row."""
    known = ~torch.stack([x.isnan().any(dim=1) for x in columns.values()]).any(dim=0)
    out = np.full((len(known), len(scores)), np.nan)
    given = {site: x[known] for site, x in columns.items()}
    if bool(known.any()):
        for place, (site, score) in enumerate(scores.items()):
            values = score(given) if site == ALL_SITES else score(given[site])
            out[known.numpy(), place] = values.double().numpy()

    return out
