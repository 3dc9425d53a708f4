"""The state that is carried through a network, a mean and a covariance; fits and divergence."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offkey.errors import BadInput, Mismatch, NotEnoughData
from offkey.stats import Gaussian, Moments

__all__ = ["Normal", "fit", "divergence"]

_ASYMMETRY = 1e-9
"""Largest asymmetry of a covariance, as a share of its largest entry, taken for rounding."""


@dataclass(frozen=True, eq=False)
class Normal:
    """A Gaussian as mean and covariance; it need not be positive definite until it is sampled.

    Args:
        mean: ``[d]``.
        covariance: ``[d, d]``, or ``[d]`` where only variances are kept.

    Raises:
        Mismatch: the shapes do not match.
        BadInput: not finite, not symmetric, or a negative variance.
    """

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"] | Float[Tensor, " d"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.double())
        object.__setattr__(self, "covariance", self.covariance.double())
        width = len(self.mean)
        if self.mean.ndim != 1 or self.covariance.shape not in ((width,), (width, width)):
            raise Mismatch(
                f"mean of shape {tuple(self.mean.shape)} and covariance of shape "
                f"{tuple(self.covariance.shape)}",
                where="Normal",
            )
        if not bool(self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise BadInput("a mean or covariance is not finite", where="Normal")
        if not self.is_diagonal:
            covariance = self.covariance.detach()
            gap = float((covariance - covariance.T).abs().amax()) if width else 0.0
            if gap > _ASYMMETRY * float(covariance.abs().amax() if width else 0.0):
                raise BadInput(f"the covariance is not symmetric (gap {gap:.2g})", where="Normal")
        if width and float(self.variance.detach().amin()) < 0:
            worst = int(self.variance.argmin())
            raise BadInput(
                f"variance {float(self.variance[worst]):.3g} is negative",
                where=f"Normal, dimension {worst}",
            )

    @classmethod
    def standard(cls, width: int) -> "Normal":
        """Mean 0 and covariance 1."""
        return cls(torch.zeros(width).double(), torch.eye(width).double())

    @property
    def is_diagonal(self) -> bool:
        """Whether only variances are kept."""
        return self.covariance.ndim == 1

    @property
    def variance(self) -> Float[Tensor, " d"]:
        """Of each dimension."""
        return self.covariance if self.is_diagonal else self.covariance.diagonal()

    @property
    def full(self) -> Float[Tensor, "d d"]:
        """The covariance as a matrix."""
        return torch.diag(self.covariance) if self.is_diagonal else self.covariance

    def diagonal(self) -> "Normal":
        """The same variances without covariances."""
        return Normal(self.mean, self.variance.clone())

    def masked(self, mask: Bool[Tensor, "d d"]) -> "Normal":
        """Sets covariances outside a mask to zero; the result need not be positive definite.

        Raises:
            BadInput: the mask is not symmetric.
        """
        if mask.shape != self.full.shape or not bool((mask == mask.T).all()):
            raise BadInput(
                "the mask is not a symmetric matrix of the covariance's shape", where="mask"
            )
        keep = mask | torch.eye(len(mask), dtype=torch.bool, device=mask.device)

        return Normal(self.mean, self.full * keep)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count d"]:
        """Draws rows.

        Raises:
            BadInput: the covariance is not positive semi-definite.
        """
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        if self.is_diagonal:
            return self.mean + noise * self.covariance.sqrt()
        values, vectors = torch.linalg.eigh(self.covariance)
        least = float(values[0]) if len(values) else 0.0
        if least < -1e-9 * float(values.abs().amax()):
            raise BadInput(
                f"the covariance is not positive semi-definite (eigenvalue {least:.3g})",
                where="Normal",
                mend="Close the masked covariance first, with closure 'maxent' or 'clip'",
            )
        drawn: Tensor = self.mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T

        return drawn

    def density(self) -> Gaussian:
        """The same Gaussian with its densities and distances.

        Raises:
            NotEnoughData: the covariance is singular.
        """
        return Gaussian(self.mean, self.full)


def fit(rows: Float[Tensor, "n d"] | Moments, *, diagonal: bool = False) -> Normal:
    """The Gaussian with the mean and covariance of rows; the covariance divides by n - 1.

    Args:
        rows: the rows, or their moments.
        diagonal: keep variances only.

    Raises:
        NotEnoughData: fewer than two rows.
        NonFinite: a row holds NaN or infinity.
    """
    if isinstance(rows, Moments):
        moments = rows
    else:
        moments = Moments(diagonal=diagonal)
        moments.update(rows.double(), [f"row {i}" for i in range(len(rows))])
    if moments.count < 2:
        raise NotEnoughData(f"{moments.count} rows", where="Gaussian fit", mend="Give two or more")

    return Normal(moments.mean, moments.variance(1) if diagonal else moments.covariance(1))


def divergence(first: Normal, second: Normal) -> Tensor:
    r"""Kullback-Leibler divergence of ``second`` from ``first``, in nats.

    .. math:: KL(N_0 \Vert N_1) = \tfrac12 [tr S_1^{-1} S_0 + \delta^\top S_1^{-1} \delta - d +
        \ln(|S_1| / |S_0|)]

    Raises:
        Mismatch: they have different widths.
        NotEnoughData: one of the covariances is singular.
    """
    if len(first.mean) != len(second.mean):
        raise Mismatch(f"widths {len(first.mean)} and {len(second.mean)}", where="divergence")
    own, other = _factor(first), _factor(second)
    gap = torch.linalg.solve_triangular(other, (first.mean - second.mean)[:, None], upper=False)
    share = torch.linalg.solve_triangular(other, own, upper=False)
    logs = other.diagonal().log().sum() - own.diagonal().log().sum()
    value: Tensor = (share.square().sum() + gap.square().sum() - len(gap)) / 2 + logs

    return value


def _factor(normal: Normal) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(normal.full)
    if int(failed):
        raise NotEnoughData(
            "a covariance is singular or not positive definite",
            where="divergence",
            mend="Close a masked covariance first",
        )
    made: Tensor = factor

    return made
