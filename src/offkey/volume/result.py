"""The result of an estimate of a volume, and how certain it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.special import logsumexp
from scipy.stats import norm

from offkey.errors import PriorMismatch
from offkey.volume.search import STATUSES

__all__ = ["LEAST_ESS", "VolumeResult", "log_ratio"]

Array = np.ndarray
LEAST_ESS = 10.0
"""Effective rays below which there is a bound and no estimate."""


@dataclass(frozen=True)
class VolumeResult:
    r"""A volume in log space, from the weights of rays.

    Each ray's weight is an unbiased estimate of the volume, and so is their mean. Where a few rays
    outweigh all others, the mean of a sample is nearly always far too small.

    Attributes:
        rays: columns of equal length: ``direction``, ``radius``, ``cost``, ``evaluated`` (radius
            that the cost was taken at), ``status``, ``evaluations``, ``length`` and ``slope`` of
            the direction, ``log_weight`` (nats).
        norm_term: :math:`-|\theta|^2 / 2\sigma^2` in nats, which depends on the anchor alone; 0
            under a flat measure.
        is_probability: whether it is the probability of a Gaussian measure, not a plain volume.
        evaluations: cost evaluations in all, the anchor's included.
        meta: settings, cost and data, dimensions.
    """

    rays: Mapping[str, Array]
    norm_term: float
    is_probability: bool
    evaluations: int
    meta: Mapping[str, Any]

    @property
    def log_weights(self) -> Float64[Array, " n"]:
        """The log weight of each ray, in nats."""
        return self.rays["log_weight"]

    @cached_property
    def log_volume(self) -> float:
        """Log of the mean weight, in nats; a lower bound in practice if :attr:`is_bound`."""
        return float(logsumexp(self.log_weights) - np.log(len(self.log_weights)))

    @property
    def log_prob(self) -> float:
        """The log volume under a Gaussian measure, a log probability, in nats.

        Raises:
            PriorMismatch: the measure is no probability.
        """
        if not self.is_probability:
            raise PriorMismatch(
                "the measure was Lebesgue's", where="log_prob", mend="Use log_volume"
            )
        return self.log_volume

    @property
    def bits(self) -> float:
        """The log volume in bits."""
        return self.log_volume / log(2)

    @property
    def radius_term(self) -> float:
        """The log volume without the norm term, in nats: the part that depends on the radii."""
        return self.log_volume - self.norm_term

    @property
    def mean(self) -> float:
        """Mean of the log weights, in nats: the log volume by a typical ray."""
        return float(np.mean(self.log_weights))

    @property
    def std(self) -> float:
        """Standard deviation of the log weights, in nats."""
        return float(np.std(self.log_weights, ddof=1)) if len(self.log_weights) > 1 else 0.0

    @property
    def max(self) -> float:
        """The greatest log weight, in nats."""
        return float(np.max(self.log_weights))

    @cached_property
    def ess(self) -> float:
        r"""Effective number of rays, :math:`(\sum w)^2 / \sum w^2`."""
        top = self.max
        if not np.isfinite(top):
            return 0.0
        w = np.exp(self.log_weights - top)

        return float(w.sum() ** 2 / (w**2).sum())

    @property
    def is_bound(self) -> bool:
        """Whether this is only a lower bound: too few effective rays, or failed searches."""
        lost = np.isin(self.rays["status"], ("nonfinite", "budget")).any()

        return bool(lost or self.ess < LEAST_ESS)

    @property
    def interval(self) -> tuple[float, float | None]:
        """A 95 % interval, in nats.

        A bound has no upper end; its lower end is Markov's inequality: the mean of unbiased
        weights exceeds twenty times the volume with probability of at most 1/20.
        """
        if self.is_bound:
            return self.log_volume + log(0.05), None
        n = len(self.log_weights)
        spread = float(np.sqrt(max(0.0, 1 / self.ess - 1 / n) * n / (n - 1)))
        reach = float(norm.isf(0.025)) * spread

        return self.log_volume - reach, self.log_volume + reach

    @property
    def statuses(self) -> dict[str, int]:
        """How many rays ended in each way."""
        ended = list(self.rays["status"])
        return {status: ended.count(status) for status in STATUSES if status in ended}

    def summary(self) -> dict[str, Any]:
        """One flat row: the figures in nats, then the sample that they come from."""
        low, high = self.interval
        radii = self.rays["radius"][np.isfinite(self.rays["radius"])]
        return {
            "log_volume_nats": self.log_volume,
            "low": low,
            "high": high,
            "bits": self.bits,
            "is_bound": self.is_bound,
            "norm_term_nats": self.norm_term,
            "radius_term_nats": self.radius_term,
            "mean_nats": self.mean,
            "std_nats": self.std,
            "max_nats": self.max,
            "effective_sample_size": self.ess,
            "rays": len(self.log_weights),
            "median_radius": float(np.median(radii)) if len(radii) else None,
            "evaluations": self.evaluations,
            "evaluations_per_ray": float(np.mean(self.rays["evaluations"])),
            **{f"rays_{status}": count for status, count in self.statuses.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each ray; values that are not finite are null."""
        columns = {name: values.tolist() for name, values in self.rays.items()}
        rows = (
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )
        return [
            {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
            for row in rows
        ]


def log_ratio(a: VolumeResult, b: VolumeResult) -> float:
    """Log ratio of two comparable volumes, in nats.

    Raises:
        PriorMismatch: they differ in measure, cutoff, parameters or data; says in which.
    """
    for name in ("measure", "eps", "params", "dimensions", "data"):
        if a.meta.get(name) != b.meta.get(name):
            raise PriorMismatch(
                f"{name} is {a.meta.get(name)} for one and {b.meta.get(name)} for the other",
                where="volumes compared",
                mend="Estimate both with the same",
            )

    return a.log_volume - b.log_volume
