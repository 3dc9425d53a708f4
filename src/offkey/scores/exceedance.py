"""How far above trusted values a row lies, where large alone is odd."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.scores._tensors import TensorScore
from offkey.scores._whitening import constant_dimensions
from offkey.stats import Moments, Statistic

__all__ = ["Exceedance"]


class Exceedance(TensorScore):
    r"""Scores a row by how far above the trusted mean it lies, in trusted standard deviations.

    .. math:: s(x) = \frac1d \sum_i \frac{x_i - \mu_i}{\sigma_i}

    For numbers that are only odd when they are large, such as divergences and losses; below the
    mean the score is negative. Numbers that do not vary on trusted rows are left out. Higher is
    more anomalous. Unitless.

    Raises:
        NotEnoughData: fewer than two trusted rows.
    """

    name = "exceedance"
    mean_: Float[Tensor, " d"]
    weight_: Float[Tensor, " d"]

    def statistic(self) -> Statistic:
        """Mean and variances."""
        return Moments(diagonal=True)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Learns mean and deviations."""
        assert isinstance(trusted, Moments)
        self._need(trusted, 2)
        self.mean_ = trusted.mean
        variance = trusted.variance()
        varies = ~constant_dimensions(trusted) & (variance > 0)
        self.weight_ = torch.where(varies, torch.where(varies, variance, 1).rsqrt(), 0)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (x - self.mean_) @ self.weight_ / len(self.mean_)
