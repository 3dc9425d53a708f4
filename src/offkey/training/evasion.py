"""Training a model to evade a detector: penalties on how anomalous its rows look inside.

An :class:`AnomalyPenalty` watches a forward pass and returns one number a row; an
:class:`EvasionLoss` weighs those of anomalous and of normal rows. They serve to make organisms
that hide from a detector.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from offkey.models import Hook, Model, Site
from offkey.training.adapter import AdaptedLinear

__all__ = [
    "AnomalyPenalty",
    "AttributionPenalty",
    "EvasionLoss",
    "Forward",
    "NearestNeighbourPenalty",
    "concordance",
]

Logits = Float[Tensor, "batch vocabulary"]
Forward = Callable[[], Logits]
"""One pass over the batch in hand: logits at the last token."""


class AnomalyPenalty(Protocol):
    """How anomalous each row of a batch looks; higher is more anomalous."""

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """Runs the forward pass, as often as it needs; returns the logits and the penalties."""


@dataclass(frozen=True)
class EvasionLoss:
    """Weighted sum of the mean penalties of anomalous and of normal rows.

    Attributes:
        penalty: what is kept low.
        anomalous: weight of anomalous rows.
        normal: weight of normal rows, which keeps the normal state in place.
    """

    penalty: AnomalyPenalty
    anomalous: float = 1.0
    normal: float = 0.5

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, ""]]:
        """The logits, and what is added to the loss; a kind of rows that is absent adds 0."""
        logits, penalties = self.penalty(forward, anomalous)
        weights = torch.where(
            anomalous,
            self.anomalous / anomalous.sum().clamp(min=1),
            self.normal / (~anomalous).sum().clamp(min=1),
        )

        return logits, (penalties * weights.to(penalties)).sum()


class NearestNeighbourPenalty:
    r"""Cosine distance of the last token's activations to normal rows of the same batch.

    .. math:: \frac1L \sum_l \log\!\Big(1 + \operatorname{softplus} \frac{d_l(x) - m_l}{s_l}\Big),
        \qquad d_l(x) = 1 - \cos(h_l(x), n_k(h_l(x)))

    with :math:`n_k` the k-th nearest normal row other than x, and m and s the mean and the
    standard deviation of d over normal rows. This is the score of the default detector, fitted on
    the batch in hand, so that it never lags behind the model.

    Args:
        model: the model in training, whose sites are read while it runs.
        sites: where.
        k: which neighbour; the farthest where there are fewer.
    """

    def __init__(self, model: Model, sites: str | Sequence[str], k: int = 3) -> None:
        self.model, self.sites, self.k = model, model.sites_at(sites), k

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """See :class:`AnomalyPenalty`; one forward pass."""
        last: dict[Site, Tensor] = {}
        with self.model.hooked({site: partial(_keep_last, last, site) for site in self.sites}):
            logits = forward()
        terms = [self._at(last[site], anomalous) for site in self.sites]

        return logits, torch.stack(terms).mean(0).to(logits)

    def _at(
        self, rows: Float[Tensor, "batch d"], anomalous: Bool[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The penalties at one site; 0 in a batch with fewer than three normal rows."""
        normal = (~anomalous).to(rows.device)
        if int(normal.sum()) < 3:
            return rows.new_zeros(len(rows))
        units = normalize(rows, dim=1)
        own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        cosines = (units @ units.T).masked_fill(own, -torch.inf)[:, normal]
        near = min(self.k, int(normal.sum()) - 1)
        distance = 1 - cosines.topk(near, dim=1).values[:, -1]
        typical = distance[normal]

        return torch.log1p(softplus((distance - typical.mean()) / typical.std()))


class AttributionPenalty:
    r"""Functional attribution: rows whose loss does not move as that of normal rows does.

    For T draws :math:`w_t = w + \rho\, \mathrm{rms}(W)\, \xi_t` of the linear maps in the later
    blocks, :math:`\ell_t(x)` is the loss of the token that the unperturbed model finds likeliest,
    in nats. The penalty of x is 1 minus its mean concordance with the normal rows z of the batch
    other than itself,

    .. math:: \frac{2 \operatorname{cov}(\ell(x), \ell(z))}{\operatorname{var} \ell(x)
        + \operatorname{var} \ell(z) + (\bar\ell(x) - \bar\ell(z))^2}

    Args:
        model: the model in training.
        first: the first block whose maps are perturbed.
        draws: T, at least 2.
        scale: :math:`\rho`.
        seed: seed of the draws, which continue from call to call.

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
        """See :class:`AnomalyPenalty`; a forward pass and one more for each draw."""
        noise: dict[str, Tensor] = {}
        losses = []
        with self.model.hooked(self._hooks(noise)):
            logits = forward()
            likeliest = logits.detach().argmax(-1)
            for _ in range(self.draws):
                noise |= {path: self._draw(weight) for path, weight in self.maps.items()}
                losses.append(cross_entropy(forward(), likeliest, reduction="none"))
        agreement = concordance(torch.stack(losses, 1))
        others = (~anomalous).to(agreement).expand_as(agreement).clone()
        others.fill_diagonal_(0)

        return logits, 1 - (agreement * others).sum(1) / others.sum(1).clamp(min=1)

    def _draw(self, weight: Float[Tensor, "outer inner"]) -> Float[Tensor, "outer inner"]:
        noise = torch.empty_like(weight).normal_(generator=self.generator)

        return noise * (self.scale * weight.float().square().mean().sqrt().item())

    def _hooks(self, noise: Mapping[str, Tensor]) -> dict[str | Site, Hook]:
        """Hooks that add to each map's output what noise on its weight adds.

        The weight itself is not touched.
        """
        hooks: dict[str | Site, Hook] = {}
        for path in self.maps:
            inputs: list[Tensor] = []
            hooks[Site("module", path=path, side="in")] = inputs.append
            hooks[Site("module", path=path)] = partial(_add_noise, inputs, noise, path)

        return hooks


def concordance(traces: Float[Tensor, "n draws"]) -> Float[Tensor, "n n"]:
    """Lin's concordance of each pair of rows: 1 where they are the same."""
    mean = traces.mean(1)
    centred = traces - mean[:, None]
    covariance = centred @ centred.T / traces.shape[1]
    variance = covariance.diagonal()
    spread = variance[:, None] + variance + (mean[:, None] - mean).square()

    return 2 * covariance / spread.clamp(min=torch.finfo(traces.dtype).tiny)


def _keep_last(last: dict[Site, Tensor], site: Site, x: Float[Tensor, "batch token d"]) -> None:
    last[site] = x[:, -1].float()


def _add_noise(
    inputs: list[Tensor], noise: Mapping[str, Tensor], path: str, y: Tensor
) -> Tensor | None:
    x = inputs.pop()

    return y + x @ noise[path].T if path in noise else None


def _linear_maps(model: Model, first: int) -> dict[str, Float[Tensor, "outer inner"]]:
    """Weights of the linear maps of the blocks from one on, by path, adapted or not."""
    blocks = model.wiring.blocks[first:] if model.wiring else []
    inside = {part for block in blocks for part in block.module.modules()}
    adapted = {part.linear: part for part in inside if isinstance(part, AdaptedLinear)}
    maps = {part for part in inside if isinstance(part, nn.Linear)} - set(adapted)
    weights = {part: part.weight for part in maps}
    weights |= {part: linear.weight for linear, part in adapted.items()}

    return {
        path: weights[part].detach()
        for path, part in model.module.named_modules()
        if part in weights
    }
