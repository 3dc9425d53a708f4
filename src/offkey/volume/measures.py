"""What a volume is measured by: a Gaussian's probability or Lebesgue's plain volume.

Integrals along a ray and sizes of balls are computed in log space and float64.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.special import gammaln

from offkey.errors import PriorMismatch

__all__ = [
    "GaussianMeasure",
    "LebesgueMeasure",
    "Measure",
    "log_ball_volume",
    "log_ray_integral",
    "log_sphere_area",
]

Array = np.ndarray
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
REACH = 9.0
"""Standard deviations of the local curvature."""
NEGLIGIBLE = 40.0
"""Nats below the peak at which the integrand no longer counts in float64."""


class Measure(ABC):
    """A density over parameters, integrated along rays from the anchor.

    Attributes:
        name: identifies it where volumes are compared and stored.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def width(self) -> float:
        """Standard deviation of the density; infinite for a flat one."""

    @abstractmethod
    def reach(self, dimensions: int, slope: Float64[Array, " m"]) -> Float64[Array, " m"]:
        """The radius of each ray beyond which there is nothing left to integrate."""

    @abstractmethod
    def log_mass(
        self,
        dimensions: int,
        anchor_squared: float,
        slope: Float64[Array, " m"],
        radius: Float64[Array, " m"],
    ) -> Float64[Array, " m"]:
        r"""Log of :math:`\int_0^R r^{D-1} m(\theta + r v)\,dr` for each ray, in nats.

        Args:
            dimensions: D.
            anchor_squared: :math:`|\theta|^2` of the parameters that move.
            slope: :math:`\theta \cdot v` of each ray's unit vector.
            radius: R.
        """


@dataclass(frozen=True)
class GaussianMeasure(Measure):
    r"""The probability of a region under :math:`N(0, \sigma^2 I)` over the parameters that move.

    The width is never guessed: the volumes of two checkpoints are comparable only at the same
    width. Usual choices are the root mean square of the *initial* weights, and
    :math:`1/\sqrt{\lambda N}` for an L2 penalty.

    Args:
        sigma: the standard deviation.

    Raises:
        PriorMismatch: it is missing, not positive or not finite.
    """

    name = "gaussian"
    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.sigma is None or not 0 < self.sigma < float("inf"):
            raise PriorMismatch(
                f"sigma is {self.sigma}",
                where="Gaussian measure",
                mend="Give the standard deviation, such as that of the initial weights",
            )

    @property
    def width(self) -> float:
        """The standard deviation."""
        assert self.sigma is not None

        return float(self.sigma)

    def reach(self, dimensions: int, slope: Float64[Array, " m"]) -> Float64[Array, " m"]:
        """Twelve standard deviations beyond the peak of the integrand."""
        b = -slope / self.width
        mode = (b + np.sqrt(b**2 + 4 * (dimensions - 1))) / 2

        return np.asarray(self.width * (np.maximum(mode, 0) + 12))

    def log_mass(
        self,
        dimensions: int,
        anchor_squared: float,
        slope: Float64[Array, " m"],
        radius: Float64[Array, " m"],
    ) -> Float64[Array, " m"]:
        """The Gaussian's mass along each ray."""
        s = self.width
        whole = log_ray_integral(1.0, -slope / s, dimensions - 1, radius / s)
        constant = -dimensions / 2 * np.log(2 * np.pi) - anchor_squared / (2 * s**2)

        return np.asarray(whole + constant)


@dataclass(frozen=True)
class LebesgueMeasure(Measure):
    """Plain volume; infinite where a direction never crosses the cutoff."""

    name = "lebesgue"

    @property
    def width(self) -> float:
        """Infinite."""
        return float("inf")

    def reach(self, dimensions: int, slope: Float64[Array, " m"]) -> Float64[Array, " m"]:
        """Infinite."""
        return np.full(len(slope), np.inf)

    def log_mass(
        self,
        dimensions: int,
        anchor_squared: float,
        slope: Float64[Array, " m"],
        radius: Float64[Array, " m"],
    ) -> Float64[Array, " m"]:
        """The volume of the cone over a unit of the sphere's area."""
        return np.asarray(dimensions * np.log(radius) - np.log(dimensions))


def log_ball_volume(dimensions: int) -> float:
    r"""Log volume of the unit ball, :math:`\frac D2 \ln\pi - \ln\Gamma(\frac D2 + 1)`, nats."""
    return float(dimensions / 2 * np.log(np.pi) - gammaln(dimensions / 2 + 1))


def log_sphere_area(dimensions: int) -> float:
    r"""Log area of the unit sphere, :math:`\ln(D V_D)`, in nats."""
    return float(np.log(dimensions)) + log_ball_volume(dimensions)


def log_ray_integral(
    a: ArrayLike, b: ArrayLike, n: float, radius: ArrayLike
) -> Float64[Array, " m"]:
    r"""Log of the integral of a Gaussian along a ray, in nats.

    .. math:: \ln I(a, b, n, R) = \ln \int_0^R r^n e^{-a r^2 / 2 + b r}\,dr

    The exponent is strictly concave; 200 Gauss-Legendre nodes cover where it is within 40 nats of
    its greatest value, relative to which everything is computed. Relative error of the integral
    about 1e-12 up to n = 1e6.

    Args:
        a: curvature, positive.
        b: slope.
        n: power of the radius, not negative.
        radius: R, positive; may be infinite.
    """
    a, b, radius = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (a, b, radius))
    )
    mode = _mode(a, b, n)
    peak = np.minimum(mode, radius)
    slope = np.where(radius < mode, -a * peak + b + _over(n, peak), 0.0)
    width = 1 / np.sqrt(a + _over(n, peak**2))
    slope = np.maximum(slope, 0.0)
    with np.errstate(divide="ignore"):
        left = np.minimum(REACH * width, NEGLIGIBLE / slope)
    low = np.maximum(0.0, peak - left)
    with np.errstate(divide="ignore"):
        right = np.minimum(REACH * width, np.inf if n else NEGLIGIBLE / np.maximum(-b, 0.0))
    high = _right_end(a, b, n, peak, np.minimum(radius, peak + right), radius)

    half = (high - low)[:, None] / 2
    r = low[:, None] + half * (1 + NODES)
    total = (np.exp(_relative(a[:, None], b[:, None], n, peak[:, None], r)) * WEIGHTS).sum(1)
    with np.errstate(divide="ignore"):
        at_peak = -a * peak**2 / 2 + b * peak + (n * np.log(peak) if n else 0.0)

    return np.asarray(at_peak + np.log(total * half[:, 0]))


def _mode(a: Array, b: Array, n: float) -> Array:
    """Where the exponent is greatest; no cancellation where the slope is negative."""
    root = np.sqrt(b**2 + 4 * a * n)
    with np.errstate(divide="ignore", invalid="ignore"):
        negative = 2 * n / (root - b) if n else np.zeros_like(b)

    return np.where(b > 0, (b + root) / (2 * a), negative)


def _over(n: float, x: Array) -> Array:
    return n / x if n else np.zeros_like(x)


def _relative(a: Array, b: Array, n: float, peak: Array, r: Array) -> Array:
    """The exponent at r minus that at the peak."""
    gap = r - peak
    with np.errstate(divide="ignore"):
        power = n * np.log1p(gap / peak) if n else 0.0

    return np.asarray(-a * gap * (r + peak) / 2 + b * gap + power)


def _right_end(a: Array, b: Array, n: float, peak: Array, end: Array, radius: Array) -> Array:
    """Moves the end outwards until the integrand is negligible there.

    With a small power it falls off more slowly than its curvature says.
    """
    end = end.copy()
    for _ in range(60):
        short = (end < radius) & (_relative(a, b, n, peak, end) > -NEGLIGIBLE)
        if not short.any():
            break
        end = np.where(short, np.minimum(radius, peak + 1.5 * (end - peak)), end)

    return end
