"""The nearest trusted prompts by a detector's own feature."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["nearest"]


def nearest(
    rows: Mapping[str, Float[Tensor, "n d"]],
    trusted: Mapping[str, Float[Tensor, "m d"]],
    count: int,
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    r"""Numbers and distances of the nearest trusted rows, nearest first.

    .. math:: D(x, t)^2 = \operatorname{mean}_s \operatorname{mean}_j
        \left(\frac{x_{sj} - t_{sj}}{\sigma_{sj}}\right)^2

    over sites :math:`s` and those coordinates :math:`j` that vary among the trusted rows, with
    their standard deviation :math:`\sigma`. Trusted rows with a NaN are nobody's neighbours.

    Args:
        rows: rows to explain, by site.
        trusted: trusted rows, by site.
        count: most neighbours of each.
    """
    known = ~torch.stack([t.isnan().any(1) for t in trusted.values()]).any(0)
    places = known.nonzero()[:, 0]
    total = torch.zeros(len(next(iter(rows.values()))), len(places), dtype=torch.float64)
    sites = 0
    for site, x in rows.items():
        t = trusted[site][known].double()
        sigma = t.std(0, correction=0)
        varies = sigma > 0
        if not bool(varies.any()):
            continue
        x, t = (part[:, varies] / sigma[varies] for part in (x.double(), t))
        total += (
            torch.cdist(x, t, compute_mode="donot_use_mm_for_euclid_dist").square() / t.shape[1]
        )
        sites += 1
    mean, order = (total / max(sites, 1)).sqrt().sort(dim=1, stable=True)

    return places[order[:, :count]], mean[:, :count]
