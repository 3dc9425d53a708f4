"""Expected activations by sampling, unbiased, with the exactly known part removed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["Matrix", "Sampled", "Debiased", "sampled_activations", "debiased_mse"]

Matrix = Float[np.ndarray, "n n"]


@dataclass(frozen=True)
class Sampled:
    """Independent blocks of samples.

    Attributes:
        layers: mean of every layer over all blocks, ``[depth, n]``, float64.
        blocks: mean of the last layer in each block, ``[blocks, n]``.
        inputs: how many inputs that took.
    """

    layers: Float[np.ndarray, "depth n"]
    blocks: Float[np.ndarray, "blocks n"]
    inputs: int

    def __add__(self, other: "Sampled") -> "Sampled":
        mine, all_inputs = self.inputs, self.inputs + other.inputs

        return Sampled(
            (mine * self.layers + other.inputs * other.layers) / all_inputs,
            np.concatenate([self.blocks, other.blocks]),
            all_inputs,
        )


@dataclass(frozen=True)
class Debiased:
    """Squared error of an estimate without the truth's sampling error; it can be negative.

    Attributes:
        mse: the estimate, unbiased.
        deviation: its standard deviation from the truth's noise.
        truth_error: the truth's expected squared error, which was subtracted.
    """

    mse: float
    deviation: float
    truth_error: float


def sampled_activations(
    weights: Sequence[Matrix], blocks: int, rng: np.random.Generator
) -> Sampled:
    r"""Means over blocks of 2n inputs: the rows of a random rotation, and their opposites.

    Each input is uniform on the sphere, so that with its radius :math:`E|x|` the mean of every
    layer is unbiased for Gaussian inputs (the network is homogeneous); and in each block every
    polynomial of the direction up to the third degree has its exact mean.

    Args:
        weights: ``[in, out]`` each.
        blocks: how many independent rotations.
        rng: of the rotations.
    """
    width = len(weights[0])
    radius = math.sqrt(2) * math.exp(math.lgamma((width + 1) / 2) - math.lgamma(width / 2))
    total, finals = np.zeros((len(weights), width)), []
    for _ in range(blocks):
        rotation = np.linalg.qr(rng.standard_normal((width, width), dtype=np.float32))[0]
        x = np.concatenate([rotation.T, -rotation.T]) * np.float32(radius)
        for layer, weight in enumerate(weights):
            x = np.maximum(x @ weight, 0)
            total[layer] += x.mean(axis=0, dtype=np.float64)
        finals.append(x.mean(axis=0, dtype=np.float64))

    return Sampled(total / blocks, np.stack(finals), blocks * 2 * width)


def debiased_mse(estimate: Float[np.ndarray, " n"], truth: Sampled) -> Debiased:
    r"""Mean squared error of a last layer's estimate, less the truth's sampling variance.

    With C the covariance of the truth's mean, from its blocks, and :math:`\delta` the difference:
    :math:`(|\delta|^2 - \mathrm{tr}\,C) / n`, whose variance is
    :math:`(2\,\mathrm{tr}\,C^2 + 4\,\delta^\top C\,\delta) / n^2`.

    Args:
        estimate: ``[n]``.
        truth: at least two blocks.
    """
    count, width = truth.blocks.shape
    delta = np.asarray(estimate, dtype=np.float64) - truth.layers[-1]
    centred = truth.blocks - truth.blocks.mean(axis=0)
    scale = 1 / (count * (count - 1))
    trace = float((centred**2).sum() * scale)
    gram = centred @ centred.T * scale
    along = float(((centred @ delta) ** 2).sum() * scale)
    # a sample covariance's tr C^2 is too large by about (tr C)^2 / (count - 1), and delta' C delta
    # by tr C^2, since delta holds the truth's noise
    squared = max(float((gram**2).sum()) - trace**2 / (count - 1), 0.0)

    return Debiased(
        (float(delta @ delta) - trace) / width,
        math.sqrt(max(4 * along - 2 * squared, 2 * squared)) / width,
        trace / width,
    )
