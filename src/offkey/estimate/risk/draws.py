"""Last activations of sampled inputs, and estimates from them alone."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.errors import BadInput, NotEnoughData
from offkey.estimate.gaussian import Normal
from offkey.estimate.quantities import Estimate
from offkey.estimate.risk.problem import TokenInputs, TokenNetwork, check_target, top_tokens

__all__ = [
    "Draws",
    "monte_carlo",
    "gld",
    "normal_below",
    "below_smallest_float",
    "none_accepted",
]

_FEW = 2**14
_TILE = 2**26


@dataclass(frozen=True, eq=False)
class Draws:
    """Activations that enter an unembedding, one row for each input drawn.

    Any number of targets and methods can share them.

    Args:
        finals: ``[n, d]``.
        weight: ``[vocabulary, d]``; logits are ``finals @ weight.T + bias``.
        bias: ``[vocabulary]``.

    Raises:
        BadInput: an activation is not finite.
        NotEnoughData: no row.
    """

    finals: Float[Tensor, "n d"]
    weight: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"]

    def __post_init__(self) -> None:
        if not len(self.finals):
            raise NotEnoughData("there is no sample", where="draws")
        if not bool(self.finals.isfinite().all()):
            raise BadInput("an activation is not finite", where="draws")

    @classmethod
    def of(
        cls,
        network: TokenNetwork,
        inputs: TokenInputs,
        samples: int,
        *,
        seed: int = 0,
        batch: int = 64,
    ) -> Self:
        """Runs the network on inputs drawn from their own distribution."""
        generator = torch.Generator().manual_seed(seed)
        choices = inputs.draw(samples, generator)
        parts = [network.finals(inputs.tokens_of(part)) for part in torch.split(choices, batch)]

        return cls(torch.cat(parts), network.weight, network.bias)

    def __len__(self) -> int:
        return len(self.finals)

    @cached_property
    def distinct(self) -> tuple[Float[Tensor, "m d"], Int[Tensor, " n"]]:
        """The distinct rows, and which of them each row is; all rows where there are many."""
        if len(self) > _FEW:
            return self.finals, torch.arange(len(self))
        rows, place = torch.unique(self.finals, dim=0, return_inverse=True)

        return rows, place

    @cached_property
    def top_tokens(self) -> Int[Tensor, " n"]:
        """The token with the largest logit in each row."""
        rows, place = self.distinct

        return top_tokens(rows, self.weight, self.bias)[place]

    @cached_property
    def normal(self) -> Normal:
        """The Gaussian with the rows' mean and covariance (divided by n)."""
        mean = self.finals.mean(0, dtype=torch.float64)
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in torch.split(self.finals, 8192):
            centred = part.double() - mean
            scatter += centred.T @ centred

        return Normal(mean, (scatter + scatter.T) / (2 * len(self)))

    def margins(self, target: int) -> Float[Tensor, " n"]:
        """The target's logit less the largest of the others."""
        check_target(target, len(self.weight))
        rows, place = self.distinct
        parts = torch.split(rows, max(1, _TILE // len(self.weight)))
        margins = [_margin(torch.addmm(self.bias, part, self.weight.T), target) for part in parts]

        return torch.cat(margins).double()[place]


def _margin(logits: Float[Tensor, "n vocabulary"], target: int) -> Float[Tensor, " n"]:
    own = logits[:, target].clone()
    logits[:, target] = -math.inf

    return own - logits.amax(1)


def monte_carlo(draws: Draws, target: int) -> Estimate:
    """The share of samples in which the target's logit is the largest.

    ``effective_samples`` is how many those are. With none the estimate is below 1/n, never 0.
    """
    check_target(target, len(draws.weight))
    n = len(draws)
    hits = int((draws.top_tokens == target).sum())
    if not hits:
        return none_accepted(n, "no sample has the event")
    share = hits / n

    return Estimate(
        share, math.sqrt(share * (1 - share) / n), effective_samples=hits, resolution=1 / n
    )


def gld(draws: Draws, target: int) -> Estimate:
    r"""Gaussian logit difference: :math:`\Phi(\mu / \sigma)`.

    The Gaussian is fitted to the target's logit less the largest of the others. The standard
    error is that of the fit, by the delta method; it does not cover how far from Gaussian the
    difference is.

    References:
        Wu and Hilton, 2024: Estimating the probabilities of rare outputs in language models.
    """
    margins, n = draws.margins(target), len(draws)
    if n < 2:
        raise NotEnoughData("a variance needs two samples", where="gld")
    deviation = float(margins.std(correction=0))
    if deviation == 0:
        return Estimate(None, status="not_applicable", reason="the margin is the same everywhere")
    z = margins.mean() / deviation
    value = float(normal_below(z))
    if value == 0:
        return below_smallest_float()
    density = math.exp(-0.5 * float(z) ** 2) / math.sqrt(2 * math.pi)
    error = density * math.sqrt((1 + 0.5 * float(z) ** 2) / n)

    return Estimate(value, error)


def normal_below(z: Tensor) -> Tensor:
    """The standard Gaussian's distribution; torch's own is 0 below -9."""
    return 0.5 * torch.erfc(-z.double() / math.sqrt(2))


def below_smallest_float() -> Estimate:
    """The estimate where a probability underflows float64."""
    return Estimate(
        None,
        resolution=5e-324,
        status="below_resolution",
        reason="smaller than the smallest number that there is",
    )


def none_accepted(samples: int, why: str) -> Estimate:
    """The estimate where no sample was accepted."""
    return Estimate(
        None,
        effective_samples=0.0,
        resolution=1 / samples,
        status="below_resolution",
        reason=f"{why}: below resolution 1/{samples}",
    )
