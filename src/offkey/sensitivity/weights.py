"""Noise on weights, of a given length or scaled to a given KL of the answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from offkey.data import Batch, Prompts, pack
from offkey.errors import NonFinite, RadiusNotFound, check
from offkey.models import Model, last_logits
from offkey.passes import budget_for
from offkey.sensitivity.curve import Curve, ReferenceOutputs, measured
from offkey.volume import (
    CrossingSearch,
    Noise,
    Ray,
    RayStep,
    Sampler,
    Space,
    check_precision,
    find_crossings,
)

__all__ = ["WeightNoise", "weight_sensitivity"]

Array = np.ndarray
Values = dict[str, Float64[Array, " prompt"]]


@dataclass(frozen=True)
class WeightNoise:
    """One direction in weight space for each draw, uniform on the sphere, at several strengths.

    Attributes:
        parameters: pattern of the names of the weights that move, such as
            ``model.layers.15.*``; commas separate several.
        radii: lengths of the perturbation; or
        target_kl: mean KL in nats to which each draw is scaled.
        draws: how many directions.
        seed: seed of the directions; models of one shape that are compared get the same ones.
    """

    parameters: str = "*"
    radii: tuple[float, ...] = ()
    target_kl: tuple[float, ...] = ()
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            bool(self.radii) != bool(self.target_kl),
            "give radii or target_kl, and not both",
            where="weight noise",
        )
        strengths = self.strengths
        check(
            self.draws >= 1 and min(strengths) > 0 and list(strengths) == sorted(set(strengths)),
            "strengths must be positive and rise, with at least one draw",
            where="weight noise",
        )

    @property
    def strengths(self) -> tuple[float, ...]:
        """The radii or the KLs."""
        return self.radii or self.target_kl


def weight_sensitivity(
    model: Model, prompts: Prompts, noise: WeightNoise, *, search: CrossingSearch | None = None
) -> Curve:
    r"""How answers move when weights become :math:`\theta + r v`, with :math:`|v| = 1`.

    Every strength of every draw costs a pass over the prompts; a target KL about three. Weights
    are restored bit by bit.

    Args:
        model: a language model in float32 or better.
        prompts: the prompts; for those with ``choices`` and ``target``, accuracy is measured too.
        noise: which weights, how far, and how many draws.
        search: tolerance of a target KL.

    Raises:
        NoMatchingParameters: the pattern matches none.
        PrecisionTooLow: steps would be rounded away.
        RadiusNotFound: a draw does not reach a target KL.
    """
    probe = _WeightProbe(model, prompts)
    weights = {n: p for n, p in model.module.named_parameters() if p.is_floating_point()}
    space = Space.of(weights, noise.parameters)
    sampler = Sampler(space)
    length = space.squared**0.5
    shape = len(noise.strengths), noise.draws
    radii = np.empty(shape)
    metrics: dict[str, Array] = {}
    for draw in range(noise.draws):
        ray = sampler.ray(Noise(noise.seed, draw))
        for place, strength in enumerate(noise.strengths):
            if noise.radii:
                radius = strength
            else:
                radius = probe.radius_at(ray, strength, 1e-3 * length, search or CrossingSearch())
            step = RayStep(ray, radius / ray.length)
            if not draw and not place:
                check_precision(step, space)
            radii[place, draw] = radius
            for name, values in probe(step).items():
                metrics.setdefault(name, np.empty((*shape, len(prompts))))[place, draw] = values
        ray.forget()

    return Curve(
        strengths=np.array(noise.strengths),
        norms=radii,
        relative=radii / length,
        values=measured(metrics),
        ids=prompts.ids,
        about=_about(model, prompts, noise),
    )


def _about(model: Model, prompts: Prompts, noise: WeightNoise) -> dict[str, Any]:
    return {
        "perturbed": "weights",
        **asdict(noise),
        "radii": list(noise.radii),
        "target_kl": list(noise.target_kl),
        "model": model.name,
        "adapter": model.adapter,
        "prompts": prompts.digest,
    }


class _WeightProbe:
    """The answers of the unperturbed model, and how far a step of the weights moves them."""

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self.model = model
        self.batches: Sequence[Batch] = pack(
            prompts,
            model.tokenizer,
            token_budget=budget_for(model.device),
            context_length=model.context_length,
        )
        self.references = [
            ReferenceOutputs.of(self._logits(batch), batch) for batch in self.batches
        ]
        ids = [name for batch in self.batches for name in batch.ids]
        self.order = [ids.index(name) for name in prompts.ids]

    def __call__(self, step: RayStep) -> Values:
        with self.model.perturbed(step):
            rows = [
                reference.compare(self._logits(batch))
                for reference, batch in zip(self.references, self.batches, strict=True)
            ]

        return {
            name: torch.cat([row[name] for row in rows])[self.order].numpy() for name in rows[0]
        }

    def radius_at(self, ray: Ray, kl: float, start: float, search: CrossingSearch) -> float:
        """Where the mean KL along a ray first reaches a value."""

        def cost(radius: float) -> float:
            try:
                return float(self(RayStep(ray, radius / ray.length))["kl"].mean())
            except NonFinite:  # the search backs off from there, or reports it as its status
                return np.nan

        crossing = find_crossings(
            lambda _, radii: np.array([cost(radius) for radius in radii]),
            np.array([start]),
            2.0,
            np.array([np.inf]),
            kl,
            search,
        )
        if crossing.status[0] not in ("ok", "nonmonotone"):
            raise RadiusNotFound(
                f"the mean KL does not reach {kl:g} nats (search: {crossing.status[0]})",
                where=f"draw {ray.noise.direction}",
                mend="Ask for a smaller target_kl, or move more weights",
            )

        return float(crossing.radius[0])

    def _logits(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return last_logits(self.model.forward(batch, logits_to_keep=1))
