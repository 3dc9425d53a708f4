"""A dictionary's loss over a Gaussian, in closed form, and training on it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch
from offkey.estimate.gaussian import RELU, Normal
from offkey.estimate.sparse._dictionary import SparseDictionary, initial_weights
from offkey.training import TrainingSettings, train

__all__ = ["expected_loss", "fit_to_normals"]


def expected_loss(
    dictionary: SparseDictionary, normal: Normal, penalty: float = 0.0
) -> Float[Tensor, ""]:
    r"""Expected :meth:`SparseDictionary.loss` over a Gaussian: no sample is drawn.

    With :math:`z \sim \mathcal N` the encoder's output, :math:`f = \operatorname{ReLU}(z)` and
    :math:`y = x - b_d`,

    .. math:: \mathbb E \lVert x - \hat x \rVert^2 = \mathbb E \lVert y \rVert^2
        - 2 \operatorname{tr}\, W_d\, \mathbb E[y f^\top]
        + \operatorname{tr}\, W_d W_d^\top\, \mathbb E[f f^\top]

    :math:`\mathbb E[y f^\top] = \bar y\, \mathbb E[f]^\top + S W_e \operatorname{diag} \Phi(\bar z
    / \sigma_z)` by Stein's lemma, and :math:`\mathbb E[f_i f_j]` is the exact moment of a pair of
    ReLUs. Exact for a Gaussian; :math:`O(d^2 m + m^2)`. Differentiable in the dictionary's
    weights; in float64.

    Args:
        dictionary: its loss is taken.
        normal: the layer's Gaussian.
        penalty: :math:`\lambda` of the loss.

    Raises:
        Mismatch: a dictionary of another width.
    """
    if len(normal.mean) != dictionary.width:
        raise Mismatch(f"a dictionary of width {dictionary.width} for a Gaussian of width "
                       f"{len(normal.mean)}", where="expected_loss")  # fmt: skip
    encoder, decoder = dictionary.encoder.double(), dictionary.decoder.double()
    covariance = normal.full
    centre = normal.mean - dictionary.decoder_bias.double()
    with_x = covariance @ encoder
    mean = centre @ encoder + dictionary.encoder_bias.double()
    spread = encoder.T @ with_x
    spread = (spread + spread.T) / 2
    variance = spread.diagonal().clamp_min(1e-300)

    first = RELU.mean(mean, variance)
    with_latent = centre[:, None] * first + with_x * RELU.derivative(1, mean, variance)
    pairs = _pair_moments(mean, variance, spread)
    size = covariance.trace() + centre @ centre
    across = (decoder * with_latent.T).sum()
    within = ((decoder @ decoder.T) * pairs).sum()

    loss: Tensor = size - 2 * across + within + penalty * first @ decoder.norm(dim=1)

    return loss


def fit_to_normals(
    parts: Sequence[tuple[float, Normal]],
    latents: int,
    settings: TrainingSettings,
    *,
    penalty: float = 0.1,
) -> SparseDictionary:
    """Fits a dictionary to a mixture of Gaussians by gradient descent on the closed form.

    What no sample would hold, such as a feature that is on once in a million, counts by the weight
    of its part. The scale is the root mean square of a dimension, folded back afterwards; the
    first weights are those of :func:`fit_dictionary`.

    Args:
        parts: weight and Gaussian of each part.
        latents: how many.
        settings: how the run goes; the batch is not used.
        penalty: for rows of unit scale, as in :func:`fit_dictionary`.

    Raises:
        BadValue: no parts, or a weight that is not positive.
        Mismatch: parts of unlike width.
    """
    if not parts or not all(weight > 0 for weight, _ in parts):
        raise BadValue("no parts, or a weight that is not positive", where="fit_to_normals")
    if len({len(normal.mean) for _, normal in parts}) > 1:
        raise Mismatch("parts of unlike width", where="fit_to_normals")
    total = math.fsum(weight for weight, _ in parts)
    shares = [(weight / total, normal) for weight, normal in parts]
    centre = torch.stack([share * normal.mean for share, normal in shares]).sum(0)
    spread = sum(
        share * float(normal.full.trace() + (normal.mean - centre).square().sum())
        for share, normal in shares
    )
    scale = math.sqrt(spread / len(centre))
    scaled = [
        (share, Normal(normal.mean / scale, normal.full / scale**2)) for share, normal in shares
    ]
    weights = initial_weights(centre / scale, latents, settings.seed)
    runs = {**settings.as_dict(), "batch": 1, "stop_at": settings.stop_at}

    def loss(_: list[int]) -> Tensor:
        found = SparseDictionary(**weights)

        return torch.stack([s * expected_loss(found, n, penalty) for s, n in scaled]).sum()

    train(weights, loss, 1, TrainingSettings(**runs))

    return SparseDictionary(**weights).detached().scaled(scale)


def _pair_moments(
    mean: Float[Tensor, " m"], variance: Float[Tensor, " m"], spread: Float[Tensor, "m m"]
) -> Float[Tensor, "m m"]:
    """E f fᵀ: each pair once, the diagonal by its own rule (a pair's is singular there)."""
    row, column = torch.triu_indices(len(mean), len(mean), 1).unbind()
    upper = RELU.product(
        mean[row], mean[column], variance[row], variance[column], spread[row, column]
    )
    pairs = torch.diag(RELU.second_moment(mean, variance)).index_put((row, column), upper)

    return pairs.index_put((column, row), upper)
