"""How surprising activations, events and losses are under an activation model, in bits."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch
from offkey.estimate.activations.closures import log2_det
from offkey.estimate.activations.model import ActivationModel, moments_of
from offkey.estimate.gaussian import Normal
from offkey.estimate.quantities import Surprise, surprise_of_events
from offkey.stats import Moments

__all__ = [
    "Rows",
    "surprise_of_activations",
    "surprise_of_events_under",
    "surprise_of_losses",
    "fraction_explained",
    "pair_gain",
    "break_even",
]

Rows = Float[Tensor, "n d"] | Moments


def surprise_of_activations(model: ActivationModel, rows: Mapping[str, Rows]) -> Surprise:
    r"""Surprise of activations themselves, and of the argument.

    .. math:: S(Y \mid \pi) = \frac N2 \sum_\ell \Big[ \log_2 |2 \pi \hat S_\ell| +
        \frac{\operatorname{tr} \hat S_\ell^{-1} \hat\Sigma_\ell +
        \delta_\ell^\top \hat S_\ell^{-1} \delta_\ell}{\ln 2} \Big]

    with :math:`\delta` the sample mean less the model's. These are bits of a density: only
    differences between arguments mean anything, and they may be negative.

    Args:
        model: the model; its own samples may be the rows.
        rows: activations of each layer, or their moments.

    Raises:
        Mismatch: rows of other layers.
        NotEnoughData: a closed covariance is singular.
    """
    moments = _known(model, rows)
    empty = model.empty

    return Surprise(
        sum(_bits(model.closed[name], observed) for name, observed in moments.items()),
        model.argument.bits,
        sum(_bits(empty.closed[name], observed) for name, observed in moments.items()),
        empty.argument.bits,
    )


def surprise_of_events_under(
    model: ActivationModel,
    probability: Callable[[ActivationModel], float],
    hits: int,
    misses: int = 0,
) -> Surprise:
    """Surprise of an event that happened in some of the draws, and of the argument.

    Args:
        model: the model.
        probability: the event's probability under a model; called for this one and the empty one.
        hits: in how many draws the event happened.
        misses: in how many it did not.
    """
    empty = model.empty

    return Surprise(
        surprise_of_events(probability(model), hits, misses),
        model.argument.bits,
        surprise_of_events(probability(empty), hits, misses),
        empty.argument.bits,
    )


def surprise_of_losses(
    model: ActivationModel,
    predict: Callable[[ActivationModel], Normal],
    losses: Float[Tensor, " n"],
) -> Surprise:
    r"""Surprise of scalar losses under the predicted output, and of the argument.

    .. math:: S(Y \mid \pi) = \sum_n \tfrac12 \log_2 2 \pi v + \frac{(y_n - m)^2}{2 v \ln 2}

    Bits of a density: only differences between arguments mean anything.

    Args:
        model: the model.
        predict: mean and variance of the loss under a model, as a Gaussian of width 1; called for
            this one and the empty one.
        losses: the observed losses.

    Raises:
        BadValue: a prediction that is not of width 1, or does not vary.
    """
    moments = Moments()
    moments.update(losses.double()[:, None], [f"loss {n}" for n in range(len(losses))])
    empty = model.empty

    def bits(model: ActivationModel) -> float:
        predicted = predict(model)
        if len(predicted.mean) != 1 or not float(predicted.variance[0]) > 0:
            raise BadValue(
                "the prediction is not one number with a variance above 0",
                where="surprise_of_losses",
            )
        return _bits(predicted, moments)

    return Surprise(bits(model), model.argument.bits, bits(empty), empty.argument.bits)


def fraction_explained(model: ActivationModel, rows: Mapping[str, Rows]) -> float:
    """What the argument explains, as a share of what the full covariances explain.

    Raises:
        NotEnoughData: a full covariance is singular.
        BadValue: the full covariances explain nothing.
    """
    moments = _known(model, rows)
    whole = surprise_of_activations(model.full, moments).explained
    if not whole > 0:
        raise BadValue(
            "there is nothing to explain: no two dimensions are correlated",
            where="fraction_explained",
        )

    return surprise_of_activations(model, moments).explained / whole


def pair_gain(correlation: Float[Tensor, "*shape"], samples: int) -> Float[Tensor, "*shape"]:
    r"""Bits that tracking one pair explains by itself, :math:`-\frac N2 \log_2 (1 - \rho^2)`."""
    gain: Tensor = -samples / 2 * torch.log2((1 - correlation.double().square()).clamp(min=1e-300))

    return gain


def break_even(correlation: float, width: int) -> int:
    r"""Fewest samples from which tracking one pair is worth its description.

    The least N with :math:`-\frac N2 \log_2 (1 - \rho^2) > \log_2 n + \frac12 \log_2 N`, where n
    is the number of pairs of a layer of this width.

    Raises:
        BadValue: a correlation of 0 or not between -1 and 1, or fewer than two dimensions.
    """
    if not 0 < abs(correlation) < 1:
        raise BadValue(
            f"correlation {correlation}", where="break_even", mend="Use one between 0 and 1"
        )
    if width < 2:
        raise BadValue(f"{width} dimensions have no pair", where="break_even")
    rate = -math.log2(1 - correlation**2) / 2
    choice = math.log2(width * (width - 1) / 2)

    def pays(n: int) -> bool:
        return rate * n > choice + math.log2(n) / 2

    high = 1
    while not pays(high):
        high *= 2
    # the net is convex in N: where one sample does not pay, there is a single crossing
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)

    return high


def _known(model: ActivationModel, rows: Mapping[str, Rows]) -> dict[str, Moments]:
    if set(rows) != set(model.layers):
        raise Mismatch(
            f"rows of layers {', '.join(rows)}, and the model has {', '.join(model.layers)}",
            where="rows",
        )
    moments = {name: moments_of(summary) for name, summary in rows.items()}
    for name, summary in moments.items():
        if summary.dimensions != len(model.layers[name].mean):
            raise Mismatch(
                f"rows of width {summary.dimensions} for one of width "
                f"{len(model.layers[name].mean)}",
                where=f"layer {name}",
            )

    return moments


def _bits(normal: Normal, moments: Moments) -> float:
    s, gap = normal.full, moments.mean - normal.mean
    spread = moments.covariance() + torch.outer(gap, gap)
    trace = float(torch.linalg.solve(s, spread).trace())
    density = len(s) * math.log2(2 * math.pi) + log2_det(s) + trace / math.log(2)

    return moments.count / 2 * density
