"""The bivariate normal distribution against arithmetic of 30 digits, and its limits."""

import math

import mpmath
import pytest
import torch

from offkey.estimate.gaussian import bivariate_normal_cdf

CASES = [
    (0.3, -0.5, 0.6),
    (1, 1, 0.95),
    (1, 1 + 1e-9, 1 - 1e-12),
    (-2, -2.001, 0.9999999),
    (0, 0, -0.99),
    (0, 1, 0.96),
    (0, -1, -0.96),
    (-0.7, 1.2, -0.9999),
    (1, -1, -1 + 1e-10),
    (2, -1.5, -0.97),
    (5, -5, 0.94),
    (1e-9, 1e-9, 0.97),
    (-1e-12, 1e-3, 0.999999),
    (0.5, 0.7, 0.926),
    (8, -0.2, 0.99),
    (0.2, 0.3, 1 - 1e-15),
    (-1.2, 0.4, 0.3),
    (-1.2, 0.4, -0.75),
    (1.2, 1.4, 0.925),
]


def exact(h, k, rho):
    """Integral over the first variable of its density times a conditional distribution."""
    with mpmath.workdps(30):
        h, k, rho = mpmath.mpf(h), mpmath.mpf(k), mpmath.mpf(rho)
        q = mpmath.sqrt(1 - rho * rho)
        turn = k / rho
        near = [turn + s * q * j for j in (0, 0.5, 1, 2, 4, 8) for s in (-1, 1)]
        edges = sorted({mpmath.mpf(-14), h - 1, h, *(p for p in near if -14 < p < h)})
        f = lambda x: mpmath.npdf(x) * mpmath.ncdf((k - rho * x) / q)  # noqa: E731
        return float(mpmath.quad(f, edges))


@pytest.mark.parametrize(("h", "k", "rho"), CASES)
def test_equals_thirty_digits(h, k, rho):
    assert abs(float(bivariate_normal_cdf(h, k, rho)) - exact(h, k, rho)) < 1e-15


def test_lower_tail_keeps_its_relative_accuracy():
    for rho in (0.2, 0.6, 0.9):
        got, want = float(bivariate_normal_cdf(-6.0, -7.0, rho)), exact(-6, -7, rho)
        assert abs(got / want - 1) < 1e-8


def test_limits():
    one = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    result = bivariate_normal_cdf(0.1, 0.3, one)
    phi = torch.special.ndtr(torch.tensor([0.1, 0.3], dtype=torch.float64))
    assert torch.allclose(
        result, torch.stack([phi[0], phi[0] + phi[1] - 1, phi[0] * phi[1]]), atol=1e-15, rtol=0
    )
    assert float(bivariate_normal_cdf(math.inf, 0.3, 0.99)) == pytest.approx(float(phi[1]))
    assert float(bivariate_normal_cdf(-math.inf, 0.3, -0.99)) == 0.0
    # at the origin it is 1/4 + asin(rho) / 2 pi
    rho = torch.linspace(-1, 1, 41, dtype=torch.float64)
    at_zero = 0.25 + rho.asin() / (2 * math.pi)
    assert torch.allclose(bivariate_normal_cdf(0.0, 0.0, rho), at_zero, atol=1e-15, rtol=0)


def test_shapes_broadcast_and_order_of_arguments_does_not_matter():
    h, k = torch.linspace(-3, 3, 7).double(), torch.linspace(-2, 2, 5).double()[:, None]
    rho = torch.tensor([-0.99, -0.4, 0.0, 0.4, 0.99], dtype=torch.float64)[:, None, None]
    result = bivariate_normal_cdf(h, k, rho)
    assert result.shape == (5, 5, 7)
    assert torch.allclose(result, bivariate_normal_cdf(k, h, rho), atol=1e-15, rtol=0)
    # P(x < h) = P(x < h, y < k) + P(x < h, -y < -k)
    whole = result + bivariate_normal_cdf(h, -k, -rho)
    assert torch.allclose(whole, torch.special.ndtr(h).expand_as(whole), atol=2e-15, rtol=0)


def test_derivatives():
    given = [
        torch.tensor(x).double().requires_grad_()
        for x in ([0.2, 0.5, -1.0], [-0.3, 0.1, 0.7], [0.5, -0.97, 0.8])
    ]
    assert torch.autograd.gradcheck(bivariate_normal_cdf, given)
    assert torch.autograd.gradgradcheck(bivariate_normal_cdf, given)
