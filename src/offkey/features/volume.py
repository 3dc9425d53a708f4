"""How far weights can move before a prompt's answer does: its radii, and its local volume."""

from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadValue
from offkey.features._sample import TrustedSample, batch_from_state, batch_state, joined
from offkey.features.feature import Feature, Learner
from offkey.models import Model, Reading, Site
from offkey.passes import Plan
from offkey.volume import KLCost, later_half, radii, typical_radius

__all__ = ["LocalVolume", "LogRadii"]

LOGITS = Site("logits")
PROBES = 8
"""Trusted prompts on which the grid is centred."""


class LogRadii(Feature):
    r"""Log radii at which a prompt's next-token distribution has moved by a KL of ``eps``.

    One number a direction: random directions of the weights in the later half of the blocks, the
    same for all prompts. The forward passes start from the states that the earlier half gave
    once. All prompts share one geometric grid of radii, which is centred where the answers to a
    few trusted prompts reach the cutoff on average: a model that is sure of what it says is moved
    by weights many times as far off as one that is not.

    Args:
        directions: how many directions; the length of the vector.
        grid: radii evaluated a direction.
        eps: the cutoff, in nats.
        span: ratio of the greatest to the least radius of the grid.
        centre: the middle of the grid; found on trusted prompts if left out.
        seed: of the directions.

    Raises:
        BadValue: a setting is out of range, or no trusted prompts were seen.
        PrecisionTooLow: weights are too coarse for steps that short.
    """

    name: ClassVar[str] = "radii"
    default_score: ClassVar[str] = "mahalanobis"
    centred_on_: dict[str, Any]

    def __init__(
        self,
        directions: int = 8,
        grid: int = 8,
        eps: float = 1e-2,
        span: float = 64.0,
        centre: float | None = None,
        seed: int = 0,
    ) -> None:
        self.directions, self.grid, self.eps = directions, grid, eps
        self.span, self.centre, self.seed = span, centre, seed
        self.learns = centre is None

    def plan(self, model: Model) -> Plan:
        """One forward pass for each direction and radius, and one for the anchor.

        Raises:
            BadValue: a setting is out of range.
        """
        if self.directions < 1 or self.grid < 2 or not self.eps > 0 or not self.span > 1:
            raise BadValue(
                "needs a direction, two radii, and positive eps and span",
                where=f"feature {self.name}",
            )

        return Plan(extra_forwards=self.directions * self.grid + 1)

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits."""
        return (LOGITS,)

    def learner(self, model: Model) -> Learner:
        """Keeps a few trusted prompts, on which the grid is centred.

        Raises:
            NotEnoughData: there are none.
        """
        sample = TrustedSample(self.name, PROBES)
        while (reading := (yield)) is not None:
            sample.add(reading.batch)
        self.centred_on_ = batch_state(joined(sample.rows()))

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The log radius of each prompt along each direction."""
        return {LOGITS: self.vectors(self.log_radii(model, reading.batch))}

    def vectors(self, logs: Float64[np.ndarray, "batch k"]) -> Float[Tensor, "batch d"]:
        """The feature's vectors, made from the log radii."""
        return torch.from_numpy(logs).float()

    def log_radii(self, model: Model, batch: Batch) -> Float64[np.ndarray, "batch k"]:
        """Log radii of each prompt; those of the last batch are computed once."""
        cost, names = _cost(model, batch)
        centre = self.centre or self._centre(model)
        settings = (self.directions, self.grid, self.eps, self.span, centre, self.seed)
        last = _LAST.get(model)
        if last is not None and last.serves(batch, settings, cost):
            return last.logs
        ends = centre / self.span**0.5, centre * self.span**0.5
        rays = radii(
            cost,
            self.eps,
            self.directions,
            np.geomspace(*ends, self.grid),
            params=names,
            seed=self.seed,
        )
        _LAST[model] = _LastRadii(batch, settings, cost.anchors, rays.logs)

        return rays.logs

    def _centre(self, model: Model) -> float:
        """Where the answers to the trusted prompts reach the cutoff; computed once a model."""
        self.need_learned()
        known = _CENTRES.setdefault(model, {})
        prompts = batch_from_state(self.centred_on_)
        tokens = (value.numpy().tobytes() for value in prompts.inputs.values())
        key = (self.eps, self.seed, *tokens)
        if key not in known:
            cost, names = _cost(model, prompts.to(model.device))
            known[key] = typical_radius(cost, self.eps, params=names, seed=self.seed)

        return known[key]


class LocalVolume(LogRadii):
    """Log volume of the region in which a prompt's answer stays, per parameter that moves.

    The mean over directions of the log radius, in nats; times the number of parameters, plus the
    log volume of a unit ball, it is what a typical ray says of the log volume. Neither small nor
    large is anomalous in itself: the published sign (small is anomalous) was wrong more often
    than right, so the default score takes what is unusual on either side.
    """

    name: ClassVar[str] = "volume"

    def vectors(self, logs: Float64[np.ndarray, "batch k"]) -> Float[Tensor, "batch d"]:
        """The mean over directions."""
        return torch.from_numpy(logs.mean(1, keepdims=True)).float()


class _LastRadii(NamedTuple):
    """The log radii of the last batch, which both features ask for."""

    batch: Batch
    settings: tuple[object, ...]
    anchors: list[Tensor]
    logs: Float64[np.ndarray, "batch k"]

    def serves(self, batch: Batch, settings: tuple[object, ...], cost: KLCost) -> bool:
        """Whether they are of this batch, and the model still answers as it did."""
        return (
            self.batch is batch
            and self.settings == settings
            and all(
                torch.equal(ours, theirs)
                for ours, theirs in zip(self.anchors, cost.anchors, strict=True)
            )
        )


_LAST: WeakKeyDictionary[Model, _LastRadii] = WeakKeyDictionary()
_CENTRES: WeakKeyDictionary[Model, dict[tuple[object, ...], float]] = WeakKeyDictionary()


def _cost(model: Model, batch: Batch) -> tuple[KLCost, tuple[str, ...]]:
    """The cost that is cut off, and the names of the parameters that move."""
    start, names = later_half(model)

    return KLCost(model, [batch], tokens="last", reduce="per_example", start=start), names
