"""What a model can be trained to keep low beside the loss of its answers: how odd it looks inside.

An oddness sees a forward pass and gives one number a row; a penalty weighs those of anomalous and
of normal rows. They are used to make organisms that hide from a detector.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from offkey.data import Prompts, pack
from offkey.models import Model, Site
from offkey.stats import Gaussian, Moments, ledoit_wolf
from offkey.training._adapter import Adapted

__all__ = ["Distances", "Forward", "Oddness", "Penalty", "Refitted", "Traces", "concordance"]

TOKENS = 2048  # of a batch without gradients

Logits = Float[Tensor, "batch vocabulary"]
Forward = Callable[[], Logits]
"""One pass over the batch in hand: logits at the last token."""


class Oddness(Protocol):
    """How odd each row of a batch looks; higher is odder."""

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """Runs the forward pass, as often as it needs, and tells the logits and the oddness."""


@dataclass(frozen=True)
class Penalty:
    """The mean oddness of anomalous rows and that of normal rows, weighed.

    Attributes:
        oddness: what is kept low.
        anomalous: weight of anomalous rows.
        normal: weight of normal rows, which holds the normal state in place.
    """

    oddness: Oddness
    anomalous: float = 1.0
    normal: float = 0.5

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, ""]]:
        """The logits, and what is added to the loss; a kind of rows that is absent adds 0."""
        logits, odd = self.oddness(forward, anomalous)
        weights = torch.where(
            anomalous,
            self.anomalous / anomalous.sum().clamp(min=1),
            self.normal / (~anomalous).sum().clamp(min=1),
        )

        return logits, (odd * weights.to(odd)).sum()


class Distances:
    r"""Distance of the last token's activations to those of trusted prompts, as they stood.

    .. math:: \frac1L \sum_l \log\!\Big(1 + \frac1d (h_l - \mu_l)^\top \Sigma_l^{-1}
        (h_l - \mu_l)\Big)

    with means and covariances (shrunk as Ledoit and Wolf do) that stay as they were fitted.

    Args:
        model: the model in training, whose sites are watched while it runs.
        gaussians: fitted, one a site.

    References:
        Bailey et al., 2024, section 4. https://arxiv.org/abs/2412.09565
    """

    def __init__(self, model: Model, gaussians: Mapping[Site, Gaussian]) -> None:
        self.model, self.gaussians = model, gaussians

    @classmethod
    def fit(cls, model: Model, trusted: Prompts, sites: str | Sequence[str]) -> Self:
        """Means and covariances from one pass over trusted prompts."""
        moments = {site: Moments() for site in model.sites_at(sites)}
        for batch in pack(trusted, model.tokenizer, token_budget=TOKENS):
            reading = model.read(batch, tuple(moments))
            for site, rows in moments.items():
                rows.update(reading[site].float(), batch.ids)

        return cls(
            model,
            {
                site: Gaussian(rows.mean, ledoit_wolf(rows).covariance, rcond=1e-9)
                for site, rows in moments.items()
            },
        )

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """See :class:`Oddness`; one forward pass."""
        seen: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in self.gaussians:
                handle = self.model.attach(site, partial(_keep_last, seen, site))
                stack.callback(handle.remove)
            logits = forward()
        terms = [
            torch.log1p(gaussian.mahalanobis(seen[site]) / gaussian.rank)
            for site, gaussian in self.gaussians.items()
        ]

        return logits, torch.stack(terms).mean(0).to(logits)


class Refitted:
    """An oddness that is fitted anew on the model as it stands, whenever it is told to.

    The fit is made when it is next needed, so that a run that was stopped at that point and goes
    on makes the same one.

    Args:
        make: fits it.
    """

    def __init__(self, make: Callable[[], Oddness]) -> None:
        self.make = make
        self.current: Oddness | None = None

    def refit(self) -> None:
        """Forgets the fit."""
        self.current = None

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """See :class:`Oddness`."""
        if self.current is None:
            self.current = self.make()

        return self.current(forward, anomalous)


def _keep_last(seen: dict[Site, Tensor], site: Site, x: Float[Tensor, "batch token d"]) -> None:
    seen[site] = x[:, -1].float()


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
