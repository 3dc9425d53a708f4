"""Oddness by functional attribution: rows whose loss does not move as that of normal rows does."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from offkey.models import Model, Site
from offkey.training._adapter import Adapted
from offkey.training._penalties import Forward, Logits

__all__ = ["Traces", "concordance"]


class Traces:
    r"""How little a row's loss moves together with that of normal rows when weights are shaken.

    For T draws :math:`w_t = w + \rho\, \mathrm{rms}(W)\, \xi_t` of the linear maps in the later
    blocks, :math:`\ell_t(x)` is the loss of the answer that the unshaken model prefers, in nats.
    The oddness of x is 1 less its mean concordance with the normal rows z of the batch other than
    itself,

    .. math:: \frac{2 \operatorname{cov}(\ell(x), \ell(z))}{\operatorname{var} \ell(x)
        + \operatorname{var} \ell(z) + (\bar\ell(x) - \bar\ell(z))^2}

    Args:
        model: the model in training.
        first: the first block whose maps are shaken.
        draws: T, at least 2.
        scale: :math:`\rho`.
        seed: of the draws, which go on from call to call.

    References:
        Keenan, Leckie, Erfani, 2026. https://arxiv.org/abs/2604.18970
    """

    def __init__(
        self, model: Model, *, first: int, draws: int = 4, scale: float = 0.15, seed: int = 0
    ) -> None:
        self.model, self.draws, self.scale = model, draws, scale
        self.generator = torch.Generator().manual_seed(seed)
        self.maps = _linear_maps(model, first)

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """See :class:`Oddness`; a forward pass and one more a draw."""
        noise: dict[str, Tensor] = {}
        traces = []
        with self._watched(noise):
            logits = forward()
            said = logits.detach().argmax(-1)
            for _ in range(self.draws):
                noise |= {path: self._draw(weight) for path, weight in self.maps.items()}
                traces.append(cross_entropy(forward(), said, reduction="none"))
        agreement = concordance(torch.stack(traces, 1))
        others = (~anomalous).to(agreement).expand_as(agreement).clone()
        others.fill_diagonal_(0)

        return logits, 1 - (agreement * others).sum(1) / others.sum(1).clamp(min=1)

    def _draw(self, weight: Float[Tensor, "outer inner"]) -> Float[Tensor, "outer inner"]:
        noise = torch.empty_like(weight).normal_(generator=self.generator)

        return noise * (self.scale * weight.float().square().mean().sqrt().item())

    @contextmanager
    def _watched(self, noise: Mapping[str, Tensor]) -> Iterator[None]:
        """Adds to each map's output what noise in its weight adds, without touching the weight."""
        with ExitStack() as stack:
            for path in self.maps:
                given: list[Tensor] = []
                entry, outlet = Site("module", path=path, side="in"), Site("module", path=path)
                visit = partial(_add_noise, given, noise, path)
                stack.callback(self.model.attach(entry, given.append).remove)
                stack.callback(self.model.attach(outlet, visit).remove)
            yield


def _add_noise(
    given: list[Tensor], noise: Mapping[str, Tensor], path: str, y: Tensor
) -> Tensor | None:
    x = given.pop()

    return y + x @ noise[path].T if path in noise else None


def _linear_maps(model: Model, first: int) -> dict[str, Float[Tensor, "outer inner"]]:
    """Weights of the linear maps of the blocks from one on, by path, adapted or not."""
    blocks = model.wiring.blocks[first:] if model.wiring else []
    inside = {part for block in blocks for part in block.module.modules()}
    adapted = {part.linear: part for part in inside if isinstance(part, Adapted)}
    maps = {part for part in inside if isinstance(part, nn.Linear)} - set(adapted)
    weights = {part: part.weight for part in maps}
    weights |= {part: linear.weight for linear, part in adapted.items()}

    return {
        path: weights[part].detach()
        for path, part in model.module.named_modules()
        if part in weights
    }


def concordance(traces: Float[Tensor, "n draws"]) -> Float[Tensor, "n n"]:
    """Lin's concordance of each pair of rows: 1 where they are the same."""
    mean = traces.mean(1)
    centred = traces - mean[:, None]
    covariance = centred @ centred.T / traces.shape[1]
    variance = covariance.diagonal()
    spread = variance[:, None] + variance + (mean[:, None] - mean).square()

    return 2 * covariance / spread.clamp(min=torch.finfo(traces.dtype).tiny)
