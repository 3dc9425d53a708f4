"""Covariance matrices: shrunk where rows are few, whitened, and Gaussians that score rows."""

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch, NotEnoughData
from offkey.stats.streaming import Moments

__all__ = [
    "Gaussian",
    "Shrunk",
    "analytical_nonlinear",
    "ledoit_wolf",
    "oas",
    "optimal_linear",
    "shrink",
    "whitener",
]

_LEAST_ROWS = 12
"""Rows below which the kernel estimate of the eigenvalue density means nothing."""

_ROWS = 1024
"""Rows whitened at once, which bounds the float64 copies."""


class Shrunk(NamedTuple):
    """A covariance matrix and how far it was shrunk towards the identity.

    Attributes:
        covariance: float64.
        shrinkage: 0 keeps the sample covariance, 1 keeps only its trace.
    """

    covariance: Float[Tensor, "d d"]
    shrinkage: float


def shrink(covariance: Float[Tensor, "d d"], shrinkage: float) -> Float[Tensor, "d d"]:
    r"""Shrinks a covariance matrix towards the multiple of the identity with the same trace.

    .. math:: (1 - \lambda) \Sigma + \lambda \frac{\operatorname{tr} \Sigma}{d} I

    Raises:
        BadValue: ``shrinkage`` outside 0 to 1.
    """
    if not 0 <= shrinkage <= 1:
        raise BadValue(f"shrinkage {shrinkage} is not between 0 and 1", where="shrink")
    scale = float(covariance.trace()) / len(covariance)
    shrunk = covariance * (1 - shrinkage)
    shrunk.diagonal().add_(shrinkage * scale)

    return shrunk


def ledoit_wolf(moments: Moments) -> Shrunk:
    r"""Ledoit and Wolf's shrinkage, from streamed sums; equal to scikit-learn's ``LedoitWolf``.

    With :math:`S` the covariance (``ddof=0``), :math:`\mu` its mean eigenvalue and :math:`c` the
    centred rows, the shrinkage is :math:`\min(b, \delta) / \delta` for

    .. math::
        \delta = \lVert S - \mu I \rVert_F^2, \qquad
        b = \frac1n \Big( \frac1n \sum \lVert c \rVert^4 - \lVert S \rVert_F^2 \Big)

    References:
        Ledoit, Wolf, 2004: A well-conditioned estimator for large-dimensional covariance
        matrices, section 3.3.
    """
    covariance = moments.covariance()
    n, d = moments.count, len(covariance)
    if d == 1:
        return Shrunk(covariance, 0.0)
    square, scale = _square(covariance), float(covariance.trace()) / d
    distance = square - d * scale**2
    error = min((float(moments.higher()[1]) / n - square) / n, distance)
    shrinkage = min(1.0, max(0.0, error / distance)) if error > 0 and distance > 0 else 0.0

    return Shrunk(shrink(covariance, shrinkage), shrinkage)


def oas(moments: Moments) -> Shrunk:
    """Oracle approximating shrinkage; equal to scikit-learn's ``OAS``.

    Best where rows are Gaussian; needs nothing but the covariance. As there, the terms in 2/d of
    the published formula are left out.

    References:
        Chen, Wiesel, Eldar, Hero, 2010, eq. 23. https://arxiv.org/abs/0907.4698
    """
    covariance = moments.covariance()
    n, d = moments.count, len(covariance)
    if d == 1:
        return Shrunk(covariance, 0.0)
    square, trace = _square(covariance), float(covariance.trace())
    above = square + trace**2
    below = (n + 1) * (square - trace**2 / d)
    shrinkage = 1.0 if below <= 0 else min(1.0, above / below)

    return Shrunk(shrink(covariance, shrinkage), shrinkage)


def optimal_linear(moments: Moments) -> Shrunk:
    r"""Random-matrix shrinkage towards the identity, which holds for few rows too.

    Of all :math:`\alpha S + \beta I` it is the closest to the true covariance in the Frobenius
    norm as rows and dimensions grow together, whatever the distribution:

    .. math::
        1 - \alpha = \frac{(\operatorname{tr} S)^2 / n}
        {\lVert S \rVert_F^2 - (\operatorname{tr} S)^2 / d}, \qquad
        \beta = (1 - \alpha) \operatorname{tr} S / d

    References:
        Bodnar, Gupta, Parolya, 2014, eq. 4.3 and 4.4 with target I/d.
        https://arxiv.org/abs/1308.2608
    """
    covariance = moments.covariance()
    n, d = moments.count, len(covariance)
    if d == 1:
        return Shrunk(covariance, 0.0)
    square, trace = _square(covariance), float(covariance.trace())
    below = square - trace**2 / d
    shrinkage = 1.0 if below <= 0 else min(1.0, trace**2 / n / below)

    return Shrunk(shrink(covariance, shrinkage), shrinkage)


def analytical_nonlinear(moments: Moments) -> Float[Tensor, "d d"]:
    """Shrinks each eigenvalue separately, by a kernel estimate of the eigenvalues' density.

    Keeps the sample's eigenvectors. Better than any linear shrinkage for a few hundred dimensions
    and more, where the true eigenvalues are far from equal. Costs one eigendecomposition.

    Raises:
        NotEnoughData: fewer than 12 rows.

    References:
        Ledoit, Wolf, 2020, Annals of Statistics 48: Analytical nonlinear shrinkage of
        large-dimensional covariance matrices.
    """
    n, d = moments.count - 1, moments.dimensions
    if n < _LEAST_ROWS - 1:
        raise NotEnoughData(
            f"{moments.count} rows where at least {_LEAST_ROWS} are needed",
            where="analytical nonlinear shrinkage",
        )
    values, vectors = moments.eigh
    values = values * (moments.count / n)
    kept = values[max(0, d - n) :].clamp_min(float(values[-1]) * 1e-14)
    if float(kept[-1]) <= 0:
        raise NotEnoughData("all rows are equal", where="analytical nonlinear shrinkage")
    shrunk = _nonlinear(kept, n, d)

    return (vectors * shrunk) @ vectors.T


def whitener(
    covariance: Float[Tensor, "d d"] | tuple[Float[Tensor, " d"], Float[Tensor, "d d"]],
    *,
    rcond: float | None = None,
    rank: int | None = None,
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    r"""The map from centred rows to uncorrelated ones of variance 1, largest variance first.

    :math:`z = x W` with :math:`W = Q_k \operatorname{diag}(w_k)^{-1/2}`. Directions with
    eigenvalue below ``rcond`` times the largest are left out, so that :math:`\lVert z \rVert^2`
    is the distance under the pseudo-inverse.

    Args:
        covariance: the matrix, or its eigenvalues and eigenvectors.
        rcond: ``None`` means d times float64's epsilon.
        rank: keep at most this many directions.

    Returns:
        The map and the eigenvalues of the directions kept.

    Raises:
        NotEnoughData: no direction varies.
        BadValue: ``rank`` below 1.
    """
    if rank is not None and rank < 1:
        raise BadValue(f"rank {rank} is below 1", where="whitener")
    pair = torch.linalg.eigh(covariance.double()) if isinstance(covariance, Tensor) else covariance
    values, vectors = pair[0].flip(0), pair[1].flip(1)
    floor = (len(values) * torch.finfo(torch.float64).eps) if rcond is None else rcond
    keep = int((values > floor * values[0]).sum()) if float(values[0]) > 0 else 0
    if not keep:
        raise NotEnoughData(
            "the rows do not vary in any direction",
            where="whitener",
            mend="Give rows that differ",
        )
    keep = keep if rank is None else min(keep, rank)

    return vectors[:, :keep] * values[:keep].rsqrt(), values[:keep]


class Gaussian:
    r"""A Gaussian: :math:`(x - \mu)^\top \Sigma^{-1} (x - \mu)` and what follows from it.

    By default the covariance must be of full rank and is factored by Cholesky, the fast way.
    With ``rcond`` or ``rank`` the pseudo-inverse on the largest eigenvalues is used instead, and
    densities are those on that subspace. Computes in float64, whatever the rows are in.

    Args:
        mean: centre.
        covariance: the matrix; or its eigenvalues (rising) and eigenvectors, where known.
        rcond: leave out eigenvalues below this times the largest.
        rank: keep at most this many of the largest eigenvalues.

    Attributes:
        log_det: sum of the logarithms of the eigenvalues in use.
        rank: how many directions are in use.

    Raises:
        NotEnoughData: the covariance is singular, and neither ``rcond`` nor ``rank`` was given.
    """

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        covariance: Float[Tensor, "d d"] | tuple[Float[Tensor, " d"], Float[Tensor, "d d"]],
        *,
        rcond: float | None = None,
        rank: int | None = None,
    ) -> None:
        self.mean = mean.double()
        if isinstance(covariance, Tensor) and rcond is None and rank is None:
            self._is_triangular, self._factor = True, _cholesky(covariance.double())
            self.log_det = 2 * float(self._factor.diagonal().log().sum())
        else:
            self._is_triangular = False
            self._factor, values = whitener(covariance, rcond=rcond, rank=rank)
            self.log_det = float(values.log().sum())

    @property
    def rank(self) -> int:
        """How many directions are in use."""
        return self._factor.shape[1]

    def whiten(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Rows less the mean, uncorrelated and of variance 1; float64."""
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise Mismatch(
                f"rows of shape {tuple(x.shape)} for a Gaussian of width {len(self.mean)}",
                where="Gaussian",
            )
        z = x.to(device=self.mean.device, dtype=torch.float64) - self.mean
        if self._is_triangular:
            z = torch.linalg.solve_triangular(self._factor.T, z, upper=True, left=False)
        else:
            z = z @ self._factor

        return z

    def mahalanobis(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Squared distance of each row; chi-squared with ``rank`` degrees on its own draws."""
        parts = []
        for start in range(0, max(1, len(x)), _ROWS):
            z = self.whiten(x[start : start + _ROWS])
            parts.append(torch.linalg.vecdot(z, z))

        return torch.cat(parts)

    def log_density(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Log density of each row, in nats; on the subspace in use."""
        return -0.5 * (self.rank * math.log(2 * math.pi) + self.log_det + self.mahalanobis(x))

    def state(self) -> dict[str, Tensor]:
        """Everything needed to score, as tensors."""
        return {
            "mean": self.mean.cpu(),
            "factor": self._factor.cpu(),
            "log_det": torch.tensor(self.log_det, dtype=torch.float64),
            "triangular": torch.tensor(self._is_triangular),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The Gaussian that :meth:`state` described."""
        gaussian = cls.__new__(cls)
        gaussian.mean, gaussian._factor = state["mean"], state["factor"]
        gaussian.log_det = float(state["log_det"])
        gaussian._is_triangular = bool(state["triangular"])

        return gaussian


def _square(covariance: Float[Tensor, "d d"]) -> float:
    return float(torch.linalg.vector_norm(covariance)) ** 2


def _nonlinear(kept: Float[Tensor, " k"], n: int, d: int) -> Float[Tensor, " d"]:
    """Shrunk eigenvalues from the nonzero ones of the sample, rising."""
    h = n ** (-1 / 3)
    density, hilbert = _kernel(kept, h)
    if d <= n:
        c = d / n
        stretch = (math.pi * c * kept * density).square()

        return kept / (stretch + (1 - c - math.pi * c * kept * hilbert).square())
    tail = math.log((1 + math.sqrt(5) * h) / (1 - math.sqrt(5) * h))
    at_zero = 3 / (10 * h**2) + 3 / (4 * math.sqrt(5) * h) * (1 - 1 / (5 * h**2)) * tail
    null = 1 / ((d - n) / n * at_zero * float((1 / kept).mean()))
    shrunk = 1 / (math.pi**2 * kept * (density.square() + hilbert.square()))

    return torch.cat([shrunk.new_full((d - n,), null), shrunk])


def _kernel(kept: Float[Tensor, " k"], h: float) -> tuple[Tensor, Tensor]:
    """Epanechnikov estimate of the eigenvalues' density at each, and its Hilbert transform.

    The bandwidth of each eigenvalue is ``h`` times itself.
    """
    width, root = kept * h, math.sqrt(5)
    density, hilbert = torch.empty_like(kept), torch.empty_like(kept)
    for start in range(0, len(kept), 512):
        at = slice(start, start + 512)
        x = (kept[at, None] - kept) / width
        bump = 1 - x.square() / 5
        density[at] = (3 / (4 * root) * bump.clamp_min(0) / width).mean(dim=1)
        ratio = ((root - x) / (root + x)).abs()
        # bump is 0 where the logarithm is infinite, and their product tends to 0
        slope = torch.where(bump.abs() < 1e-14, 0.0, bump * ratio.log())
        curve = -3 / (10 * math.pi) * x + 3 / (4 * root * math.pi) * slope
        hilbert[at] = (curve / width).mean(dim=1)

    return density, hilbert


def _cholesky(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Lower factor; a pivot lost in rounding means that the matrix is singular."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    floor = len(covariance) * torch.finfo(torch.float64).eps * covariance.diagonal()
    if int(info) or not bool((pivots > floor).all()):
        raise NotEnoughData(
            "the covariance is singular",
            where="Gaussian",
            mend="Give more rows than dimensions, shrink it, or set rcond",
        )

    return factor
