"""How far weights can move before a prompt's answer does: its radii, and its local volume."""

from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadValue
from offkey.features._feature import Feature
from offkey.models import Model, Reading, Site
from offkey.passes import Plan
from offkey.stats import named_rng
from offkey.volume import KLCost, later_half, radii, typical_radius

__all__ = ["LocalVolume", "Radii"]

LOGITS = Site("logits")
PROBES, PROBE_TOKENS = 8, 16


class Radii(Feature):
    r"""Log radii at which a prompt's next-token distribution has moved by a KL of ``eps``.

    One number a direction: random directions of the weights in the later half of the blocks, the
    same for all prompts. The forward passes start from the states that the earlier half gave
    once. All prompts share one geometric grid of radii, which is centred where the model's own
    answers to random tokens reach the cutoff, so that it hangs on the model alone.

    Args:
        directions: how many directions; the length of the vector.
        grid: radii evaluated a direction.
        eps: the cutoff, in nats.
        span: ratio of the greatest to the least radius of the grid.
        centre: the middle of the grid; found on the model if left out.
        seed: of the directions.
    """

    name: ClassVar[str] = "radii"
    default_score: ClassVar[str] = "mahalanobis"

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

    def plan(self, model: Model) -> Plan:
        """One forward pass for each direction and radius, and one for the anchor.

        Raises:
            BadValue: a setting is out of range, or the grid cannot be centred on this model.
        """
        if self.directions < 1 or self.grid < 2 or not self.eps > 0 or not self.span > 1:
            raise BadValue("needs a direction, two radii, and positive eps and span",
                           where=f"feature {self.name}")  # fmt: skip
        if self.centre is None and (model.wiring is None or model.wiring.unembedding is None):
            raise BadValue("its grid is centred on random tokens, and this model reads none",
                           where=f"feature {self.name}", mend="Give centre=")  # fmt: skip

        return Plan(extra_forwards=self.directions * self.grid + 1)

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits."""
        return (LOGITS,)

    def __call__(self, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """Nothing can be told from a reading alone."""
        raise TypeError(f"{self.name} runs the model itself; use extract")

    def extract(self, model: Model, batch: Batch) -> dict[Site, Float[Tensor, "batch d"]]:
        """The log radius of each prompt along each direction."""
        return {LOGITS: self.vectors(self.log_radii(model, batch))}

    def vectors(self, logs: Float64[np.ndarray, "batch k"]) -> Float[Tensor, "batch d"]:
        """What is made of the log radii."""
        return torch.from_numpy(logs).float()

    def log_radii(self, model: Model, batch: Batch) -> Float64[np.ndarray, "batch k"]:
        """Log radii of each prompt; those of the batch last seen are not found again."""
        start, names = later_half(model)
        cost = KLCost(model, [batch], tokens="last", reduce="per_example", start=start)
        settings = (self.directions, self.grid, self.eps, self.span, self.centre, self.seed)
        kept = _LAST.get(model)
        if kept is not None and kept.serves(batch, settings, cost):
            return kept.logs
        centre = self.centre or _centre(model, self.eps, self.seed)
        ends = centre / self.span**0.5, centre * self.span**0.5
        found = radii(
            cost, self.eps, self.directions, np.geomspace(*ends, self.grid), params=names,
            seed=self.seed,
        )  # fmt: skip
        _LAST[model] = _Kept(batch, settings, cost.anchors, found.logs)

        return found.logs

    def state(self) -> dict[str, Any]:
        """The settings; nothing is learned."""
        return {"directions": self.directions, "grid": self.grid, "eps": self.eps,
                "span": self.span, "centre": self.centre, "seed": self.seed}  # fmt: skip


class LocalVolume(Radii):
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


class _Kept(NamedTuple):
    """The radii of one batch, which two features ask for in turn."""

    batch: Batch
    settings: tuple[object, ...]
    anchors: list[Tensor]
    logs: Float64[np.ndarray, "batch k"]

    def serves(self, batch: Batch, settings: tuple[object, ...], cost: KLCost) -> bool:
        """Whether they are of this batch and of a model that answers as it did."""
        return (
            self.batch is batch
            and self.settings == settings
            and all(
                torch.equal(ours, theirs)
                for ours, theirs in zip(self.anchors, cost.anchors, strict=True)
            )
        )


_LAST: WeakKeyDictionary[Model, _Kept] = WeakKeyDictionary()
_CENTRES: WeakKeyDictionary[Model, dict[tuple[float, int], float]] = WeakKeyDictionary()


def _centre(model: Model, eps: float, seed: int) -> float:
    """Where answers to random tokens reach the cutoff."""
    known = _CENTRES.setdefault(model, {})
    if (eps, seed) not in known:
        vocabulary = model.site("logits").shape[0]
        tokens = named_rng(seed, "radii", "probe").integers(
            vocabulary, size=(PROBES, PROBE_TOKENS)
        )
        mask = torch.ones(PROBES, PROBE_TOKENS, dtype=torch.bool)
        batch = Batch(
            {"input_ids": torch.from_numpy(tokens)},
            ids=tuple(f"probe {number}" for number in range(PROBES)),
            mask=mask,
            positions=mask.long().cumsum(1) - 1,
        )
        start, names = later_half(model)
        cost = KLCost(model, [batch], tokens="last", reduce="per_example", start=start)
        known[eps, seed] = typical_radius(cost, eps, params=names, seed=seed)

    return known[eps, seed]
