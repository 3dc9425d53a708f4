"""Scores for rows of latents that are mostly 0."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offkey.errors import Mismatch, NotEnoughData
from offkey.scores._whitening import constant_dimensions
from offkey.scores.score import TensorScore, check_number
from offkey.stats import Moments, Statistic, dense_rows

__all__ = ["EverActive", "NovelLatents", "SparseMahalanobis"]


class EverActive(Statistic):
    """Which dimensions were above 0 in any row."""

    spec = "ever-active"

    def __init__(self) -> None:
        self._count = 0
        self._active = torch.zeros(0, dtype=torch.bool)

    @property
    def count(self) -> int:
        """How many rows were taken in."""
        return self._count

    @property
    def active(self) -> Bool[Tensor, " d"]:
        """Whether a dimension was ever above 0.

        Raises:
            NotEnoughData: no row was taken in.
        """
        if not self._count:
            raise NotEnoughData("no rows", where="EverActive")

        return self._active.clone()

    def update(self, x: Float[Tensor, "n d"], ids: Sequence[str]) -> None:
        """Takes in rows; ``ids`` name one that is not finite.

        Raises:
            NonFinite: a row holds NaN or infinity.
            Mismatch: rows of another width than before.
        """
        x = dense_rows(x, ids)
        if not len(x):
            return
        self._join((x > 0).any(0).cpu(), len(x))

    def merge(self, other: Self) -> None:
        """Takes in another one.

        Raises:
            Mismatch: it is of rows of another width.
        """
        if other._count:
            self._join(other._active, other._count)

    def state(self) -> dict[str, Tensor]:
        """The statistic as tensors, from which it can be continued."""
        return {"count": torch.tensor(self._count), "active": self._active.clone()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The statistic that :meth:`state` described."""
        made = cls()
        made._count, made._active = int(state["count"]), state["active"].clone()

        return made

    def _join(self, active: Tensor, count: int) -> None:
        if self._count and len(active) != len(self._active):
            raise Mismatch(
                f"rows of width {len(active)} after rows of width {len(self._active)}",
                where="EverActive",
            )
        self._active = active | self._active if self._count else active.clone()
        self._count += count


class NovelLatents(TensorScore):
    """Scores a row by how many of its active latents no trusted row had active.

    Active is above 0. Higher is more anomalous. A count.

    Raises:
        NotEnoughData: fewer than two trusted rows.
    """

    name = "sae-l0"
    never_: Float[Tensor, " d"]

    def statistic(self) -> Statistic:
        """Which latents were ever active."""
        return EverActive()

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Keeps the latents that were never active."""
        assert isinstance(trusted, EverActive)
        self._need(trusted, 2)
        self.never_ = (~trusted.active).to(torch.float64)

        return self

    def _width(self) -> int:
        return len(self.never_)

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (x > 0).to(torch.float64) @ self.never_


class SparseMahalanobis(TensorScore):
    r"""Scores a row of latents by its Mahalanobis distance with a diagonal covariance.

    .. math:: s(x) = \frac1d \sum_i \frac{(x_i - \mu_i)^2}{\tilde\sigma_i^2}, \quad
        \tilde\sigma_i^2 = \frac{n \sigma_i^2 + m \bar\sigma^2}{n + m}

    Many latents are active on few trusted rows or on none. Their variance is taken together with
    ``m`` rows' worth of the mean variance :math:`\bar\sigma^2`, so that one that was never active
    counts as much as one seen about once, instead of nothing (as in ``mahalanobis-diagonal``)
    or everything (as with a tiny floor). Higher is more anomalous. Unitless.

    Args:
        prior_rows: m. With 0, latents that never varied are left out.
        compat: a floor of 1e-8 under each standard deviation instead, as in the published table;
            latents never seen active then decide, and the score orders rows much as ``sae-l0``.

    Raises:
        NotEnoughData: fewer than two trusted rows.
    """

    name = "sae-mahalanobis"
    mean_: Float[Tensor, " d"]
    precision_: Float[Tensor, " d"]

    def __init__(self, prior_rows: float = 1.0, compat: bool = False) -> None:
        check_number(f"{self.name} prior_rows", prior_rows, least=0)
        self.prior_rows, self.compat = prior_rows, compat

    def statistic(self) -> Statistic:
        """Mean and variances."""
        return Moments(diagonal=True)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Inverts the variances."""
        assert isinstance(trusted, Moments)
        self._need(trusted, 2)
        variance = torch.where(constant_dimensions(trusted), 0, trusted.variance())
        self.mean_ = trusted.mean
        if self.compat:
            spread = variance.clamp_min(1e-16)
        else:
            n, m = trusted.count, self.prior_rows
            spread = (n * variance + m * variance.mean()) / (n + m)
        varies = spread > 0
        self.precision_ = torch.where(varies, 1 / torch.where(varies, spread, 1), 0)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (x - self.mean_).square() @ self.precision_ / len(self.mean_)
