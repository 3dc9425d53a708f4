"""Noise on activations at the last token (POSER), and the norm in which it is measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offkey.data import Batch, PromptPairs, Prompts, pack
from offkey.errors import UnknownName, check, check_choice, check_positive
from offkey.models import CachedPrefix, Edit, Model, Site
from offkey.passes import Plan, budget_for, readings
from offkey.sensitivity.curve import Curve, ReferenceOutputs, measured
from offkey.stats import named_rng

__all__ = ["PRESETS", "ActivationNoise", "activation_sensitivity", "contrast_norm"]

Shape = Literal["gaussian", "sphere", "uniform01"]


@dataclass(frozen=True)
class ActivationNoise:
    r"""One direction for each draw, the same for every prompt, at several strengths.

    Attributes:
        site: where it is subtracted, at the last token.
        coefficients: strengths, in units of the norm that is given.
        shape: with ``"gaussian"`` and ``"sphere"`` all directions and signs are equally likely
            (the norm of the first varies by :math:`1 / \sqrt{2 d}`); ``"uniform01"`` draws each
            component from [0, 1), so that all have one sign and the directions are 30° apart on
            average.
        draws: how many directions.
        seed: seed of the directions; models that are compared get the same ones.
    """

    site: str = "resid_post.15"
    coefficients: tuple[float, ...] = tuple(map(float, range(21)))
    shape: Shape = "gaussian"
    draws: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, get_args(Shape))
        check(
            self.draws >= 1 and len(self.coefficients) >= 2,
            "at least one draw and two coefficients are needed",
            where="noise",
        )
        ascending = list(self.coefficients) == sorted(set(self.coefficients))
        check(
            min(self.coefficients) >= 0 and ascending,
            "coefficients must rise from 0 or more",
            where="noise",
        )

    @classmethod
    def preset(
        cls, name: str, *, site: str | None = None, draws: int | None = None, seed: int = 0
    ) -> Self:
        """A preset of :data:`PRESETS`, with some settings of one's own.

        Raises:
            UnknownName: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownName("preset", name, PRESETS)
        noise = PRESETS[name]

        return cls(
            site=site or noise.site,
            coefficients=noise.coefficients,
            shape=noise.shape,
            draws=draws or noise.draws,
            seed=seed,
        )

    def direction(self, draw: int, width: int, norm: float) -> Float[Tensor, " width"]:
        """One draw at coefficient 1."""
        rng = named_rng(self.seed, "activation noise", self.shape, str(draw))
        if self.shape == "uniform01":
            noise = rng.random(width)
        else:
            noise = rng.standard_normal(width)
        length = width**0.5 if self.shape == "gaussian" else float(np.linalg.norm(noise))

        return torch.from_numpy(noise) * (norm / length)


PRESETS = {
    "poser": ActivationNoise(shape="uniform01", draws=1),
    "corrected": ActivationNoise(shape="gaussian", draws=8),
}
"""``poser`` as published (one draw of one sign, for a norm of each model's own);
``corrected`` with signed noise and several draws, for a norm that all models share."""


def contrast_norm(model: Model, pairs: PromptPairs, site: str | Site) -> float:
    """Distance between the mean activations of the two sides of pairs, at the last token.

    Args:
        model: the model whose activations are read.
        pairs: clean prompts, and the same with what matters added.
        site: where.
    """
    where = model.site(site)
    means = [_mean(model, side, where) for side in (pairs.clean, pairs.corrupt)]

    return float(torch.linalg.vector_norm(means[1] - means[0]))


def activation_sensitivity(
    model: Model, prompts: Prompts, noise: ActivationNoise, *, norm: float | PromptPairs
) -> Curve:
    r"""How answers move when :math:`c \cdot n` is subtracted at the last token.

    Args:
        model: a language model whose sites are known.
        prompts: the prompts; for those with ``choices`` and ``target``, accuracy is measured too.
        noise: where, how strong, and how many draws.
        norm: length of a direction at coefficient 1; or pairs, for their :func:`contrast_norm`.

    Raises:
        BadValue: ``norm`` is not positive, or there is no such block.

    References:
        Clymer et al., 2024. https://arxiv.org/abs/2405.05466
    """
    noise = replace(noise, site=str(model.site(noise.site)))
    if isinstance(norm, PromptPairs):
        norm = contrast_norm(model, norm, noise.site)
    check_positive("norm", norm)
    batches = pack(
        prompts,
        model.tokenizer,
        token_budget=budget_for(model.device),
        context_length=model.context_length,
    )
    metrics, length = _measure(model, batches, noise, norm)
    ids = [name for batch in batches for name in batch.ids]
    order = [ids.index(name) for name in prompts.ids]
    norms = _norms(noise, model.width or 0, norm)

    return Curve(
        strengths=np.array(noise.coefficients),
        norms=norms,
        relative=norms / length,
        values=measured({name: value[:, :, order] for name, value in metrics.items()}),
        ids=tuple(prompts.ids),
        about=_about(model, prompts, noise, norm),
    )


def _measure(
    model: Model, batches: Sequence[Batch], noise: ActivationNoise, norm: float
) -> tuple[dict[str, Float64[np.ndarray, "strength draw prompt"]], float]:
    """Every metric, batch after batch, and the mean norm of the activations at the site."""
    parts: dict[str, list[Tensor]] = {}
    lengths: list[Tensor] = []
    for batch in batches:
        prefix = model.cached_prefix(batch)
        reference = ReferenceOutputs.of(prefix.logits(), batch)
        activations = prefix.run(noise.site)[noise.site].double().flatten(1)
        lengths.append(torch.linalg.vector_norm(activations, dim=1).cpu())
        for name, values in _sweep(model, prefix, reference, noise, norm).items():
            parts.setdefault(name, []).append(values)

    return (
        {name: torch.cat(each, dim=2).numpy() for name, each in parts.items()},
        float(torch.cat(lengths).mean()),
    )


def _sweep(
    model: Model,
    prefix: CachedPrefix,
    reference: ReferenceOutputs,
    noise: ActivationNoise,
    norm: float,
) -> dict[str, Float[Tensor, "strength draw batch"]]:
    """Every metric at each strength and draw."""
    shape = (len(noise.coefficients), noise.draws, len(reference.batch))
    values: dict[str, Tensor] = {}
    for draw in range(noise.draws):
        direction = noise.direction(draw, model.width or 0, norm)
        for place, coefficient in enumerate(noise.coefficients):
            step = (-coefficient * direction).to(model.device, model.dtype)
            logits = prefix.logits([Edit(noise.site, "add", step)] if coefficient else [])
            for name, row in reference.compare(logits).items():
                values.setdefault(name, torch.empty(shape, dtype=torch.float64))
                values[name][place, draw] = row

    return values


def _mean(model: Model, prompts: Prompts, site: Site) -> Float[Tensor, " width"]:
    rows = [
        reading.values[site].double().flatten(1)
        for reading in readings(model, prompts, Plan(reads=(site,)))
    ]

    return torch.cat(rows).mean(0)


def _norms(
    noise: ActivationNoise, width: int, norm: float
) -> Float64[np.ndarray, "strength draw"]:
    sizes = [float(noise.direction(draw, width, norm).norm()) for draw in range(noise.draws)]

    return np.asarray(np.array(noise.coefficients)[:, None] * np.array(sizes)[None, :])


def _about(model: Model, prompts: Prompts, noise: ActivationNoise, norm: float) -> dict[str, Any]:
    return {
        "perturbed": "activations",
        **asdict(noise),
        "coefficients": list(noise.coefficients),
        "norm": norm,
        "model": model.name,
        "adapter": model.adapter,
        "prompts": prompts.digest,
    }
