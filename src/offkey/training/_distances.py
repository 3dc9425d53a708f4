"""Oddness by activations: how far those of the last token are from trusted ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from offkey.data import Prompts, pack
from offkey.models import Model, Site
from offkey.stats import Gaussian, Moments, ledoit_wolf
from offkey.training._penalties import Forward, Logits

__all__ = ["Distances", "Neighbours"]

TOKENS = 2048  # of a batch without gradients

Rows = Float[Tensor, "n d"]


class _AtSites(ABC):
    """An oddness that is a mean over sites of something of the last token's activations.

    Args:
        model: the model in training, whose sites are watched while it runs.
        sites: where.
    """

    def __init__(self, model: Model, sites: Sequence[Site]) -> None:
        self.model, self.sites = model, tuple(sites)

    @abstractmethod
    def _at(self, site: Site, rows: Rows) -> Float[Tensor, " n"]:
        """How odd rows are at a site."""

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """See :class:`Oddness`; one forward pass."""
        seen: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in self.sites:
                handle = self.model.attach(site, partial(_keep_last, seen, site))
                stack.callback(handle.remove)
            logits = forward()
        terms = [self._at(site, seen[site]) for site in self.sites]

        return logits, torch.stack(terms).mean(0).to(logits)


class Distances(_AtSites):
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
        super().__init__(model, tuple(gaussians))
        self.gaussians = gaussians

    @classmethod
    def fit(cls, model: Model, trusted: Prompts, sites: str | Sequence[str]) -> Self:
        """Means and covariances from one pass over trusted prompts."""
        moments = {site: Moments() for site in model.sites_at(sites)}
        for site, (ids, rows) in _recorded(model, trusted, tuple(moments)).items():
            moments[site].update(rows, ids)

        return cls(
            model,
            {
                site: Gaussian(rows.mean, ledoit_wolf(rows).covariance, rcond=1e-9)
                for site, rows in moments.items()
            },
        )

    def _at(self, site: Site, rows: Rows) -> Float[Tensor, " n"]:
        gaussian = self.gaussians[site]

        return torch.log1p(gaussian.mahalanobis(rows) / gaussian.rank)


class Neighbours(_AtSites):
    r"""Cosine distance of the last token's activations to the k-th nearest trusted prompt's.

    .. math:: \frac1L \sum_l \log\!\Big(1 + \max\Big(0, \frac{1 - \cos(h_l, n_k(h_l)) - m_l}{s_l}
        \Big)\Big)

    where one half of the trusted prompts are the neighbours, and the distances of the other half
    have the mean m and the standard deviation s: what the default detector scores by.

    Args:
        model: the model in training, whose sites are watched while it runs.
        trusted: unit rows at each site.
        scales: m and s of each site.
        k: which neighbour.
    """

    def __init__(
        self,
        model: Model,
        trusted: Mapping[Site, Rows],
        scales: Mapping[Site, tuple[float, float]],
        k: int,
    ) -> None:
        super().__init__(model, tuple(trusted))
        self.trusted, self.scales, self.k = trusted, scales, k

    @classmethod
    def fit(
        cls, model: Model, trusted: Prompts, sites: str | Sequence[str], *, k: int = 20
    ) -> Self:
        """Neighbours and scales from one pass over trusted prompts."""
        found = _recorded(model, trusted, model.sites_at(sites))
        units = {site: normalize(rows, dim=1) for site, (_, rows) in found.items()}
        banks = {site: rows[::2] for site, rows in units.items()}
        apart = {site: _kth(rows[1::2], banks[site], k) for site, rows in units.items()}

        return cls(
            model, banks, {s: (d.mean().item(), d.std().item()) for s, d in apart.items()}, k
        )

    def _at(self, site: Site, rows: Rows) -> Float[Tensor, " n"]:
        mean, deviation = self.scales[site]
        distance = _kth(normalize(rows, dim=1), self.trusted[site], self.k)

        return torch.log1p(((distance - mean) / deviation).clamp(min=0))


def _kth(rows: Rows, bank: Rows, k: int) -> Float[Tensor, " n"]:
    """Cosine distance of unit rows to the k-th nearest of others."""
    return 1 - (rows @ bank.T).topk(k, dim=1).values[:, -1]


def _recorded(
    model: Model, prompts: Prompts, sites: Sequence[Site]
) -> dict[Site, tuple[list[str], Rows]]:
    """Ids and rows of the last token at each site, in one order."""
    ids: list[str] = []
    rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for batch in pack(prompts, model.tokenizer, token_budget=TOKENS):
        reading = model.read(batch, tuple(sites))
        ids += batch.ids
        for site, known in rows.items():
            known.append(reading[site].float())

    return {site: (ids, torch.cat(known)) for site, known in rows.items()}


def _keep_last(seen: dict[Site, Tensor], site: Site, x: Float[Tensor, "batch token d"]) -> None:
    seen[site] = x[:, -1].float()
