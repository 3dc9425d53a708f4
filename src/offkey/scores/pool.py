"""Scores that learn from an unlabelled pool besides the trusted rows."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.scores._whitening import (
    constant_dimensions,
    squared_lengths,
    whiten_definite,
    whiten_kept,
)
from offkey.scores.score import TensorScore, check_number
from offkey.stats import Moments, Statistic, shrink

__all__ = ["LikelihoodRatio", "QuantumEntropy", "SpectralSignature"]


class _PoolScore(TensorScore):
    """A score made of the mean and covariance of both kinds of rows."""

    needs_pool = True

    def statistic(self) -> Statistic:
        """Mean and covariance."""
        return Moments()

    def _both(self, trusted: Statistic, pool: Statistic | None) -> tuple[Moments, Moments]:
        pool = self._need_pool(pool)
        self._need(trusted, 2)
        assert isinstance(trusted, Moments) and isinstance(pool, Moments)  # noqa: PT018

        return trusted, pool


class QuantumEntropy(_PoolScore):
    r"""Scores a row by its whitened length, weighted towards where the pool varies more.

    .. math::
        s(x) = k\, \frac{w^\top e^{A} w}{\operatorname{tr} e^{A}}, \qquad
        A = \alpha \tilde\Sigma / \lVert \tilde\Sigma \rVert_2, \qquad
        w = \Sigma^{+1/2} (x - \mu)

    :math:`\mu, \Sigma` are the trusted mean and covariance, :math:`\tilde\Sigma` the pool's
    covariance of the *whitened* rows, k the number of eigenvalues of :math:`\Sigma` above
    ``rcond`` times the largest. Dividing by the mean weight changes no order of rows and keeps
    large :math:`\alpha` from overflowing: :math:`\alpha \to 0` is the squared Mahalanobis
    distance, :math:`\alpha \to \infty` is k times the squared component along the pool's top
    direction. Higher is more anomalous. Unitless; its mean over the trusted rows is k.

    Args:
        alpha: how strongly the pool's directions count.
        rcond: eigenvalues of the trusted covariance up to this share of the largest are dropped.

    Raises:
        NotEnoughData: fewer than two trusted rows, or two of the pool, or no pool.

    References:
        Dong, Hopkins, Li, 2019: Quantum entropy scoring. https://arxiv.org/abs/1906.11366
        Hayase, Kong, Somani, Oh, 2021: SPECTRE. https://arxiv.org/abs/2104.11315
    """

    name = "que"
    mean_: Float[Tensor, " d"]
    projection_: Float[Tensor, "d k"]

    def __init__(self, alpha: float = 4.0, rcond: float = 1e-5) -> None:
        check_number(f"{self.name} alpha", alpha, least=0, most=1e6)
        check_number(f"{self.name} rcond", rcond, least=0, most=1)
        self.alpha, self.rcond = alpha, rcond

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Whitens by the trusted rows and weighs directions by the pool."""
        known, mixed = self._both(trusted, pool)
        self.mean_ = known.mean
        white = whiten_kept(known, self.rcond)[0]
        spread, axes = torch.linalg.eigh(white.T @ mixed.covariance() @ white)
        if bool(constant_dimensions(mixed).all()):
            spread = torch.zeros_like(spread)
        power = self.alpha * spread / spread.abs().amax() if spread.any() else spread
        weights = torch.softmax(power, dim=0) * len(power)
        self.projection_ = (white @ axes) * weights.sqrt()

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        z = (x - self.mean_) @ self.projection_

        return squared_lengths(z)


class SpectralSignature(_PoolScore):
    r"""Scores a row by its squared component along the pool's top direction.

    .. math:: s(x) = ((x - \mu_u)^\top v_1)^2

    :math:`\mu_u` is the pool's mean and :math:`v_1` the top eigenvector of its covariance; the
    trusted rows are not used. Higher is more anomalous. In the squared units of the rows.

    Raises:
        NotEnoughData: fewer than two rows of the pool, or no pool.

    References:
        Tran, Li, Madry, 2018, algorithm 1. https://arxiv.org/abs/1811.00636
    """

    name = "spectral"
    mean_: Float[Tensor, " d"]
    axis_: Float[Tensor, " d"]

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Finds the pool's top direction."""
        mixed = self._need_pool(pool)
        assert isinstance(mixed, Moments)
        self.mean_, self.axis_ = mixed.mean, mixed.eigh[1][:, -1].contiguous()

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return ((x - self.mean_) @ self.axis_).square()


class LikelihoodRatio(_PoolScore):
    r"""Scores a row by how much likelier the pool's Gaussian makes it than the trusted one.

    .. math:: s(x) = \log \mathcal{N}(y; \mu_u, \Sigma_u) - \log \mathcal{N}(y; \mu, \Sigma),
        \qquad y = Q^\top x

    The columns of Q are the eigenvectors with nonzero eigenvalues of whichever covariance has
    fewer of them; within, both covariances are shrunk by optimal linear shrinkage. Higher is more
    anomalous. In nats.

    Args:
        rcond: eigenvalues up to this share of the largest count as zero.

    Raises:
        NotEnoughData: fewer than two trusted rows, or two of the pool, or no pool.

    References:
        Bodnar, Gupta, Parolya, 2014 (the shrinkage). https://arxiv.org/abs/1308.2608
    """

    name = "likelihood-ratio"
    mean_: Float[Tensor, " d"]
    whitening_: Float[Tensor, "d k"]
    log_det_: Float[Tensor, ""]
    pool_mean_: Float[Tensor, " d"]
    pool_whitening_: Float[Tensor, "d k"]
    pool_log_det_: Float[Tensor, ""]

    def __init__(self, rcond: float = 1e-9) -> None:
        check_number(f"{self.name} rcond", rcond, least=0, most=1)
        self.rcond = rcond

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Fits both Gaussians in the basis that they share."""
        known, mixed = self._both(trusted, pool)
        bases = [whiten_kept(moments, self.rcond) for moments in (known, mixed)]
        white, values = min(bases, key=lambda basis: len(basis[1]))
        axes = white * values.sqrt()
        self.mean_, self.pool_mean_ = known.mean, mixed.mean
        self.whitening_, self.log_det_ = self._fit(known, axes)
        self.pool_whitening_, self.pool_log_det_ = self._fit(mixed, axes)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        known = (x - self.mean_) @ self.whitening_
        mixed = (x - self.pool_mean_) @ self.pool_whitening_
        squares = squared_lengths(known) - squared_lengths(mixed)

        return (squares + self.log_det_ - self.pool_log_det_) / 2

    def _fit(
        self, moments: Moments, axes: Float[Tensor, "d k"]
    ) -> tuple[Float[Tensor, "d k"], Float[Tensor, ""]]:
        """Whitening map through the axes and log-determinant of the shrunk covariance."""
        inside = axes.T @ moments.covariance() @ axes
        white, log_det = whiten_definite(_optimally_shrunk(inside, moments.count), self.rcond)

        return axes @ white, log_det


def _optimally_shrunk(covariance: Float[Tensor, "k k"], rows: int) -> Float[Tensor, "k k"]:
    """Optimal linear shrinkage of a covariance of ``rows`` rows towards the identity."""
    if len(covariance) < 2:
        return covariance
    trace = covariance.trace()
    spread = covariance.square().sum() - trace.square() / len(covariance)
    amount = trace.square() / rows / spread if float(spread) > 0 else torch.ones(())

    return shrink(covariance, min(1.0, float(amount)))
