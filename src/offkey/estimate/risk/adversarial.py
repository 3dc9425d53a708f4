"""Adversarial training against a fitted Gaussian: finds likely failures before one occurs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadInput, BadValue
from offkey.estimate.gaussian import Normal
from offkey.estimate.quantities import Estimate
from offkey.estimate.risk.decomposition import Whitening
from offkey.estimate.risk.samplers import importance_mean

__all__ = [
    "Margin",
    "linear_shift",
    "hardest_shift",
    "fitted_log_tail",
    "shifted_probability",
    "Round",
    "Adversary",
    "harden",
]

Margin = Callable[[Tensor], Tensor]
"""From inputs ``[n, d]`` to ``[n]``, above 0 where the catastrophe happens; differentiable."""


def linear_shift(normal: Normal, weight: Float[Tensor, " d"], nats: float) -> Float[Tensor, " d"]:
    r"""The mean within ``nats`` of divergence at which a linear detector fires most often.

    :math:`m_0 + \sqrt{2 \varepsilon}\, S w / \sqrt{w^\top S w}`: the z-score rises by
    :math:`\sqrt{2 \varepsilon}`. The covariance is kept.

    Raises:
        BadValue: ``nats`` is negative, or the detector does not vary.
    """
    w = weight.double()
    pull = normal.full @ w
    variance = float(w @ pull)
    if nats < 0 or variance <= 0:
        raise BadValue(f"{nats} nats and a variance of {variance:.3g}", where="linear_shift")

    return normal.mean + math.sqrt(2 * nats) * pull / math.sqrt(variance)


def hardest_shift(
    normal: Normal, log_tail: Callable[[Tensor], Tensor], nats: float, *, steps: int = 100
) -> Float[Tensor, " d"]:
    r"""The mean m at which ``log_tail(m)`` is largest, no more than ``nats`` away.

    The divergence is :math:`KL(N(m, S)\|N(m_0, S))`, half a squared length in whitened
    coordinates, where the gradient is climbed and projected; the best of all points is returned.

    Args:
        normal: :math:`N(m_0, S)`.
        log_tail: from a mean to a log-probability, differentiable.
        nats: most divergence.
        steps: of the ascent; their length falls to a hundredth of the radius.

    Raises:
        BadValue: ``nats`` is negative.
        BadInput: the covariance is not positive definite, or a gradient is not finite.
    """
    if nats < 0:
        raise BadValue(f"{nats} nats", where="hardest_shift")
    factor, radius = Whitening.of(normal, 0.0).factor, math.sqrt(2 * nats)
    z = torch.zeros_like(normal.mean)
    best, hardest = -math.inf, normal.mean
    for step in range(steps + 1):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            mean = normal.mean + factor @ z
            value = log_tail(mean)
            (slope,) = torch.autograd.grad(value, z)
        if not bool(slope.isfinite().all()):
            raise BadInput(
                "the gradient of the log-probability is not finite", where="hardest_shift"
            )
        if float(value.detach()) > best:
            best, hardest = float(value.detach()), mean.detach()
        length = float(slope.norm())
        if length == 0 or radius == 0:
            break
        z = z.detach() + radius * 0.01 ** (step / max(steps, 1)) * slope / length
        z = z * min(1.0, radius / float(z.norm()))

    return hardest


def fitted_log_tail(margin: Margin, noise: Float[Tensor, "n d"]) -> Callable[[Tensor], Tensor]:
    r""":math:`\ln \Phi(\mu / \sigma)` of a margin's mean and deviation around any mean.

    Args:
        margin: of the model as it is now.
        noise: deviations from the mean, the same for every mean.
    """

    def log_tail(mean: Float[Tensor, " d"]) -> Tensor:
        margins = margin(mean + noise)

        log_p: Tensor = torch.special.log_ndtr((margins.mean() / margins.std()).double())

        return log_p

    return log_tail


def shifted_probability(
    margin: Margin,
    normal: Normal,
    means: Sequence[Float[Tensor, " d"]],
    *,
    samples: int = 4096,
    seed: int = 0,
) -> Estimate:
    """The probability of a positive margin under ``normal``, by importance sampling.

    Samples are drawn evenly from Gaussians of the same covariance at the normal's own mean and
    at ``means``, and each is weighted against the whole
    mixture. Unbiased whatever the means are.
    """
    generator = torch.Generator().manual_seed(seed)
    whitening = Whitening.of(normal, 0.0)
    centres = torch.stack([normal.mean, *means])
    each = -(-samples // len(centres))
    noise = torch.randn(len(centres), each, len(normal.mean), generator=generator).double()
    x = (centres[:, None] + noise @ whitening.factor.T).flatten(0, 1)
    own = whitening.whiten(x)
    apart = own[:, None] - whitening.whiten(centres)[None]
    log_mixture = (-0.5 * apart.square().sum(2)).logsumexp(1) - math.log(len(centres))
    with torch.no_grad():
        hits = margin(x) > 0

    return importance_mean((-0.5 * own.square().sum(1) - log_mixture).exp() * hits)


@dataclass(frozen=True, eq=False)
class Round:
    """The failures of one round, before its training.

    Attributes:
        mean: where failures are likeliest within the divergence allowed.
        fitted: the Gaussian fit's probability at the ordinary mean; training can game it.
        fitted_there: the same at ``mean``.
        true: the probability at the ordinary mean, by importance sampling.
    """

    mean: Float[Tensor, " d"]
    fitted: float
    fitted_there: float
    true: Estimate


@dataclass(frozen=True)
class Adversary:
    """Settings of the rounds.

    Args:
        nats: most divergence of the adversarial inputs from ordinary ones.
        samples: inputs drawn for the fit, for training and for the true probability.
        seed: of every draw.
    """

    nats: float = 2.0
    samples: int = 2048
    seed: int = 0


def harden(
    margin: Margin,
    normal: Normal,
    train: Callable[[Float[Tensor, "n d"]], None],
    adversary: Adversary,
    *,
    rounds: int = 5,
) -> list[Round]:
    """Alternates between finding likely failures and training on them.

    Args:
        margin: of the model that ``train`` changes.
        normal: ordinary inputs.
        train: given adversarial inputs, takes its steps.
        adversary: how far from ordinary inputs, and how many.
        rounds: how often it trains.

    Returns:
        One row before each training and one after the last. Each fits anew.
    """
    factor = Whitening.of(normal, 0.0).factor
    generator = torch.Generator().manual_seed(adversary.seed)
    shape = (adversary.samples, len(normal.mean))
    results: list[Round] = []
    for number in range(rounds + 1):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) @ factor.T
        log_tail = fitted_log_tail(margin, noise)
        mean = hardest_shift(normal, log_tail, adversary.nats)
        with torch.no_grad():
            fitted, there = float(log_tail(normal.mean).exp()), float(log_tail(mean).exp())
        met = [*(row.mean for row in results), mean]
        true = shifted_probability(
            margin, normal, met, samples=8 * adversary.samples, seed=adversary.seed + number
        )
        results.append(Round(mean, fitted, there, true))
        if number < rounds:
            again = torch.randn(shape, generator=generator, dtype=torch.float64) @ factor.T
            train(mean + again)

    return results
