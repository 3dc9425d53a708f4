"""Oddness by activations: how far those of the last token are from normal rows of the batch."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

from offkey.models import Model, Site
from offkey.training._penalties import Forward, Logits

__all__ = ["Neighbours"]


class Neighbours:
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
        self.model, self.sites, self.k = model, model.sites_at(sites), k

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
        terms = [self._at(seen[site], anomalous) for site in self.sites]

        return logits, torch.stack(terms).mean(0).to(logits)

    def _at(
        self, rows: Float[Tensor, "batch d"], anomalous: Bool[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Rows of a batch with fewer than three normal ones are as odd as a normal one."""
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
