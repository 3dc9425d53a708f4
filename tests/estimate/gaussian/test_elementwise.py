"""Every function against quadrature, its own series, and figures known beforehand."""

import math

import pytest
import torch
from torch import nn

from offkey.errors import BadValue, UnknownName
from offkey.estimate.gaussian import ERF, GELU, PROBIT, RELU, by_name, for_module
from offkey.estimate.gaussian.functions import (
    GELU_TANH,
    IDENTITY,
    SIGMOID,
    SILU,
    SQUARE,
    TANH,
    LeakyReLU,
)
from tests.estimate.gaussian.planted import expected, expected_product

ALL = [RELU, LeakyReLU(0.2), GELU, GELU_TANH, SILU, TANH, SIGMOID, ERF, PROBIT, SQUARE, IDENTITY]
RHO = [0.0, 1e-9, 0.1, -0.29, 0.31, -0.6, 0.74, 0.76, 0.92, -0.93, 0.97, -0.999, 1 - 1e-9, 1, -1]


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def pairs(seed=0):
    """A pair for each correlation: (mx, my, vx, vy, c)."""
    generator = torch.Generator().manual_seed(seed)
    n = len(RHO)
    mx, my = torch.randn(2, n, generator=generator, dtype=torch.float64) * 1.3
    sx, sy = torch.rand(2, n, generator=generator, dtype=torch.float64) * 2 + 0.05
    return mx, my, sx.square(), sy.square(), number(RHO) * sx * sy


@pytest.mark.parametrize("f", ALL, ids=str)
def test_moments_equal_quadrature(f):
    m, _, v, *_ = pairs(1)
    first, second = expected(f, m, v), expected(lambda x: f(x) ** 2, m, v)
    torch.testing.assert_close(f.mean(m, v), first, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(f.second_moment(m, v), second, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(f.variance(m, v), second - first**2, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("f", ALL, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_products_equal_quadrature_at_every_correlation(f, seed):
    given = pairs(seed)
    want = torch.stack([expected_product(f, *row) for row in zip(*given, strict=True)])
    torch.testing.assert_close(f.product(*given), want, atol=1e-11, rtol=1e-11)
    means = f.mean(given[0], given[2]) * f.mean(given[1], given[3])
    torch.testing.assert_close(f.covariance(*given), want - means, atol=2e-11, rtol=2e-11)


@pytest.mark.parametrize("f", ALL, ids=str)
def test_derivatives_and_coefficients_agree(f):
    m, _, v, *_ = pairs(2)
    result = f.coefficients(5, m, v)
    for k in range(6):
        scaled = v.sqrt() ** k * f.derivative(k, m, v) / math.sqrt(math.factorial(k))
        torch.testing.assert_close(result[k], scaled, atol=1e-11, rtol=1e-11)
    assert f.coefficients(0, m, v).shape == (1, len(m))
    # the mean's own slope and curvature in m are the next coefficients
    point = m.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f.mean(point, v).sum(), point)
    torch.testing.assert_close(slope, f.derivative(1, m, v), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("f", ALL, ids=str)
def test_squared_coefficients_add_up_to_the_variance(f):
    m, v = number([0.0, 0.4, -0.2]), number([0.04, 0.09, 0.02])
    whole = f.coefficients(60, m, v)[1:].square().sum(0)
    # a bend leaves a tail of about K^-3/2; analytic functions leave none
    bent = f.name in ("relu", "leaky_relu")
    torch.testing.assert_close(whole, f.variance(m, v), rtol=3e-3 if bent else 1e-12, atol=1e-16)


@pytest.mark.parametrize("f", ALL, ids=str)
def test_no_variance_is_the_function_itself(f):
    m, zero = number([-0.7, 0.0, 1.2]), torch.zeros(3).double()
    torch.testing.assert_close(f.mean(m, zero), f(m), atol=1e-15, rtol=1e-14)
    torch.testing.assert_close(
        f.product(m, m, zero, zero, zero), f(m) ** 2, atol=1e-15, rtol=1e-14
    )
    assert float(f.variance(m, zero).abs().amax()) < 1e-15
    assert bool(f.coefficients(8, m, zero).isfinite().all())
    if f.name not in ("relu", "leaky_relu"):
        assert bool(f.derivative(3, m, zero).isfinite().all())


@pytest.mark.parametrize("f", [RELU, GELU, SILU, TANH, ERF], ids=str)
def test_series_of_sixty_terms_up_to_nine_tenths(f):
    mx, my, vx, vy, _ = pairs(3)
    rho = torch.linspace(-0.9, 0.9, len(mx), dtype=torch.float64)
    bx, by = f.coefficients(60, mx, vx), f.coefficients(60, my, vy)
    powers = rho ** torch.arange(61)[:, None]
    series = (powers * bx * by)[1:].sum(0)
    exact = f.covariance(mx, my, vx, vy, rho * (vx * vy).sqrt())
    assert float((series - exact).abs().amax()) < 1e-4


def test_known_figures_of_relu_and_gelu():
    given = [number(x) for x in (0.3, -0.5, 1.44, 0.49, 0.6 * 1.2 * 0.7)]
    assert float(RELU.product(*given)) == pytest.approx(0.15207404319, rel=1e-10)
    assert float(RELU.covariance(*given)) == pytest.approx(0.0892456663, rel=1e-9)
    bx, by = (RELU.coefficients(12, given[i], given[i + 2]) for i in (0, 1))
    for order, want in ((1, 0.07167), (2, 0.08974), (4, 0.08935), (8, 0.0892502), (12, 0.0892459)):
        terms = [0.6**k * float(bx[k] * by[k]) for k in range(1, order + 1)]
        digits = len(str(want)) - 2
        assert round(sum(terms), digits) == want
    zero, one = number(0.0), number(1.0)
    assert float(RELU.mean(zero, one)) == pytest.approx(0.398942, rel=1e-6)
    assert float(RELU.variance(zero, one)) == pytest.approx(0.340845, rel=1e-6)
    assert float(GELU.mean(given[0], given[2])) == pytest.approx(0.5338958, rel=1e-7)
    assert float(GELU.product(*given)) == pytest.approx(0.0816746253, rel=1e-8)
    assert float(GELU.mean(zero, one)) == pytest.approx(1 / math.sqrt(4 * math.pi), rel=1e-12)
    squared = 1 / 3 + 1 / (2 * math.pi * math.sqrt(3))
    assert float(GELU.second_moment(zero, one)) == pytest.approx(squared, rel=1e-12)


def test_centred_pairs_have_elementary_values():
    rho = number(RHO)
    zero, vx, vy = torch.zeros_like(rho), torch.full_like(rho, 1.7), torch.full_like(rho, 0.6)
    c = rho * (vx * vy).sqrt()
    q = (1 - rho**2).clamp(min=0).sqrt()
    relu = (vx * vy).sqrt() * (q + rho * (math.pi / 2 + rho.asin())) / (2 * math.pi)
    torch.testing.assert_close(RELU.product(zero, zero, vx, vy, c), relu, rtol=1e-12, atol=1e-14)
    erf = 2 / math.pi * (2 * c / ((1 + 2 * vx) * (1 + 2 * vy)).sqrt()).asin()
    torch.testing.assert_close(ERF.product(zero, zero, vx, vy, c), erf, rtol=1e-12, atol=1e-14)


def test_small_covariances_keep_their_digits():
    m, v = number([0.3]), number([1.0])
    for f in (RELU, SILU, TANH, ERF):
        c = number([1e-10])
        slope = f.derivative(1, m, v).square() * c
        torch.testing.assert_close(f.covariance(m, m, v, v, c), slope, rtol=1e-8, atol=0)


def test_lower_tails_keep_their_relative_accuracy():
    for far in (-6.0, -12.0, -20.0):
        # Mills: the mean of a ReLU far below 0 is density / far^2 to first order
        m, v = number([far]), number([1.0])
        size = math.exp(-far * far / 2) / math.sqrt(2 * math.pi)
        assert float(RELU.derivative(1, m, v)) == pytest.approx(-size / far, rel=3 / far**2)
        assert float(PROBIT.mean(math.sqrt(2) * m, v)) == pytest.approx(
            -size / far, rel=3 / far**2
        )


def test_smooth_functions_far_beyond_their_poles():
    m, v = number([3.0, -20.0]), number([2500.0, 900.0])
    for f in (TANH, SILU):
        torch.testing.assert_close(f.mean(m, v), _fine(f, m, v), rtol=1e-10, atol=1e-10)


def _fine(f, m, v):
    z = torch.linspace(-9, 9, 400001, dtype=torch.float64)
    w = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    return f(m[:, None] + v.sqrt()[:, None] * z) @ w


def test_modules_and_names():
    assert for_module(nn.ReLU()) is RELU
    assert for_module(nn.GELU()) is GELU
    assert for_module(nn.GELU(approximate="tanh")) is GELU_TANH
    assert for_module(nn.LeakyReLU(0.3)) == LeakyReLU(0.3)
    assert for_module(nn.Softplus()) is None
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    for module in (
        nn.ReLU(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.Identity(),
        nn.LeakyReLU(0.3),
    ):
        torch.testing.assert_close(for_module(module)(x), module(x), atol=1e-12, rtol=1e-12)
    assert by_name("gelu") is GELU
    with pytest.raises(UnknownName, match="rellu"):
        by_name("rellu")
    with pytest.raises(BadValue, match="negative"):
        RELU.derivative(-1, x, x.abs())
