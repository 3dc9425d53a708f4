"""Autoencoders under training: TopK, JumpReLU, and what they share."""

import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from offkey.dictionaries.dictionary import Dictionary
from offkey.dictionaries.recipe import DictionaryRecipe

__all__ = [
    "JumpReLUTrainee",
    "TopKTrainee",
    "Trainee",
    "gate",
    "geometric_median",
    "topk_reconstruction",
]


class Trainee(nn.Module):
    r"""An autoencoder under training, on activations that were centred and brought to one scale.

    Rows :math:`x` are trained on as :math:`s (x - c)`, with :math:`c` the geometric median of the
    first rows and :math:`s` such that their mean length is :math:`\sqrt d`. Decoder rows keep
    length 1: they are scaled to it before each step, and the part of their gradient along them is
    removed. What a checkpoint must hold besides the weights are parameters without a gradient.

    Args:
        recipe: how it is trained.
        rows: the first activations, from which scale and centre are taken.
        generator: draws the decoder.
    """

    silent: nn.Parameter

    def __init__(
        self, recipe: DictionaryRecipe, rows: Float[Tensor, "n d"], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.recipe = recipe
        width = rows.shape[1]
        self.centre = geometric_median(rows)
        lengths = (rows - self.centre).norm(dim=1)
        self.scale = math.sqrt(width) / float(lengths.mean().clamp_min(1e-12))
        decoder = torch.randn(recipe.latents, width, generator=generator)
        decoder /= decoder.norm(dim=1, keepdim=True)
        self.decoder = nn.Parameter(decoder.to(rows.device))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.encoder_bias = nn.Parameter(rows.new_zeros(recipe.latents))
        self.decoder_bias = nn.Parameter(rows.new_zeros(width))
        self.silent = nn.Parameter(rows.new_zeros(recipe.latents), requires_grad=False)
        self.decoder.register_hook(self._across)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def scaled(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Activations as they are trained on."""
        return (rows - self.centre) * self.scale

    def dead(self) -> Int[Tensor, " dead"]:
        """Latents that no row of the last ``dead_after`` made active."""
        return (self.silent.detach() >= self.recipe.dead_after).nonzero()[:, 0]

    def count_active(self, active: Int[Tensor, " n"], rows: int) -> None:
        """Counts the rows since each latent was last active."""
        with torch.no_grad():
            self.silent += rows
            self.silent[active] = 0

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scales the decoder's rows to length 1."""
        self.decoder /= self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)

    @abstractmethod
    def loss(self, x: Float[Tensor, "n d"], progress: float) -> Float[Tensor, ""]:
        """The loss on scaled rows; ``progress`` goes from 0 to 1."""

    @abstractmethod
    def threshold(self) -> Float[Tensor, " latent"] | None:
        """Threshold of each latent on scaled rows, if there is one."""

    @torch.no_grad()
    def to_dictionary(self, site: str = "", model: str = "") -> Dictionary:
        """The trained dictionary, for activations that are neither centred nor scaled."""
        self.normalise_decoder()
        threshold = self.threshold()

        return Dictionary(
            encoder=self.encoder.detach().T.contiguous(),
            encoder_bias=self.encoder_bias.detach() / self.scale,
            decoder=self.decoder.detach().clone(),
            decoder_bias=self.decoder_bias.detach() / self.scale + self.centre,
            activation=self.recipe.kind,
            k=self.recipe.active if self.recipe.kind == "topk" else None,
            threshold=None if threshold is None else threshold / self.scale,
            site=site,
            model=model,
        )

    def _across(self, grad: Tensor) -> Tensor:
        unit = self.decoder.detach()

        return grad - (grad * unit).sum(1, keepdim=True) * unit


def geometric_median(
    rows: Float[Tensor, "n d"], *, steps: int = 50, most: int = 10_000
) -> Float[Tensor, " d"]:
    """The point with the least summed distance to the rows, by Weiszfeld's steps.

    Only the first ``most`` rows are used.
    """
    rows = rows[:most].double()
    point = rows.mean(0)
    for _ in range(steps):
        weights = 1 / (rows - point).norm(dim=1).clamp_min(1e-9)
        new = weights @ rows / weights.sum()
        moved = float((new - point).norm())
        point = new
        if moved <= 1e-7 * float(point.norm().clamp_min(1e-12)):
            break

    return point.float()


class _Reconstruction(torch.autograd.Function):
    r"""TopK from activation to reconstruction, with a backward pass over active latents alone.

    Only the pre-activations need a dense product. With :math:`g` the gradient at the output and
    :math:`A` the pairs of token and active latent, the rows of the gradients are
    :math:`\sum_{t: (t, i) \in A} f_{ti} g_t` (decoder) and
    :math:`\sum_{t: (t, i) \in A} (g_t \cdot W_i) (x_t - b)` (encoder).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor,
        decoder: Tensor,
        decoder_bias: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - decoder_bias
        z = torch.addmm(encoder_bias, centred, encoder.T)
        values, places = z.topk(k, dim=1, sorted=False)
        values = values.relu_()
        made = embedding_bag(places, decoder, per_sample_weights=values, mode="sum")
        ctx.save_for_backward(centred, encoder, decoder, values, places)
        ctx.mark_non_differentiable(values, places)

        return made.add_(decoder_bias), values, places

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, encoder, decoder, values, places = ctx.saved_tensors
        g = grads[0].contiguous()
        inner = _products(g, decoder, places) * (values > 0)
        order = places.flatten().argsort()
        tokens = order // values.shape[1]
        counts = places.flatten().bincount(minlength=len(decoder))
        starts = counts.cumsum(0) - counts

        def summed(rows: Tensor, weights: Tensor) -> Tensor:
            return embedding_bag(
                tokens, rows, starts, mode="sum", per_sample_weights=weights.flatten()[order]
            )

        bias = torch.zeros_like(counts, dtype=g.dtype)
        bias.index_add_(0, places.flatten(), inner.flatten())

        return (
            None,
            summed(centred, inner),
            bias,
            summed(g, values),
            g.sum(0) - bias @ encoder,
            None,
        )


def _products(g: Tensor, decoder: Tensor, places: Tensor) -> Tensor:
    """Product of each row of ``g`` with the decoder's rows at its places, and with no others.

    It is the gradient of a weighted sum in its weights, for which torch has a kernel: a fifth of
    the time of the dense product at 32 of 2048 latents.
    """
    with torch.enable_grad():
        weights = torch.zeros_like(places, dtype=g.dtype).requires_grad_()
        made = embedding_bag(places, decoder, per_sample_weights=weights, mode="sum")
        (grads,) = torch.autograd.grad(made, weights, g)

    return grads


def topk_reconstruction(
    x: Float[Tensor, "n d"],
    encoder: Float[Tensor, "latent d"],
    encoder_bias: Float[Tensor, " latent"],
    decoder: Float[Tensor, "latent d"],
    decoder_bias: Float[Tensor, " d"],
    k: int,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The reconstruction, differentiable in the weights; values and places of active latents."""
    made: tuple[Tensor, Tensor, Tensor] = _Reconstruction.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x, encoder, encoder_bias, decoder, decoder_bias, k
    )

    return made


class TopKTrainee(Trainee):
    r"""A TopK autoencoder under training.

    The loss is the mean squared error; to it comes, times ``auxiliary`` and the share of
    :math:`d / 2` that are dead, that of the dead latents' reconstruction of what was missed
    (AuxK, at most :math:`d / 2` of them for each row, without the decoder's bias).

    References:
        Gao et al., 2024, appendix A.2. https://arxiv.org/abs/2406.04093
    """

    def reconstruct(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The reconstruction; counts which latents were active."""
        made, values, places = topk_reconstruction(
            x, self.encoder, self.encoder_bias, self.decoder, self.decoder_bias, self.recipe.active
        )
        self.count_active(places[values > 0], len(x))

        return made

    def loss(self, x: Float[Tensor, "n d"], progress: float) -> Float[Tensor, ""]:
        """Mean squared error, and that of the dead latents on the residual."""
        dead = self.dead()
        made = self.reconstruct(x)
        missed = x - made
        loss = missed.square().mean()
        if not self.recipe.auxiliary or not len(dead):
            return loss
        half = max(1, x.shape[1] // 2)
        z = (x - self.decoder_bias.detach()) @ self.encoder[dead].T + self.encoder_bias[dead]
        values, places = z.topk(min(half, len(dead)), dim=1, sorted=False)
        f = torch.zeros_like(z).scatter(1, places, values.relu())
        again = (missed.detach() - f @ self.decoder[dead]).square().mean()

        return loss + self.recipe.auxiliary * min(1.0, len(dead) / half) * again

    def threshold(self) -> None:
        """TopK has none."""
        return None


class _Gate(torch.autograd.Function):
    """Both functions at once: they share the mask, and the kernel is looked at once."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        open_ = z > theta
        ctx.save_for_backward(z, theta, open_)
        ctx.bandwidth = bandwidth

        return z * open_, open_.sum(1, dtype=z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta, open_ = ctx.saved_tensors
        by_value, by_count = grads
        rows, places = ((z - theta).abs_() < ctx.bandwidth / 2).nonzero(as_tuple=True)
        near = by_value[rows, places] * theta[places] + by_count[rows]
        slope = torch.zeros_like(theta).index_add_(0, places, near).div_(-ctx.bandwidth)

        return by_value * open_, slope, None


def gate(
    z: Float[Tensor, "n latent"], theta: Float[Tensor, " latent"], bandwidth: float
) -> tuple[Float[Tensor, "n latent"], Float[Tensor, " n"]]:
    r"""JumpReLU and how many latents it leaves active, with pseudo-derivatives at the threshold.

    The latents are z where it is above its threshold, else 0; the count is the sum of the steps
    :math:`H(z - \theta)`. With :math:`K` the rectangle on :math:`(-\frac12, \frac12)`,
    derivatives in :math:`\theta` are taken to be :math:`-\frac\theta\varepsilon
    K\!\left(\frac{z - \theta}{\varepsilon}\right)` for a latent and :math:`-\frac1\varepsilon
    K\!\left(\frac{z - \theta}{\varepsilon}\right)` for a step. The derivative of a latent in z
    is 1 above the threshold, that of a step 0.

    Args:
        z: pre-activations.
        theta: thresholds, above 0.
        bandwidth: :math:`\varepsilon`.

    References:
        Rajamanoharan et al., 2024. https://arxiv.org/abs/2407.14435
    """
    made: tuple[Tensor, Tensor] = _Gate.apply(z, theta, bandwidth)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return made


class JumpReLUTrainee(Trainee):
    r"""A JumpReLU autoencoder under training.

    The loss is the mean squared error and :math:`\lambda (L_0 / \text{active} - 1)^2`, with
    :math:`\lambda` rising over the warm-up. Thresholds are trained as their logarithms; they
    begin where four times as many latents as wanted are active on the first rows. Dead latents
    are pulled up by the mean over rows of the sum of :math:`\text{ReLU}(\theta - z)`, times
    ``auxiliary`` over a thousand.

    References:
        Rajamanoharan et al., 2024. https://arxiv.org/abs/2407.14435
    """

    def __init__(
        self, recipe: DictionaryRecipe, rows: Float[Tensor, "n d"], generator: torch.Generator
    ) -> None:
        super().__init__(recipe, rows, generator)
        share = min(0.5, 4 * recipe.active / recipe.latents)
        z = self.scaled(rows[:1024]) @ self.encoder.detach().T
        start = (
            z.quantile(1 - share)
            if z.numel() < 2**24
            else z[: 2**24 // z.shape[1]].quantile(1 - share)
        )
        self.log_threshold = nn.Parameter(
            torch.full_like(self.encoder_bias, float(start.clamp_min(1e-3).log()))
        )

    def loss(self, x: Float[Tensor, "n d"], progress: float) -> Float[Tensor, ""]:
        """Mean squared error, and how far the number of active latents is from that wanted."""
        recipe, theta = self.recipe, self.log_threshold.exp()
        shift = self.encoder_bias - self.encoder @ self.decoder_bias
        z = torch.addmm(shift, x, self.encoder.T)
        f, count = gate(z, theta, recipe.bandwidth)
        made = torch.addmm(self.decoder_bias, f, self.decoder)
        active = count.mean()
        weight = recipe.sparsity * min(1.0, progress / recipe.warmup if recipe.warmup else 1.0)
        loss = (x - made).square().mean() + weight * (active / recipe.active - 1).square()
        dead = self.dead()
        self.count_active(f.detach().any(0).nonzero()[:, 0], len(x))
        if recipe.auxiliary and len(dead):
            pull = (theta[dead] - z[:, dead]).relu().sum(1).mean()
            loss = loss + recipe.auxiliary / 1000 * pull

        return loss

    def threshold(self) -> Float[Tensor, " latent"]:
        """Threshold of each latent on scaled rows."""
        return self.log_threshold.detach().exp()
