"""Oddness by activations: how far those of the last token are from trusted ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

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
    def _at(self, site: Site, rows: Rows, anomalous: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
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
        terms = [self._at(site, seen[site], anomalous) for site in self.sites]

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

    def _at(self, site: Site, rows: Rows, anomalous: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
        gaussian = self.gaussians[site]

        return torch.log1p(gaussian.mahalanobis(rows) / gaussian.rank)


class Neighbours(_AtSites):
    r"""Cosine distance of the last token's activations to normal rows of the same batch.

    .. math:: \frac1L \sum_l \log\!\Big(1 + \operatorname{softplus} \frac{d_l(x) - m_l}{s_l}\Big),
        \qquad d_l(x) = 1 - \cos(h_l(x), n_k(h_l(x)))

    with :math:`n_k` the k-th nearest normal row other than x, and m and s the mean and the
    standard deviation of d over normal rows: what the default detector scores by, fitted on the
    batch in hand, so that it never lags behind the model.

    Args:
        model: the model in training, whose sites are watched while it runs.
        sites: where.
        k: which neighbour; the farthest where there are fewer.
    """

    def __init__(self, model: Model, sites: str | Sequence[str], k: int = 3) -> None:
        super().__init__(model, model.sites_at(sites))
        self.k = k

    def _at(self, site: Site, rows: Rows, anomalous: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Rows of a batch without two normal ones are as odd as a normal one."""
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


def _keep_last(seen: dict[Site, Tensor], site: Site, x: Float[Tensor, "batch token d"]) -> None:
    seen[site] = x[:, -1].float()
