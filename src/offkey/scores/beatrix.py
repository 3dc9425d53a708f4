"""Gram matrices of powers of a row, against bounds from trusted rows."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.scores.score import TensorScore, check_number
from offkey.stats import Sample, Statistic

__all__ = ["Beatrix"]

_FLOOR = 1e-9
"""Share of the largest bound that a bound counts as at least, where it is divided by."""

_BUDGET = 1 << 21
"""Numbers that a block of queries may hold at once (16 MB)."""


class Beatrix(TensorScore):
    r"""Scores a row by how far its Gram matrices leave the range of the trusted ones.

    .. math::
        G^p_{ij} = \operatorname{sgn} \cdot \lvert x_i^p x_j^p \rvert^{1/p}, \qquad
        s(x) = \frac{1}{P\,k(k+1)/2} \sum_{p \le P} \sum_{i \le j}
        \frac{[a^p_{ij} - G^p_{ij}]_+}{\lvert a^p_{ij} \rvert}
        + \frac{[G^p_{ij} - b^p_{ij}]_+}{\lvert b^p_{ij} \rvert}

    with the sign of :math:`x_i^p x_j^p` and :math:`a, b` the trusted median of each entry less and
    plus ``factor`` times its median absolute deviation. Rows wider than ``dimensions`` are first
    projected on as many random orthogonal directions. With one vector a row, odd powers give
    :math:`x_i x_j` and even ones :math:`\lvert x_i x_j \rvert`, whatever p: they are computed once
    and weighted. (The published matrices sum over the places of a feature map, where powers
    differ, and have bounds of each predicted class; rows here carry no class, so that there is
    one set of bounds.) Higher is more anomalous; 0 within all bounds, as most trusted rows are
    with the published factor. Unitless.

    Args:
        powers: P, the largest power.
        factor: how many deviations the bounds lie from the median.
        dimensions: k, the widest row that is taken as it is.
        rows: how many trusted rows are kept at most while fitting.

    Raises:
        NotEnoughData: fewer than two trusted rows.

    References:
        Ma et al., 2023: The "Beatrix" resurrections: robust backdoor detection via Gram matrices.
        https://arxiv.org/abs/2209.11715
    """

    name = "beatrix"
    projection_: Float[Tensor, "d k"]
    low_: Float[Tensor, "p pairs"]
    high_: Float[Tensor, "p pairs"]

    def __init__(
        self, powers: int = 4, factor: float = 10.0, dimensions: int = 64, rows: int = 1000
    ) -> None:
        check_number(f"{self.name} powers", powers, least=1, whole=True)
        check_number(f"{self.name} factor", factor, least=0, most=1e6)
        check_number(f"{self.name} dimensions", dimensions, least=1, most=256, whole=True)
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.powers, self.factor, self.dimensions, self.rows = powers, factor, dimensions, rows

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Draws the projection and finds each entry's bounds."""
        assert isinstance(trusted, Sample)
        self._need(trusted, 2)
        rows = trusted.rows.to(torch.float64)
        width = rows.shape[1]
        self.projection_ = torch.eye(width, dtype=torch.float64)
        if width > self.dimensions:
            drawn = torch.randn(width, self.dimensions, dtype=torch.float64, generator=generator)
            self.projection_ = torch.linalg.qr(drawn)[0].contiguous()
        low, high = [], []
        for entries in self._grams(rows):
            middle = _median(entries)
            reach = self.factor * _median((entries - middle).abs())
            low.append(middle - reach)
            high.append(middle + reach)
        self.low_, self.high_ = torch.stack(low), torch.stack(high)

        return self

    def _width(self) -> int:
        return int(self.projection_.shape[0])

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        step = max(1, _BUDGET // self.low_.numel())

        return torch.cat([self._excess(part) for part in torch.split(x, step)])

    def _excess(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        floor = max(_FLOOR * float(torch.maximum(self.low_.abs(), self.high_.abs()).amax()), 1e-30)
        # Odd powers are one form, even ones the other.
        shares = torch.tensor([(self.powers + 1) // 2, self.powers // 2]) / self.powers
        total = x.new_zeros(len(x))
        for share, entries, low, high in zip(
            shares.tolist(), self._grams(x), self.low_, self.high_, strict=False
        ):
            below = (low - entries).relu() / low.abs().clamp_min(floor)
            above = (entries - high).relu() / high.abs().clamp_min(floor)
            total += share * (below + above).mean(dim=1)

        return total

    def _grams(self, x: Float[Tensor, "n d"]) -> list[Float[Tensor, "n pairs"]]:
        """Upper triangles for odd powers and, where there are any, for even ones."""
        y = x @ self.projection_
        i, j = torch.triu_indices(y.shape[1], y.shape[1]).unbind()
        odd = y[:, i] * y[:, j]

        return [odd, odd.abs()] if self.powers > 1 else [odd]


def _median(entries: Float[Tensor, "n pairs"]) -> Float[Tensor, " pairs"]:
    """Median of each column; the mean of the middle two."""
    ordered = entries.sort(dim=0).values
    count = len(entries)

    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
