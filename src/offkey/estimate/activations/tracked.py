"""A Gaussian whose tracked correlations were chosen by the surprise they save."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.estimate.activations.mask_search import tracked_in_rounds
from offkey.estimate.activations.model import pairs_of
from offkey.stats import Moments

__all__ = ["shrinkage_of", "TrackedGaussian"]

_ROUNDING = 1e-12
"""A deviation below this share of the mean is rounding."""


def shrinkage_of(correlation: Float[Tensor, "d d"], samples: int) -> float:
    r"""How far correlations from few samples are shrunk to 0.

    .. math:: \lambda = \frac{\sum_{i \ne j} (1 - r_{ij}^2)^2 / (N - 1)}{\sum_{i \ne j} r_{ij}^2}

    kept between 1e-4 and 1: the share that costs least squared error, with the variance that a
    correlation of Gaussian samples has.

    References:
        Schäfer, Strimmer, 2005. https://doi.org/10.2202/1544-6115.1175
    """
    square = correlation.square()
    square.fill_diagonal_(0.0)
    total = float(square.sum())
    noise = float((1 - square).square().sum() - len(square)) / max(1, samples - 1)

    return min(1.0, max(1e-4, noise / total)) if total > 0 else 1.0


@dataclass(frozen=True, eq=False)
class TrackedGaussian:
    """A Gaussian of standardised dimensions with some correlations tracked, fast to score.

    Attributes:
        mean: of each dimension.
        precision: one over each deviation; 0 where a dimension never varied.
        pairs: tracked pairs, the strongest first.
        correlation: of each tracked pair.
        whitening: from standardised rows to uncorrelated ones, under the closure.
    """

    mean: Float[Tensor, " d"]
    precision: Float[Tensor, " d"]
    pairs: Int[Tensor, "k 2"]
    correlation: Float[Tensor, " k"]
    whitening: Float[Tensor, "d r"]

    @classmethod
    def of(cls, moments: Moments, *, rounds: int = 4) -> Self:
        """Chooses pairs with :func:`tracked_in_rounds` and closes them by maximum entropy.

        Correlations are shrunk to 0 by :func:`shrinkage_of` first, so that the rows may be fewer
        than the dimensions; dimensions that never varied are left out.

        Args:
            moments: of the trusted rows.
            rounds: at most.
        """
        mean, variance = moments.mean, moments.variance()
        place = (variance > (_ROUNDING * mean).square()).nonzero()[:, 0]
        scale = variance[place].sqrt()
        r = moments.covariance()[place[:, None], place] / torch.outer(scale, scale)
        r = ((r + r.T) / 2).clamp(-1, 1)
        r.fill_diagonal_(1.0)
        shrinkage = shrinkage_of(r, moments.count)
        mask, closed = tracked_in_rounds(
            r, max(2, moments.count), rounds=rounds, shrinkage=shrinkage
        )
        chosen = torch.tensor(sorted(pairs_of(mask)), dtype=torch.long).reshape(-1, 2)
        strength = closed[chosen[:, 0], chosen[:, 1]]
        order = strength.abs().sort(descending=True, stable=True).indices
        precision, white = torch.zeros_like(mean), mean.new_zeros(len(mean), len(place))
        precision[place] = 1 / scale
        one = torch.eye(len(place), dtype=torch.float64)
        factor = torch.linalg.cholesky(closed)
        white[place] = torch.linalg.solve_triangular(factor, one, upper=False).T

        return cls(mean, precision, place[chosen[order]], strength[order], white)

    def standardised(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows less the mean, over the deviations, in float64."""
        return (x.double() - self.mean) * self.precision

    def distance(self, z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Squared Mahalanobis distance of standardised rows under the closure."""
        white = z @ self.whitening
        squares: Tensor = torch.linalg.vecdot(white, white)

        return squares

    def residuals(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        r"""How far each tracked pair's product contradicts its sign, for standardised rows.

        .. math:: -\operatorname{sign}(\rho_{ij})
            \frac{z_i z_j - \rho_{ij}}{\sqrt{1 + \rho_{ij}^2}}
        """
        (i, j), rho = self.pairs.T, self.correlation
        w: Tensor = (rho - z[:, i] * z[:, j]) / (1 + rho.square()).sqrt() * rho.sign()

        return w

    def strongest(self, count: int) -> Self:
        """The same with the strongest tracked pairs only; the closure stays."""
        return type(self)(
            self.mean, self.precision, self.pairs[:count], self.correlation[:count], self.whitening
        )

    def state(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """What :meth:`state` described."""
        # A copy of its own is aligned as a fresh tensor is, which keeps products bitwise.
        return cls(
            **{
                field.name: state[field.name].clone(memory_format=torch.contiguous_format)
                for field in fields(cls)
            }
        )
