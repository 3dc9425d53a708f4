"""Distance to the trusted mean: Mahalanobis and its relatives."""

from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import NotEnoughData, check_choice
from offkey.scores._whitening import (
    SHRINKAGES,
    constant_dimensions,
    diagonal_precision,
    shrunk,
    squared_lengths,
    whiten_definite,
    whiten_kept,
)
from offkey.scores.score import TensorScore, check_number
from offkey.stats import Moments, Statistic, unit_rows

__all__ = [
    "DiagonalMahalanobis",
    "Exceedance",
    "Mahalanobis",
    "NormalisedMahalanobis",
    "PrincipalMahalanobis",
    "RelativeMahalanobis",
]


class Mahalanobis(TensorScore):
    r"""Scores a row by its squared Mahalanobis distance to the trusted mean.

    .. math:: s(x) = (x - \mu)^\top \Sigma_\lambda^{-1} (x - \mu), \qquad
        \Sigma_\lambda = (1 - \lambda) \Sigma + \lambda \tfrac{\operatorname{tr} \Sigma}{d} I

    Higher is more anomalous. Unitless; chi-squared with d degrees on Gaussian rows where there
    are many of them. :math:`\Sigma` divides by the number of rows. With ``shrinkage=0`` it is
    inverted on the eigenvalues above ``rcond`` times the largest; directions in which trusted
    rows never varied then count nothing. :class:`PrincipalMahalanobis` does so with fewer rows
    than dimensions.

    Args:
        shrinkage: how :math:`\lambda` is chosen: ``"ledoit-wolf"``, ``"oas"`` or
            ``"random-matrix"`` (optimal linear shrinkage); or :math:`\lambda` itself, from 0 to
            1. ``"nonlinear"`` shrinks each eigenvalue by itself (12 rows or more).
        rcond: eigenvalues up to this share of the largest are dropped where
            :math:`\Sigma_\lambda` has no inverse.

    Raises:
        NotEnoughData: fewer than two trusted rows, or no more than dimensions and
            ``shrinkage=0``.

    References:
        Lee et al., 2018, eq. 2. https://arxiv.org/abs/1807.03888
        Ledoit, Wolf, 2004. https://doi.org/10.1016/S0047-259X(03)00096-4
        Chen, Wiesel, Eldar, Hero, 2010, eq. 23. https://arxiv.org/abs/0907.4698
        Bodnar, Gupta, Parolya, 2014. https://arxiv.org/abs/1308.2608
        Ledoit, Wolf, 2020. https://doi.org/10.1214/19-AOS1921
    """

    name = "mahalanobis"
    mean_: Float[Tensor, " d"]
    whitening_: Float[Tensor, "d k"]

    def __init__(self, shrinkage: str | float = "ledoit-wolf", rcond: float = 1e-5) -> None:
        if isinstance(shrinkage, str):
            check_choice(f"{self.name} shrinkage", shrinkage, SHRINKAGES)
        else:
            check_number(f"{self.name} shrinkage", shrinkage, least=0, most=1)
        check_number(f"{self.name} rcond", rcond, least=0, most=1)
        self.shrinkage, self.rcond = shrinkage, rcond

    def statistic(self) -> Statistic:
        """Mean and covariance."""
        return Moments()

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Shrinks and inverts the covariance."""
        assert isinstance(trusted, Moments)
        self._need(trusted, 2)
        self.mean_ = trusted.mean
        self.whitening_ = self._whiten(trusted)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        z = (x - self.mean_) @ self.whitening_

        return squared_lengths(z)

    def _whiten(self, moments: Moments) -> Float[Tensor, "d k"]:
        if self.shrinkage != 0 and not bool(constant_dimensions(moments).all()):
            # Detectors that were given the same rows share this, the most costly step of a fit.
            return moments.derived(
                f"whitening:{self.shrinkage}:{self.rcond}",
                lambda: whiten_definite(shrunk(moments, self.shrinkage), self.rcond)[0],
            )
        if self.shrinkage == 0 and moments.count <= moments.dimensions:
            raise NotEnoughData(
                f"{moments.count} trusted rows where shrinkage 0 at {moments.dimensions} "
                f"dimensions needs at least {moments.dimensions + 1}",
                where=self.name,
                mend="Give more trusted prompts, or use shrinkage 'ledoit-wolf', "
                "mahalanobis-pca or mahalanobis-diagonal",
            )

        return whiten_kept(moments, self.rcond)[0]


class NormalisedMahalanobis(Mahalanobis):
    r"""Scores a row by its Mahalanobis distance after scaling all rows to length 1.

    .. math:: s(x) = (u - \mu)^\top \Sigma_\lambda^{-1} (u - \mu), \qquad u = x / \lVert x \rVert

    The mean and covariance are those of the scaled trusted rows, so that feature norms, which
    vary much between prompts, count nothing. Known as Mahalanobis++. Higher is more anomalous.
    Unitless.

    Args:
        shrinkage: as in :class:`Mahalanobis`.
        rcond: as in :class:`Mahalanobis`.

    Raises:
        NotEnoughData: as in :class:`Mahalanobis`.

    References:
        Mueller, Hein, 2025. https://arxiv.org/abs/2505.18032
    """

    name = "mahalanobis-l2"

    def statistic(self) -> Statistic:
        """Mean and covariance of the rows scaled to length 1."""
        return Moments(transform="l2")

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return super()._score(unit_rows(x))


class RelativeMahalanobis(Mahalanobis):
    r"""Scores a row by its Mahalanobis distance less the one that ignores correlations.

    .. math:: s(x) = (x - \mu)^\top \Sigma_\lambda^{-1} (x - \mu)
        - \sum_i (x_i - \mu_i)^2 / \Sigma_{ii}

    What remains is how much a row breaks the trusted correlations. Dimensions that never varied
    are left out of the sum. Higher is more anomalous; may be negative. Unitless.

    Args:
        shrinkage: as in :class:`Mahalanobis`.
        rcond: as in :class:`Mahalanobis`.

    Raises:
        NotEnoughData: as in :class:`Mahalanobis`.

    References:
        Ren et al., 2021, with the diagonal Gaussian as background.
        https://arxiv.org/abs/2106.09022
    """

    name = "mahalanobis-relative"
    precision_: Float[Tensor, " d"]

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Shrinks and inverts the covariance, and its diagonal."""
        assert isinstance(trusted, Moments)
        super().finish(trusted, pool, generator)
        self.precision_ = diagonal_precision(trusted)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return super()._score(x) - (x - self.mean_).square() @ self.precision_


class DiagonalMahalanobis(TensorScore):
    r"""Scores a row by its Mahalanobis distance with a diagonal covariance.

    .. math:: s(x) = \sum_i (x_i - \mu_i)^2 / \Sigma_{ii}

    Dimensions that never varied on trusted rows are left out: a floor under their variance would
    let them outweigh all others. Higher is more anomalous. Unitless; its mean over the trusted
    rows is the number of dimensions that varied.

    Raises:
        NotEnoughData: fewer than two trusted rows.
    """

    name = "mahalanobis-diagonal"
    mean_: Float[Tensor, " d"]
    precision_: Float[Tensor, " d"]

    def statistic(self) -> Statistic:
        """Mean and variances."""
        return Moments(diagonal=True)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Inverts the variances."""
        assert isinstance(trusted, Moments)
        self._need(trusted, 2)
        self.mean_, self.precision_ = trusted.mean, diagonal_precision(trusted)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (x - self.mean_).square() @ self.precision_


class PrincipalMahalanobis(TensorScore):
    r"""Scores a row by its Mahalanobis distance within the leading principal components.

    .. math:: s(x) = \sum_{i \le k} \frac{(v_i^\top (x - \mu))^2}{w_i}
        + \frac{\lVert r \rVert^2}{\sigma^2}

    :math:`r` is what the k components leave of :math:`x - \mu`. With ``residual="drop"`` its term
    is left out; with ``"isotropic"`` :math:`\sigma^2` is the mean of the other eigenvalues, as in
    probabilistic PCA, and the term is left out only if those are zero. Higher is more anomalous.
    Unitless; chi-squared with k degrees (d with ``"isotropic"``) on such Gaussian rows.

    Args:
        components: k; ``None`` takes the fewest that hold ``variance``.
        variance: share of the trusted variance that the components must hold, in (0, 1]. With 1
            and ``residual="drop"`` this is the pseudo-inverse.
        residual: what becomes of the rest.
        rcond: eigenvalues up to this share of the largest count as zero.

    Raises:
        NotEnoughData: fewer than two trusted rows, or no more than ``components``.

    References:
        Tipping, Bishop, 1999, section 3.2: Probabilistic principal component analysis.
        https://doi.org/10.1111/1467-9868.00196
    """

    name = "mahalanobis-pca"
    mean_: Float[Tensor, " d"]
    whitening_: Float[Tensor, "d k"]
    axes_: Float[Tensor, "d k"]
    residual_precision_: Float[Tensor, ""]

    def __init__(
        self,
        components: int | None = None,
        variance: float = 0.95,
        residual: Literal["drop", "isotropic"] = "drop",
        rcond: float = 1e-9,
    ) -> None:
        if components is not None:
            check_number(f"{self.name} components", components, least=1, whole=True)
        check_number(f"{self.name} variance", variance, least=1e-6, most=1)
        check_choice(f"{self.name} residual", residual, ("drop", "isotropic"))
        check_number(f"{self.name} rcond", rcond, least=0, most=1)
        self.components, self.variance = components, variance
        self.residual, self.rcond = residual, rcond

    def statistic(self) -> Statistic:
        """Mean and covariance."""
        return Moments()

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Keeps the leading components and how much varies beside them."""
        assert isinstance(trusted, Moments)
        wanted = self.components or 1
        self._need(trusted, wanted + 1, f"fewer components than {wanted}" if wanted > 1 else "")
        white, values = whiten_kept(trusted, self.rcond)
        k = min(self._count(values), len(values))
        rest = values[k:].sum() / max(1, trusted.dimensions - k)
        self.mean_ = trusted.mean
        self.whitening_ = white[:, :k].contiguous()
        self.axes_ = self.whitening_ * values[:k].sqrt()
        keeps_rest = self.residual == "isotropic" and float(rest) > 0
        self.residual_precision_ = 1 / rest if keeps_rest else torch.zeros_like(rest)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        gap = x - self.mean_
        z = gap @ self.whitening_
        score = squared_lengths(z)
        if self.residual == "drop":
            return score
        left = gap - (gap @ self.axes_) @ self.axes_.T

        return score + squared_lengths(left) * self.residual_precision_

    def _count(self, values: Float[Tensor, " d"]) -> int:
        """How many of the falling eigenvalues are kept."""
        if self.components is not None:
            return self.components
        share = values.cumsum(0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)

        return int((share < self.variance * (1 - 1e-12)).sum()) + 1


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
