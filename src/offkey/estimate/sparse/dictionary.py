"""A sparse dictionary as a value, and how it is fitted to rows or to Gaussians."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.gaussian import RELU, Normal
from offkey.training import TrainingSettings, train

__all__ = [
    "NAMES",
    "SparseDictionary",
    "fit_dictionary",
    "initial_weights",
    "expected_loss",
    "fit_to_normals",
]

NAMES = ("encoder", "encoder_bias", "decoder", "decoder_bias")


@dataclass(frozen=True, eq=False)
class SparseDictionary:
    r"""A sparse autoencoder: :math:`f = \operatorname{ReLU}((x - b_d) W_e + b_e)`,
    :math:`\hat x = f W_d + b_d`.

    Attributes:
        encoder: :math:`W_e`, ``[d, m]``.
        encoder_bias: :math:`b_e`, ``[m]``.
        decoder: :math:`W_d`, ``[m, d]``; one row a latent.
        decoder_bias: :math:`b_d`, ``[d]``.

    Raises:
        Mismatch: the shapes do not match.
        BadInput: a weight is not finite.
    """  # noqa: D205  # one formula in two parts

    encoder: Float[Tensor, "d m"]
    encoder_bias: Float[Tensor, " m"]
    decoder: Float[Tensor, "m d"]
    decoder_bias: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        d, m = self.encoder.shape if self.encoder.ndim == 2 else (-1, -1)
        shapes = [tuple(getattr(self, name).shape) for name in NAMES]
        if shapes != [(d, m), (m,), (m, d), (d,)]:
            raise Mismatch(
                f"shapes {shapes}",
                where="SparseDictionary",
                mend="Give [d, m], [m], [m, d] and [d]",
            )
        for name in NAMES:
            if not bool(getattr(self, name).isfinite().all()):
                raise BadInput("a weight is not finite", where=f"SparseDictionary {name}")

    @classmethod
    def identity(cls, width: int) -> "SparseDictionary":
        """Latents that are the dimensions themselves; exact on rows that are not negative."""
        eye = torch.eye(width, dtype=torch.float64)

        return cls(eye, eye.new_zeros(width), eye.clone(), eye.new_zeros(width))

    @property
    def width(self) -> int:
        """Width of the rows that it encodes."""
        return self.encoder.shape[0]

    @property
    def latents(self) -> int:
        """How many latents it has."""
        return self.encoder.shape[1]

    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Latents of each row; none is negative.

        Raises:
            Mismatch: rows of another width.
        """
        if x.shape[-1] != self.width:
            raise Mismatch(
                f"rows of width {x.shape[-1]} for a dictionary of width {self.width}",
                where="SparseDictionary",
            )
        x = x.to(self.encoder.dtype)
        latents: Tensor = ((x - self.decoder_bias) @ self.encoder + self.encoder_bias).relu()

        return latents

    def decode(self, latents: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """Rows rebuilt from latents."""
        return latents @ self.decoder + self.decoder_bias

    def loss(self, x: Float[Tensor, "n d"], penalty: float = 0.0) -> Float[Tensor, ""]:
        r"""Mean over rows of
        :math:`\lVert x - \hat x \rVert^2 + \lambda \sum_i f_i \lVert d_i \rVert`.
        """  # noqa: D205  # one formula
        latents = self.encode(x)
        error = (x.to(self.encoder.dtype) - self.decode(latents)).square().sum(-1)

        loss: Tensor = (error + penalty * latents @ self.decoder.norm(dim=1)).mean()

        return loss

    def scaled(self, scale: float) -> "SparseDictionary":
        """The dictionary of rows ``scale`` times as long."""
        return SparseDictionary(
            self.encoder / scale,
            self.encoder_bias,
            self.decoder * scale,
            self.decoder_bias * scale,
        )

    def detached(self) -> "SparseDictionary":
        """The same weights in float64, without gradients."""
        return SparseDictionary(*(getattr(self, name).detach().double() for name in NAMES))


def fit_dictionary(
    rows: Float[Tensor, "n d"],
    latents: int,
    settings: TrainingSettings,
    *,
    penalty: float = 0.1,
) -> SparseDictionary:
    r"""Fits a dictionary to rows by gradient descent on :meth:`SparseDictionary.loss`.

    Rows are scaled so that :math:`\mathbb E \lVert x - \bar x \rVert = \sqrt d`, and the scale is
    folded into the weights afterwards. A row of the decoder starts with length 0.1, the encoder as
    its transpose, :math:`b_d` as the mean. The decoder's length is free: the penalty counts it.

    Args:
        rows: such as activations at one site.
        latents: m.
        settings: how the run goes; its seed also draws the first weights.
        penalty: :math:`\lambda`, for rows of that scale.

    Raises:
        BadInput: a row is not finite, or all are alike.
        BadValue: no latents.
        NotEnoughData: fewer rows than a batch.
    """
    rows = rows.float()
    if not bool(rows.isfinite().all()):
        raise BadInput("a row is not finite", where="fit_dictionary")
    centre = rows.mean(0)
    scale = float((rows - centre).norm(dim=1).mean()) / math.sqrt(rows.shape[1])
    if not scale > 0:
        raise BadInput("all rows are alike", where="fit_dictionary")
    scaled = rows / scale
    weights = initial_weights(centre / scale, latents, settings.seed)
    train(
        weights,
        lambda batch: SparseDictionary(**weights).loss(scaled[batch], penalty),
        len(rows),
        settings,
    )

    return SparseDictionary(**weights).detached().scaled(scale)


def initial_weights(
    centre: Float[Tensor, " d"], latents: int, seed: int
) -> Mapping[str, nn.Parameter]:
    """Initial weights of a dictionary, by name.

    Raises:
        BadValue: no latents.
    """
    if latents < 1:
        raise BadValue(f"{latents} is below 1", where="latents")
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(latents, len(centre), generator=generator).to(centre.dtype)
    decoder = 0.1 * decoder / decoder.norm(dim=1, keepdim=True)
    values = {
        "encoder": decoder.T.clone(),
        "encoder_bias": centre.new_zeros(latents),
        "decoder": decoder,
        "decoder_bias": centre.clone(),
    }

    return {name: nn.Parameter(value) for name, value in values.items()}


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
        raise Mismatch(
            f"a dictionary of width {dictionary.width} for a Gaussian of width {len(normal.mean)}",
            where="expected_loss",
        )
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

    A feature too rare for any sample, such as one that is on once in a million, counts by the
    weight of its part. The scale is the root mean square of a dimension, folded back afterwards;
    the first weights are those of :func:`fit_dictionary`.

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
        dictionary = SparseDictionary(**weights)

        return torch.stack([s * expected_loss(dictionary, n, penalty) for s, n in scaled]).sum()

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
