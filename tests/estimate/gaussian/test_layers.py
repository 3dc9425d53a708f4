"""Layers against sampling, against slow formulas, and where the answer is exact."""

import math

import pytest
import torch
from torch import nn

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData
from offkey.estimate.gaussian import (
    ERF,
    GELU,
    RELU,
    Normal,
    divergence,
    fit,
    layer_norm,
    linear,
    rms_norm,
    through,
)
from offkey.estimate.gaussian.elementwise import impossible_pairs
from offkey.estimate.gaussian.functions import IDENTITY, SILU, SQUARE, TANH
from offkey.estimate.gaussian.propagation import sampled, sampled_error
from offkey.estimate.gaussian.transitions import (
    bilinear,
    chained,
    elementwise,
    gated,
    product,
    residual,
    softmax,
)
from offkey.stats import Moments
from tests.estimate.gaussian.planted import assert_sampled, random_normal


def weights(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5


def slow_covariance(f, normal):
    """Pair by pair."""
    m, s = normal.mean, normal.full
    rows = [
        [f.covariance(m[i], m[j], s[i, i], s[j, j], s[i, j]) for j in range(len(m))]
        for i in range(len(m))
    ]
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("f", [RELU, GELU, SILU, TANH, ERF, SQUARE, IDENTITY], ids=str)
def test_all_pairs_at_once_equal_each_pair(f):
    normal = random_normal(7, seed=3)
    # correlations of every size, next to and at 1 included
    rows = torch.cat([torch.eye(7), torch.eye(7)[:2], torch.eye(7)[:1] + 1e-5]).double()
    wide = linear(normal, rows).state
    torch.testing.assert_close(
        through(f, wide).full, slow_covariance(f, wide), rtol=1e-11, atol=1e-11
    )


def test_many_strips_equal_the_product_of_every_pair():
    root = weights(300, 300)
    normal = Normal(weights(300, 1)[:, 0], root @ root.T)
    m, v = normal.mean, normal.variance
    apart = normal.full - torch.diag(v)
    pairs = RELU.covariance(m[:, None], m, v[:, None], v, apart)
    pairs.diagonal().copy_(RELU.variance(m, v))
    torch.testing.assert_close(through(RELU, normal).full, pairs, rtol=1e-11, atol=1e-14)


def test_series_is_the_sum_of_its_terms_and_gets_closer():
    normal = random_normal(6, seed=1)
    s, rate = normal.full, normal.variance.rsqrt()
    exact, gaps = through(RELU, normal).full, []
    for order in (1, 2, 4, 8, 60):
        result = through(RELU, normal, method="series", order=order).full
        b = RELU.coefficients(order, normal.mean, normal.variance)
        rho = s * rate[:, None] * rate
        by_hand = sum(rho**k * b[k][:, None] * b[k] for k in range(1, order + 1))
        by_hand.diagonal().copy_(RELU.variance(normal.mean, normal.variance))
        torch.testing.assert_close(result, by_hand, rtol=1e-12, atol=1e-14)
        gaps.append(float((result - exact).abs().amax()))
    assert gaps[-1] < 1e-4
    assert gaps[0] > 10 * gaps[2] > 10 * gaps[-1]


def test_gradients_are_those_of_finite_differences():
    root = weights(4, 4).requires_grad_()
    mean = weights(4, 1, seed=2)[:, 0].requires_grad_()

    def total(mean, root, method):
        made = through(RELU, Normal(mean, root @ root.T), method=method)
        return (made.full * torch.arange(16).view(4, 4)).sum() + made.mean.sum()

    for method in ("exact", "series"):
        assert torch.autograd.gradcheck(lambda m, r, how=method: total(m, r, how), (mean, root))
    plain = through(RELU, Normal(mean.detach(), (root @ root.T).detach())).full
    torch.testing.assert_close(through(RELU, Normal(mean, root @ root.T)).full, plain)


@pytest.mark.parametrize("diagonal", [False, True])
def test_linear_relu_and_bilinear_equal_sampling(diagonal):
    normal = random_normal(5, diagonal=diagonal)
    w, b = weights(6, 5), weights(6, 1, seed=1)[:, 0]
    assert_sampled(normal, lambda x: x @ w.T + b, linear(normal, w, b).state)
    assert_sampled(normal, RELU, elementwise(RELU, normal).state)
    left, right = weights(4, 5, seed=2), weights(4, 5, seed=3)
    assert_sampled(
        normal, lambda x: (x @ left.T) * (x @ right.T), bilinear(normal, left, right).state
    )


def test_bilinear_equals_the_traces_of_its_matrices():
    normal = random_normal(4, seed=5)
    left, right = weights(3, 4, seed=2), weights(3, 4, seed=3)
    made = bilinear(normal, left, right)
    m, s = normal.mean, normal.full
    q = [(torch.outer(a, b) + torch.outer(b, a)) / 2 for a, b in zip(left, right, strict=True)]
    for k, one in enumerate(q):
        assert float(made.state.mean[k]) == pytest.approx(float((one @ s).trace() + m @ one @ m))
        for j, two in enumerate(q):
            cov = 2 * (one @ s @ two @ s).trace() + 4 * m @ one @ s @ two @ m
            assert float(made.state.full[k, j]) == pytest.approx(float(cov))
        torch.testing.assert_close(made.carry(s)[:, k], 2 * s @ one @ m)


def test_product_of_two_gaussians_with_any_covariance_between_them():
    both = random_normal(6, seed=8)
    left, right = (Normal(both.mean[i], both.full[i, i]) for i in (slice(0, 3), slice(3, 6)))
    made = product(left, right, both.full[:3, 3:])
    assert_sampled(both, lambda x: x[:, :3] * x[:, 3:], made)


@pytest.mark.parametrize("f", [SILU, GELU, TANH, RELU], ids=str)
@pytest.mark.parametrize("diagonal", [False, True])
def test_gated_layers_equal_sampling(f, diagonal):
    normal = random_normal(5, seed=2, diagonal=diagonal)
    gate, up = weights(4, 5, seed=1), weights(4, 5, seed=4)
    bias = torch.ones(4).double()
    made = gated(f, normal, gate, up, biases=(bias, None))
    layer = lambda x: f(x @ gate.T + bias) * (x @ up.T)  # noqa: E731
    if f is RELU:
        x = normal.sample(200_000, torch.Generator().manual_seed(0))
        y = layer(x)
        error = y.std(0) / len(y) ** 0.5
        assert bool(((y.mean(0) - made.state.mean).abs() < 5 * error).all())
        result = torch.diag(y.var(0)) if diagonal else y.T.cov()
        assert float((made.state.full - result).norm() / result.norm()) < 0.3
    else:
        assert_sampled(normal, layer, made.state)
    x = normal.sample(200_000, torch.Generator().manual_seed(3))
    cross = (x - x.mean(0)).T @ layer(x) / len(x)
    assert float((made.carry(normal.full) - cross).abs().amax()) < 0.03


def test_gate_that_is_linear_makes_a_product():
    normal = random_normal(5, seed=2)
    gate, up = weights(4, 5, seed=1), weights(4, 5, seed=4)
    made, plain = gated(IDENTITY, normal, gate, up), bilinear(normal, gate, up)
    torch.testing.assert_close(made.state.mean, plain.state.mean)
    torch.testing.assert_close(made.state.full, plain.state.full)
    torch.testing.assert_close(made.carry(normal.full), plain.carry(normal.full))


def test_residual_has_its_cross_term():
    normal = random_normal(5, seed=6)
    v, w = weights(8, 5, seed=1), weights(5, 8, seed=2)
    first = linear(normal, v)
    middle = elementwise(RELU, first.state)
    made = residual(normal, chained(first, middle, linear(middle.state, w)))
    layer = lambda x: x + RELU(x @ v.T) @ w.T  # noqa: E731
    assert_sampled(normal, layer, made.state)
    without = normal.full + w @ middle.state.full @ w.T
    with pytest.raises(AssertionError):
        assert_sampled(normal, layer, Normal(made.state.mean, without))
    # and a second block sees the covariance of the first
    x = normal.sample(400_000, torch.Generator().manual_seed(1))
    cross = (x - x.mean(0)).T @ layer(x) / len(x)
    assert float((made.carry(normal.full) - cross).abs().amax()) < 0.02
    slim = residual(
        normal.diagonal(), chained(linear(normal.diagonal(), v), *_rest(normal.diagonal(), v, w))
    )
    assert_sampled(
        normal.diagonal(), layer, Normal(slim.state.mean, slim.state.variance), errors=60
    )
    with pytest.raises(Mismatch, match="width 8"):
        residual(normal, first)


def _rest(normal, v, w):
    middle = elementwise(RELU, linear(normal, v).state)
    return middle, linear(middle.state, w)


@pytest.mark.parametrize("width", [3, 64])
def test_norms_of_an_isotropic_gaussian_are_exact(width):
    normal = Normal(torch.zeros(width), 4.0 * torch.eye(width))
    eye = torch.eye(width).double()
    made = rms_norm(normal).state
    torch.testing.assert_close(made.full, eye)
    torch.testing.assert_close(made.mean, torch.zeros(width).double())
    centring = width / (width - 1) * (eye - 1 / width)
    torch.testing.assert_close(layer_norm(normal).state.full, centring)
    slim = layer_norm(normal.diagonal()).state
    torch.testing.assert_close(slim.covariance, torch.ones(width).double())


def test_norms_are_close_where_they_are_not_exact():
    width = 64
    normal = random_normal(width, mean=0.7)
    weight, bias = 1 + weights(width, 1)[:, 0], weights(width, 1, seed=4)[:, 0]
    x = normal.sample(60_000, torch.Generator().manual_seed(0))
    for made, module in (
        (rms_norm(normal, weight, eps=1e-5), nn.RMSNorm(width, eps=1e-5)),
        (layer_norm(normal, weight, bias, eps=1e-5), nn.LayerNorm(width)),
    ):
        module = module.double()
        with torch.no_grad():
            module.weight.copy_(weight)
            if isinstance(module, nn.LayerNorm):
                module.bias.copy_(bias)
            y = module(x)
        plain = module(normal.mean[None])[0].detach()
        gap, plain_gap = (made.state.mean - y.mean(0)).norm(), (plain - y.mean(0)).norm()
        assert float(gap / y.mean(0).norm()) < 0.01
        assert float(gap) < 0.1 * float(plain_gap)
        cov = y.T.cov()
        assert float((made.state.full - cov).norm() / cov.norm()) < 0.05
        cross = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
        assert float((made.carry(normal.full) - cross).norm() / cross.norm()) < 0.05


def test_norm_of_nothing_is_refused():
    with pytest.raises(BadValue, match="without variance"):
        rms_norm(Normal(torch.zeros(3), torch.zeros(3)))


def test_softmax_beats_the_softmax_of_the_mean():
    gaps, plain = [], []
    for seed in range(6):
        normal = random_normal(4, seed=seed)
        normal = Normal(normal.mean, 2 * normal.full)
        made = softmax(normal)
        p = normal.sample(200_000, torch.Generator().manual_seed(seed)).softmax(1)
        gaps.append(float((made.state.mean - p.mean(0)).abs().amax()))
        plain.append(float((normal.mean.softmax(0) - p.mean(0)).abs().amax()))
    assert sum(gaps) < 0.6 * sum(plain)
    assert max(gaps) < max(plain)
    near = Normal(normal.mean, 0.02 * normal.full)
    p = near.sample(200_000, torch.Generator().manual_seed(0)).softmax(1)
    assert float((softmax(near).state.full - p.T.cov()).norm() / p.T.cov().norm()) < 0.05
    slim = softmax(near.diagonal()).state
    wide = softmax(Normal(near.mean, near.diagonal().full)).state
    torch.testing.assert_close(slim.covariance, wide.variance)
    still = softmax(Normal(normal.mean, torch.zeros(4))).state
    torch.testing.assert_close(still.mean, normal.mean.softmax(0))


def test_sampled_layer_agrees_with_the_analytic_one_as_predicted():
    normal = random_normal(16, seed=4)
    layer = nn.Sequential(nn.Linear(16, 12), nn.ReLU()).double()
    first = linear(normal, layer[0].weight.detach(), layer[0].bias.detach())
    exact = chained(first, elementwise(RELU, first.state))
    made = sampled(layer, normal, 20_000, torch.Generator().manual_seed(0))
    gap = float((made.state.full - exact.state.full).norm() / exact.state.full.norm())
    assert 0.2 < gap / sampled_error(exact.state, 20_000) < 3
    torch.testing.assert_close(
        made.carry(normal.full), exact.carry(normal.full), atol=0.02, rtol=0
    )
    single = sampled(layer.float(), normal.diagonal(), 100, torch.Generator().manual_seed(0))
    assert single.state.is_diagonal
    assert single.state.mean.dtype == torch.float64


def test_sampling_error_is_the_one_predicted():
    normal = random_normal(64, seed=9)
    generator = torch.Generator().manual_seed(0)
    seen = [
        float((fit(normal.sample(4096, generator)).full - normal.full).norm() / normal.full.norm())
        for _ in range(5)
    ]
    assert sum(seen) / 5 == pytest.approx(sampled_error(normal, 4096), rel=0.15)


def test_what_cannot_be_sampled_or_fitted_is_refused():
    full = torch.full((3, 3), 0.9) + 0.1 * torch.eye(3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 2] = mask[2, 0] = False
    with pytest.raises(BadInput, match="semi-definite"):
        sampled(nn.ReLU(), Normal(torch.zeros(3), full).masked(mask), 10, torch.Generator())
    with pytest.raises(NotEnoughData, match="1 rows"):
        fit(torch.zeros(1, 2))
    with pytest.raises(BadInput, match="10 rows became"):
        sampled(lambda x: x.sum(), Normal.standard(3), 10, torch.Generator())
    with pytest.raises(BadValue, match="method"):
        through(RELU, Normal.standard(3), method="quick")
    with pytest.raises(BadValue, match="order is 0"):
        through(RELU, Normal.standard(3), method="series", order=0)
    with pytest.raises(Mismatch, match="width 4"):
        linear(Normal.standard(3), torch.zeros(2, 4))


def test_covariances_that_cannot_be_are_counted_and_taken_as_one():
    full = torch.tensor([[1.0, 1.5, 0.2], [1.5, 1.0, 0.1], [0.2, 0.1, 1.0]])
    broken = Normal(torch.zeros(3), full)
    assert impossible_pairs(broken) == 1
    assert impossible_pairs(random_normal(5)) == impossible_pairs(broken.diagonal()) == 0
    made = through(RELU, broken)
    torch.testing.assert_close(made.full[0, 1], made.full[0, 0])


def test_fit_takes_rows_or_moments():
    rows = weights(50, 4)
    moments = Moments()
    moments.update(rows, [str(i) for i in range(50)])
    torch.testing.assert_close(fit(moments).full, rows.T.cov())
    torch.testing.assert_close(fit(rows).mean, rows.mean(0))
    torch.testing.assert_close(fit(rows, diagonal=True).covariance, rows.var(0))


def test_divergence():
    first, second = random_normal(5, seed=1), random_normal(5, seed=2)
    torch_own = torch.distributions.kl_divergence(
        *(torch.distributions.MultivariateNormal(x.mean, x.full) for x in (first, second))
    )
    assert float(divergence(first, second)) == pytest.approx(float(torch_own), rel=1e-10)
    assert float(divergence(first, first)) == pytest.approx(0, abs=1e-12)
    narrow = Normal(torch.zeros(1), torch.full((1, 1), 0.25))
    by_hand = 0.5 * (4 + 0 - 1 + math.log(0.25))
    assert float(divergence(Normal.standard(1), narrow)) == pytest.approx(by_hand)
    with pytest.raises(NotEnoughData, match="singular"):
        divergence(first, Normal(torch.zeros(5), torch.zeros(5, 5)))
    with pytest.raises(Mismatch):
        divergence(first, Normal.standard(4))
