"""Fitting on recorded rows: split, sum up, finish, standardise, calibrate."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from offkey.data import Prompts, TensorPrompts, split_by_source
from offkey.detect.scoring import ALL_SITES, Fitted, RowScorer, Scale, raw_scores, row_name
from offkey.errors import BadValue, Mismatch, NotEnoughData
from offkey.models import Model
from offkey.passes import Rows, ShardRows
from offkey.scores import Score
from offkey.stats import Moments, Statistic, check_alpha, named_rng

__all__ = ["TrustedSplit", "fit_rows"]

Array = np.ndarray
Statistics = Mapping[tuple[str, str], Statistic]
"""Summaries of rows, by the rows' name and the specification of the statistic."""

FRACTIONS = (0.6, 0.2, 0.2)
VARIATION = "moments:diagonal"


@dataclass(frozen=True)
class TrustedSplit:
    """What each trusted prompt serves for, by id.

    Attributes:
        fit: prompts that scores learn from.
        standardise: prompts that bring sites to one scale.
        calibrate: prompts that p-values are counted against.
        seed: of the split, and of everything random in fitting.
    """

    fit: frozenset[str]
    standardise: frozenset[str]
    calibrate: frozenset[str]
    seed: int = 0

    @classmethod
    def of(
        cls,
        trusted: Prompts | TensorPrompts,
        calibration: Prompts | TensorPrompts | None = None,
        seed: int = 0,
    ) -> Self:
        """Splits trusted prompts by source: 60, 20 and 20 %; 75 and 25 % with ``calibration``.

        Raises:
            Mismatch: a calibration prompt is among the trusted ones.
            NotEnoughData: a part would be empty.
        """
        if calibration is None:
            parts = [*split_by_source(trusted, FRACTIONS, seed)]
        else:
            if shared := set(trusted.ids) & set(calibration.ids):
                raise Mismatch(
                    f"{len(shared)} of its prompts are among the trusted ones too",
                    where="calibration",
                    mend="Keep them apart",
                )
            parts = [*split_by_source(trusted, (0.75, 0.25), seed), calibration]
        fit, standardise, calibrate = (frozenset(part.ids) for part in parts)
        if not (fit and standardise and calibrate):
            raise NotEnoughData(
                f"{len(trusted)} prompts leave a part of the split empty",
                where="trusted",
                mend="Give more prompts, of more than a few sources",
            )

        return cls(fit, standardise, calibrate, seed)

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts each part has."""
        return {
            "fit": len(self.fit),
            "standardise": len(self.standardise),
            "calibrate": len(self.calibrate),
        }

    def check_alpha(self, detectors: Sequence[RowScorer]) -> None:
        """Refuses an alpha that the calibration prompts cannot reach.

        Raises:
            NotEnoughData: says how many are needed.
        """
        for detector in detectors:
            check_alpha(detector.alpha, len(self.calibrate))


def fit_rows(
    detectors: Sequence[RowScorer],
    rows: Sequence[Rows],
    model: Model,
    split: TrustedSplit,
    *,
    pool: Sequence[Rows] | None = None,
    tolerant: bool = False,
) -> None:
    """Fits detectors on the rows recorded for each; those that need the same sums share them.

    Args:
        detectors: what to fit.
        rows: for each detector, the rows of the trusted prompts.
        model: the model that the rows came from.
        split: what each trusted prompt serves for.
        pool: for each detector, the rows of the unlabelled pool.
        tolerant: leave a detector that cannot learn without scores, and record the reason.

    Raises:
        BadValue: a score needs a pool and there is none.
        NotEnoughData: too few rows, or no site that varies.
    """
    names = []
    for detector in detectors:
        sites = [str(site) for site in detector.feature.sites_on(model)]
        names.append({site: row_name(detector.feature, site) for site in sites})
    pooled: Sequence[Rows | None] = pool or [None] * len(rows)
    for shared in {id(record): record for record in rows}.values():
        group = [n for n, record in enumerate(rows) if record is shared]
        pool_rows = pooled[group[0]]
        fitting = _Fitting(model.fingerprint, model.dtype, shared, pool_rows, split, tolerant)
        fitting.fit([(detectors[n], names[n]) for n in group])


Named = tuple[RowScorer, Mapping[str, str]]
"""A detector, and what its rows are called at each of its sites."""


@dataclass(frozen=True)
class _Fitting:
    """Fits detectors whose rows were recorded in one pass."""

    fingerprint: str
    dtype: torch.dtype
    rows: Rows
    pool: Rows | None
    split: TrustedSplit
    tolerant: bool

    def fit(self, detectors: Sequence[Named]) -> None:
        """Learns each detector's scores, then their scale and calibration."""
        statistics = _summed(detectors, self.rows, self.split.fit)
        takers = [(d, names) for d, names in detectors if d.score_template.needs_pool]
        pooled = {} if self.pool is None else _summed(takers, self.pool, None)
        for detector, names in detectors:
            if detector.score_template.needs_pool and not pooled:
                raise BadValue(
                    "needs a pool of unlabelled prompts",
                    where=f"score {detector.score_template.name}",
                    mend="Give pool=, or --pool FILE",
                )
            try:
                detector.fitted_ = self._learned(detector, names, statistics, pooled)
            except NotEnoughData as error:
                detector.fitted_ = self._nothing(error)
        self._standardise([d for d, _ in detectors if not d.fitted.reason])

    def _learned(
        self,
        detector: RowScorer,
        names: Mapping[str, str],
        statistics: Statistics,
        pooled: Statistics,
    ) -> Fitted:
        """Finishes one score a site (or one for all) and leaves out sites that do not vary."""
        template = detector.score_template
        spec = template.statistic().spec
        left_out = {
            site: "does not vary among the trusted prompts"
            for site, name in names.items()
            if not _varies(statistics[name, VARIATION], self.dtype)
        }
        kept = [site for site in names if site not in left_out]
        if not kept:
            raise NotEnoughData(
                f"none of its {len(names)} sites varies among the trusted prompts",
                where=f"detector {detector.name}",
                mend="Choose other sites or positions, or more varied prompts",
            )
        trusted = {site: statistics[names[site], spec] for site in kept}
        pool = {site: pooled[names[site], spec] for site in kept} if template.needs_pool else None
        scores: dict[str, Score] = {}
        if template.scope == "sites":
            random = self._generator(detector.name)
            scores[ALL_SITES] = deepcopy(template).finish(trusted, pool, random)
        else:
            for site in kept:
                random = self._generator(detector.name, site)
                of_pool = pool[site] if pool else None
                scores[site] = deepcopy(template).finish(trusted[site], of_pool, random)

        return Fitted(
            model=self.fingerprint,
            sites=tuple(kept),
            scores=scores,
            scale=Scale(np.zeros(len(scores)), np.ones(len(scores))),
            calibration=np.empty(0),
            counts={},
            left_out=left_out,
        )

    def _generator(self, *names: str) -> torch.Generator:
        """A generator that depends on the seed and on what it is for, and on nothing else."""
        seed = int(named_rng(self.split.seed, *names).integers(2**63))

        return torch.Generator().manual_seed(seed)

    def _nothing(self, error: NotEnoughData) -> Fitted:
        """What is left of a detector that could not learn, where that is tolerated."""
        if not self.tolerant:
            raise error

        return Fitted.nothing(self.fingerprint, self.split.counts, str(error))

    def _standardise(self, detectors: Sequence[RowScorer]) -> None:
        """Sets each detector's scale and calibration from the trusted prompts kept for them."""
        raw: list[list[Float64[Array, "n sites"]]] = [[] for _ in detectors]
        ids: list[str] = []
        for shard in self.rows.shards():
            chosen = _members(shard, self.split.standardise | self.split.calibrate)
            if not bool(chosen.any()):
                continue
            ids += [shard.ids[i] for i in chosen.nonzero()[:, 0].tolist()]
            for detector, parts in zip(detectors, raw, strict=True):
                columns = {
                    site: shard[row_name(detector.feature, site)][chosen]
                    for site in detector.fitted.sites
                }
                parts.append(raw_scores(detector.fitted.scores, columns))
        is_calibration = np.array([id in self.split.calibrate for id in ids])
        for detector, parts in zip(detectors, raw, strict=True):
            try:
                detector.fitted_ = self._calibrated(
                    detector, np.concatenate(parts), is_calibration
                )
            except NotEnoughData as error:
                detector.fitted_ = self._nothing(error)

    def _calibrated(
        self,
        detector: RowScorer,
        raw: Float64[Array, "n sites"],
        is_calibration: Bool[Array, " n"],
    ) -> Fitted:
        """What was learned, with the scale of its sites and the calibration scores."""
        fitted = detector.fitted
        scale = Scale.of(raw[~is_calibration])
        columns = list(fitted.scores)
        level = [c for c, spread in zip(columns, scale.spread, strict=True) if not spread > 0]
        keep = [n for n, column in enumerate(columns) if column not in level]
        if not keep:
            raise NotEnoughData(
                "its score is the same for every trusted prompt",
                where=f"detector {detector.name}",
                mend="Choose another score, or give more trusted prompts",
            )
        scale = scale.keep(keep)
        combined = detector.combine(scale(raw[is_calibration][:, keep]))
        kept = [columns[n] for n in keep]
        pool = self.pool if detector.score_template.needs_pool else None

        return Fitted(
            model=fitted.model,
            sites=fitted.sites if kept == [ALL_SITES] else tuple(kept),
            scores={column: fitted.scores[column] for column in kept},
            scale=scale,
            calibration=np.sort(combined[~np.isnan(combined)]),
            counts=self.split.counts,
            left_out={**fitted.left_out, **{c: "its score does not vary" for c in level}},
            pool=frozenset() if pool is None else frozenset(pool.ids),
        )


def _summed(detectors: Sequence[Named], rows: Rows, ids: frozenset[str] | None) -> Statistics:
    """One statistic for each name and specification that any detector needs, shard by shard."""
    wanted: dict[str, dict[str, Statistic]] = {}
    for detector, names in detectors:
        for name in names.values():
            kept = wanted.setdefault(name, {VARIATION: Moments(diagonal=True)})
            fresh = detector.score_template.statistic()
            kept.setdefault(fresh.spec, fresh)
    for shard in rows.shards():
        chosen = _members(shard, ids)
        for name, kept in wanted.items():
            x = shard[name][chosen]
            known = ~x.isnan().any(dim=1)
            members = [shard.ids[i] for i in chosen.nonzero()[:, 0][known].tolist()]
            for statistic in kept.values():
                statistic.update(x[known], members)

    return {(name, spec): s for name, kept in wanted.items() for spec, s in kept.items()}


def _members(shard: ShardRows, ids: frozenset[str] | None) -> Bool[Tensor, " n"]:
    """Which rows of a shard belong to the ids; all of them for ``None``."""
    return torch.tensor([ids is None or id in ids for id in shard.ids], dtype=torch.bool)


def _varies(statistic: Statistic, dtype: torch.dtype) -> bool:
    """Whether any dimension varies by more than the rounding of the dtype it was computed in."""
    assert isinstance(statistic, Moments)
    noise = torch.finfo(dtype).eps * statistic.mean.abs()

    return bool((statistic.variance() > noise.square()).any())
