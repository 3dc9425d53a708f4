"""The ray integral: printed digits, quadrature by others, and the exact whole."""

import mpmath
import numpy as np
import pytest
from scipy.special import gammaln

from offkey.volume import log_ball_volume, log_ray_integral, log_sphere_area
from tests.volume.cases import INTEGRALS


@pytest.mark.parametrize(("given", "expected"), INTEGRALS)
def test_printed_digits(given, expected):
    assert log_ray_integral(*given)[0] == pytest.approx(expected, abs=1e-6)


def by_mpmath(a, b, n, radius):
    """The slow way: thirty digits, cut where the integrand turns."""
    mpmath.mp.dps = 30
    mode = (b + mpmath.sqrt(b * b + 4 * a * n)) / (2 * a)
    s = 1 / mpmath.sqrt(a + n / mode**2) if mode else 1 / mpmath.sqrt(a)
    top = min(mode, radius)
    cuts = [0, *(top + k * s for k in (-20, -8, -3, 0, 3, 8, 20, 60, 200))]
    cuts = sorted({min(max(mpmath.mpf(c), 0), mpmath.mpf(radius)) for c in cuts} | {radius})
    scale = n * mpmath.log(top) - a * top**2 / 2 + b * top if n else 0
    told = mpmath.quad(
        lambda r: (
            mpmath.exp((n * mpmath.log(r) if n else 0) - a * r * r / 2 + b * r - scale)
            if r
            else mpmath.mpf(n == 0)
        ),
        cuts,
    )
    return float(mpmath.log(told) + scale)


@pytest.mark.parametrize(
    "given",
    [
        (1, -40, 1, 5),
        (1, -40, 0, 5),
        (1, 3, 0, 2),
        (2, -3, 2, 100),
        (1, 20, 1, 3),
        (1, -1, 0, 0.1),
        (0.3, 0.2, 9, 4),
        (5, 30, 40, 2),
        (1, -200, 7, 9),
    ],
)
def test_against_thirty_digits(given):
    assert log_ray_integral(*given)[0] == pytest.approx(by_mpmath(*given), abs=1e-11)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 999, 10**6])
def test_the_whole_ray_without_slope_is_a_gamma_function(n):
    exact = np.log(0.5) + gammaln((n + 1) / 2) + (n + 1) / 2 * np.log(2 / 3.0)
    found = log_ray_integral(3.0, 0.0, n, np.inf)[0]

    assert found == pytest.approx(exact, abs=1e-11 * max(1, abs(exact)))


def test_it_grows_with_the_radius_and_takes_many_at_once():
    radius = np.geomspace(1e-3, 1e3, 200)
    told = log_ray_integral(1.0, -2.0, 50, radius)

    assert (np.diff(told) >= 0).all()
    assert told[70] == log_ray_integral(1.0, -2.0, 50, radius[70])[0]


def test_balls_and_spheres():
    assert log_ball_volume(3) == pytest.approx(np.log(4 / 3 * np.pi))
    assert log_sphere_area(3) == pytest.approx(np.log(4 * np.pi))
    assert log_ball_volume(1) == pytest.approx(np.log(2))
