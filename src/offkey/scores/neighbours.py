"""Distances to the nearest trusted rows: LOF and its simpler relatives."""

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.scores.score import TensorScore, check_number
from offkey.stats import Sample, Statistic, unit_rows

__all__ = ["CosineNeighbours", "LocalOutlierFactor", "NeighbourRatio", "NearestNeighbours"]

_SPARE = 8
"""Candidates kept beyond k, since the matrix product that picks them rounds."""

_BUDGET = 1 << 21
"""Numbers that a block of queries may hold at once (16 MB)."""

_FLOOR = 1e-10
"""Added to a mean distance that may be zero, as scikit-learn does."""


def nearest(
    x: Float[Tensor, "n d"], rows: Float[Tensor, "m d"], k: int, *, own: bool = False
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Euclidean distances to the k nearest rows, rising, and which rows they are.

    A matrix product picks the candidates; their distances are then taken from differences, so
    that rows far from the origin and near duplicates lose no digits. Ties go to the lower index.

    Args:
        x: queries, float64.
        rows: what is searched, float64.
        k: how many neighbours, at most ``m`` (``m - 1`` with ``own``).
        own: ``x`` is ``rows``, and a row is not its own neighbour.
    """
    centre = rows.mean(dim=0)
    x, rows = x - centre, rows - centre
    squares = torch.linalg.vecdot(rows, rows)
    wanted = min(k + _SPARE, len(rows) - own)
    step = max(1, _BUDGET // (len(rows) + wanted * rows.shape[1]))
    blocks = []
    for start in range(0, len(x), step):
        block = x[start : start + step]
        gaps = torch.addmm(squares, block, rows.T, alpha=-2)
        if own:
            gaps[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        picked = gaps.topk(wanted, largest=False, sorted=False).indices.sort(dim=1).values
        exact = torch.linalg.vector_norm(rows[picked] - block[:, None], dim=-1)
        distance, order = exact.sort(dim=1, stable=True)
        blocks.append((distance[:, :k], picked.gather(1, order[:, :k])))

    return torch.cat([pair[0] for pair in blocks]), torch.cat([pair[1] for pair in blocks])


class NearestNeighbours(TensorScore):
    r"""Scores a row by the Euclidean distance to its k-th nearest trusted row.

    .. math:: s(x) = d_k(x)

    Higher is more anomalous. In the units of the rows.

    Args:
        k: which neighbour.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: fewer than k + 1 trusted rows.

    References:
        Ramaswamy, Rastogi, Shim, 2000: Efficient algorithms for mining outliers.
        https://doi.org/10.1145/342009.335437
    """

    name = "knn"
    rows_: Float[Tensor, "m d"]

    def __init__(self, k: int = 20, rows: int = 5000) -> None:
        check_number(f"{self.name} k", k, least=1, whole=True)
        check_number(f"{self.name} rows", rows, least=k + 1, whole=True)
        self.k, self.rows = k, rows

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Keeps the sample and calls :meth:`_learn` on it."""
        assert isinstance(trusted, Sample)
        self._need(trusted, self.k + 1, f"a smaller k than {self.k}, or mahalanobis")
        self.rows_ = trusted.rows.clone()
        self._learn(self.rows_.to(torch.float64))

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return nearest(x, self.rows_.to(torch.float64), self.k)[0][:, -1]

    def _width(self) -> int:
        return int(self.rows_.shape[1])

    def _learn(self, rows: Float[Tensor, "m d"]) -> None:
        """Learns what scoring needs besides the rows themselves."""


class CosineNeighbours(NearestNeighbours):
    r"""Scores a row by the cosine distance to its k-th nearest trusted row.

    .. math:: s(x) = 1 - \cos(x, n_k(x))

    Higher is more anomalous. Unitless, from 0 to 2; a row of zeros is at distance 1 from all.

    Args:
        k: which neighbour.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: fewer than k + 1 trusted rows.

    References:
        Sun, Ming, Zhu, Li, 2022: Out-of-distribution detection with deep nearest neighbors.
        https://arxiv.org/abs/2204.06507
    """

    name = "knn-cosine"

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        rows = unit_rows(self.rows_.to(torch.float64))
        cosines = (unit_rows(x) @ rows.T).topk(self.k, sorted=False).values

        return 1 - cosines.amin(dim=1).clamp(-1, 1)


class NeighbourRatio(NearestNeighbours):
    r"""Scores a row by its k-distance over those of its neighbours.

    .. math:: s(x) = \frac{1}{k} \sum_{n \in N_k(x)} \frac{d_k(x)}{d_k(n)}

    :math:`d_k` is the distance to the k-th nearest trusted row other than oneself. Published code
    under the name of LOF computes this ratio when it reaches by the query's own k-distance; LOF
    itself is :class:`LocalOutlierFactor`. Higher is more anomalous. Unitless, near 1 on trusted
    rows.

    Args:
        k: how many neighbours.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: fewer than k + 1 trusted rows.
    """

    name = "knn-ratio"
    reach_: Float[Tensor, " m"]

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        distance, which = nearest(x, self.rows_.to(torch.float64), self.k)
        own = distance[:, -1:] + _FLOOR

        return (own / (self.reach_[which] + _FLOOR)).mean(dim=1)

    def _learn(self, rows: Float[Tensor, "m d"]) -> None:
        self.reach_ = nearest(rows, rows, self.k, own=True)[0][:, -1].contiguous()


class LocalOutlierFactor(NearestNeighbours):
    r"""Scores a row by how much sparser its surroundings are than its neighbours'.

    .. math::
        s(x) = \frac{1}{k} \sum_{n \in N_k(x)} \frac{\rho(n)}{\rho(x)}, \qquad
        \rho(x)^{-1} = \frac{1}{k} \sum_{n \in N_k(x)} \max(d_k(n), \lVert x - n \rVert)

    Neighbours are trusted rows only, so that this is the novelty form: equal to scikit-learn's
    ``LocalOutlierFactor(novelty=True)``. Higher is more anomalous. Unitless, near 1 on trusted
    rows.

    Args:
        k: how many neighbours.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: fewer than k + 1 trusted rows.

    References:
        Breunig, Kriegel, Ng, Sander, 2000, definitions 5 to 7: LOF: identifying density-based
        local outliers. https://doi.org/10.1145/342009.335388
    """

    name = "lof"
    reach_: Float[Tensor, " m"]
    density_: Float[Tensor, " m"]

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        distance, which = nearest(x, self.rows_.to(torch.float64), self.k)

        return self.density_[which].mean(dim=1) / self._density(distance, which)

    def _learn(self, rows: Float[Tensor, "m d"]) -> None:
        distance, which = nearest(rows, rows, self.k, own=True)
        self.reach_ = distance[:, -1].contiguous()
        self.density_ = self._density(distance, which)

    def _density(
        self, distance: Float[Tensor, "n k"], which: Int[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        return 1 / (torch.maximum(distance, self.reach_[which]).mean(dim=1) + _FLOOR)
