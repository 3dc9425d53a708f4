"""Noise on activations at the last token (POSER), and the norm that it is measured in."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import PromptPairs, Prompts, pack
from offkey.errors import BadValue
from offkey.models import Edit, Model, Site
from offkey.passes import Plan, budget_for, readings
from offkey.sensitivity._curve import Curve
from offkey.sensitivity._last import LastToken
from offkey.sensitivity._outcome import Baseline
from offkey.stats import named_rng

__all__ = ["PRESETS", "ActivationNoise", "activation_sensitivity", "contrast_norm"]

Shape = Literal["gaussian", "sphere", "uniform01"]
SHAPES = ("gaussian", "sphere", "uniform01")


@dataclass(frozen=True)
class ActivationNoise:
    r"""One direction a draw, the same for every prompt, taken at several strengths.

    Attributes:
        site: where it is subtracted, at the last token.
        coefficients: strengths, in units of the norm that is given.
        shape: ``"gaussian"`` and ``"sphere"`` have every direction and sign alike (the first with
            a norm that varies by :math:`1 / \sqrt{2 d}`); ``"uniform01"`` draws each component
            from [0, 1), so that all have one sign and the directions are 30° apart on average.
        draws: how many directions.
        seed: chooses them; models that are compared get the same ones.
    """

    site: str = "resid_post.15"
    coefficients: tuple[float, ...] = tuple(map(float, range(21)))
    shape: Shape = "gaussian"
    draws: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise BadValue(f"{self.shape!r} is not allowed", where="shape",
                           mend="Use " + " or ".join(map(repr, SHAPES)))  # fmt: skip
        if self.draws < 1 or len(self.coefficients) < 2:
            raise BadValue("at least one draw and two coefficients are needed", where="noise")
        if min(self.coefficients) < 0 or list(self.coefficients) != sorted(set(self.coefficients)):
            raise BadValue("coefficients must rise from 0 or more", where="noise")

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
"""``poser`` as published (one draw of one sign, and with a norm of each model's own);
``corrected`` with signed noise and several draws, for a norm that all models share."""


def contrast_norm(model: Model, pairs: PromptPairs, site: str | Site) -> float:
    """Distance between the mean activations of the two sides of pairs, at the last token.

    Args:
        model: whose activations.
        pairs: clean prompts, and the same with what matters added.
        site: where.
    """
    where = model.site(site)
    means = [_mean(model, side, where) for side in (pairs.clean, pairs.corrupt)]

    return float(torch.linalg.vector_norm(means[1] - means[0]))


def activation_sensitivity(
    model: Model, prompts: Prompts, noise: ActivationNoise, *, norm: float
) -> Curve:
    r"""How answers move when :math:`c \cdot n` is subtracted at the last token.

    Args:
        model: a language model whose sites are known.
        prompts: what it is asked; with ``choices`` and ``target``, accuracy is measured too.
        noise: where, how strong, and how often drawn.
        norm: length of a direction at coefficient 1, such as :func:`contrast_norm`.

    Raises:
        BadValue: ``norm`` is not positive, or there is no such block.

    References:
        Clymer et al., 2024. https://arxiv.org/abs/2405.05466
    """
    if not norm > 0:
        raise BadValue(f"{norm} is not positive", where="norm")
    noise = replace(noise, site=str(model.site(noise.site)))
    told: dict[str, list[Tensor]] = {}
    lengths: list[Tensor] = []
    ids: list[str] = []
    for batch in pack(
        prompts,
        model.tokenizer,
        token_budget=budget_for(model.device),
        context_length=model.context_length,
    ):
        last = LastToken(model, batch)
        baseline = Baseline.of(last.logits(), batch)
        lengths.append(_lengths(model, noise.site, last))
        ids += batch.ids
        for name, values in _swept(model, last, baseline, noise, norm).items():
            told.setdefault(name, []).append(values)

    return _curve(noise, norm, told, ids, torch.cat(lengths), prompts, model)


def _swept(
    model: Model, last: LastToken, baseline: Baseline, noise: ActivationNoise, norm: float
) -> dict[str, Float[Tensor, "strength draw batch"]]:
    shape = (len(noise.coefficients), noise.draws, len(baseline.batch))
    found: dict[str, Tensor] = {}
    for draw in range(noise.draws):
        direction = noise.direction(draw, model.width or 0, norm)
        for place, coefficient in enumerate(noise.coefficients):
            value = (-coefficient * direction).to(model.device, model.dtype)
            logits = last.logits([Edit(noise.site, "add", value)] if coefficient else [])
            for name, values in baseline.against(logits).items():
                found.setdefault(name, torch.empty(shape, dtype=torch.float64))
                found[name][place, draw] = values

    return found


def _lengths(model: Model, site: str, last: LastToken) -> Float[Tensor, " batch"]:
    """Norm of what is at the site, for each prompt."""
    seen: list[Tensor] = []
    handle = model.attach(model.site(site), lambda x: seen.append(x[:, -1].detach().double()))
    try:
        last.logits()
    finally:
        handle.remove()

    lengths: Tensor = torch.linalg.vector_norm(seen[0].flatten(1), dim=1).cpu()

    return lengths


def _mean(model: Model, prompts: Prompts, site: Site) -> Float[Tensor, " width"]:
    rows = [
        reading.values[site].double().flatten(1)
        for reading in readings(model, prompts, Plan(reads=(site,)))
    ]

    return torch.cat(rows).mean(0)


def _curve(
    noise: ActivationNoise,
    norm: float,
    told: dict[str, list[Tensor]],
    ids: Sequence[str],
    lengths: Float[Tensor, " prompt"],
    prompts: Prompts,
    model: Model,
) -> Curve:
    order = [list(ids).index(name) for name in prompts.ids]
    c = np.array(noise.coefficients)
    size = [
        float(noise.direction(draw, model.width or 0, norm).norm()) for draw in range(noise.draws)
    ]
    norms = c[:, None] * np.array(size)[None, :]
    about: dict[str, Any] = {
        "perturbed": "activations",
        **asdict(noise),
        "coefficients": list(noise.coefficients),
        "norm": norm,
        "model": model.name,
        "adapter": model.adapter,
        "prompts": prompts.digest,
    }

    return Curve(
        strengths=c,
        norms=norms,
        relative=norms / float(lengths.mean()),
        values={
            name: torch.cat(parts, dim=2)[:, :, order].numpy() for name, parts in told.items()
        },
        ids=tuple(prompts.ids),
        about=about,
    )
