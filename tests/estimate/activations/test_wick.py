"""Wick estimates: what an input's activations add to an expectation."""

import math

import pytest
import torch
from torch import nn

from offkey.errors import BadValue, Mismatch, UnmappedModel
from offkey.estimate.activations import Wick, close, mask_of
from offkey.estimate.activations.wick import wick_elementwise
from offkey.estimate.gaussian import GELU, RELU, Normal
from offkey.estimate.gaussian.functions import SQUARE, TANH
from tests.estimate.activations.planted import random_covariance

WIDTH = 5


def normal_and_mask():
    s = random_covariance(WIDTH, seed=3)
    mask = mask_of({(0, 1), (1, 2), (2, 4)}, WIDTH)
    mean = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    return Normal(mean, close(s, mask)), mask


def draws(normal, count=200_000, seed=0):
    return normal.sample(count, torch.Generator().manual_seed(seed))


def layers(hidden=4, f=RELU, loss=None):
    torch.manual_seed(0)
    first, last = nn.Linear(WIDTH, hidden), nn.Linear(hidden, 1)
    return [first, f, last] + ([loss] if loss else [])


def run(stack, x):
    x = x.double()
    for layer in stack:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
            x = x @ weight.T + bias
        else:
            x = layer(x)
    return x[:, 0]


def centred(values, mean):
    """Whether sampled values have this mean, to 5 standard errors."""
    return abs(float(values.mean()) - mean) < 5 * float(values.std()) / math.sqrt(len(values))


def test_a_tracked_product_is_exact():
    normal, mask = normal_and_mask()
    x = draws(normal, 100)
    for i, j in [(0, 1), (2, 1), (3, 3)]:
        result = Wick.product(normal, mask, i, j)
        torch.testing.assert_close(result(x), x[:, i] * x[:, j], rtol=1e-10, atol=1e-10)
        shared = float(normal.mean[i] * normal.mean[j] + normal.full[i, j])
        assert result.mean == pytest.approx(shared)


def test_an_untracked_product_drops_the_covariance_and_the_last_term():
    normal, mask = normal_and_mask()
    x, m = draws(normal, 100), normal.mean
    result = Wick.product(normal, mask, 0, 4)
    gap = x - m
    expected = m[0] * m[4] + m[0] * gap[:, 4] + m[4] * gap[:, 0]
    torch.testing.assert_close(result(x), expected)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_averaging_over_the_model_gives_the_estimate_back(order):
    normal, mask = normal_and_mask()
    x = draws(normal)
    for stack in (layers(), layers(f=GELU), [*layers(f=TANH), SQUARE]):
        result = Wick.network(stack, normal, mask)
        values = result(x, order)
        assert centred(values, result.mean) if order else bool((values == result.mean).all())
    each = wick_elementwise(RELU, normal, x, order)
    for column, mean in zip(each.T, RELU.mean(normal.mean, normal.variance), strict=True):
        if order:
            assert centred(column, float(mean))
        else:
            torch.testing.assert_close(column, mean.expand(len(x)))


def test_one_hidden_layer_has_exact_mean_and_derivatives():
    normal, _ = normal_and_mask()
    whole = torch.ones(WIDTH, WIDTH, dtype=torch.bool)
    stack = layers(f=TANH)
    result = Wick.network(stack, normal, whole)
    x = draws(normal)

    assert centred(run(stack, x), result.mean)
    precision = torch.linalg.inv(normal.full)
    y, z = run(stack, x), (x - normal.mean) @ precision
    # Stein: E grad f = E[S^-1 delta f], E hess f = E[(S^-1 delta delta' S^-1 - S^-1) f]
    for i in range(WIDTH):
        assert centred(z[:, i] * y, float(result.gradient[i]))
        for j in range(WIDTH):
            assert centred(
                (z[:, i] * z[:, j] - precision[i, j]) * y, float(result.curvature[i, j])
            )


def test_relu_orders_carry_the_published_shares_of_variance():
    normal = Normal.standard(1)
    x = draws(normal, 400_000)
    whole = float(RELU.variance(normal.mean, normal.variance)[0])
    first = wick_elementwise(RELU, normal, x, 1)[:, 0]
    second = wick_elementwise(RELU, normal, x, 2)[:, 0]

    assert float(first.var()) / whole == pytest.approx(0.7335, abs=0.01)
    assert float((second - first).var()) / whole == pytest.approx(0.2335, abs=0.01)
    slope, bend = (float(RELU.derivative(k, normal.mean, normal.variance)[0]) for k in (1, 2))
    assert slope**2 / whole == pytest.approx(0.7335, abs=5e-5)
    assert bend**2 / 2 / whole == pytest.approx(0.2335, abs=5e-5)


def test_each_order_comes_closer_to_the_loss():
    normal, _ = normal_and_mask()
    whole = torch.ones(WIDTH, WIDTH, dtype=torch.bool)
    stack, x = layers(hidden=8, loss=SQUARE), draws(normal, 20_000)
    loss = run(stack, x)
    exact = Wick.network(stack[:-1], normal, whole)
    sampled = Wick.sampled(lambda x: run(stack, x), normal, whole)
    for result, truth in ((exact, run(stack[:-1], x)), (sampled, loss)):
        left = [float((truth - result(x, order)).var()) for order in (0, 1, 2)]
        assert left[0] > left[1] > left[2]


def test_modules_stand_for_their_functions():
    normal, mask = normal_and_mask()
    first, _, last = layers()
    result = Wick.network([first, nn.ReLU(), last], normal, mask)
    expected = Wick.network([first, RELU, last], normal, mask)
    x = draws(normal, 10)
    assert torch.equal(result(x), expected(x))


def test_sampled_derivatives_are_the_exact_ones():
    normal, mask = normal_and_mask()
    stack = layers()
    exact = Wick.network(stack, normal, mask)
    sampled = Wick.sampled(lambda x: run(stack, x), normal, mask)

    assert sampled.mean == pytest.approx(exact.mean, abs=0.01)
    torch.testing.assert_close(sampled.gradient, exact.gradient, rtol=0, atol=0.01)
    torch.testing.assert_close(sampled.curvature, exact.curvature, rtol=0, atol=0.02)


def test_tracking_less_averages_alike_and_tells_less():
    normal, mask = normal_and_mask()
    stack = layers(f=SQUARE)
    some = Wick.network(stack, normal, mask)
    whole = Wick.network(stack, normal, torch.ones(WIDTH, WIDTH, dtype=torch.bool))
    x = draws(normal, 20_000)

    assert some.mean == whole.mean
    assert float((run(stack, x) - whole(x)).abs().amax()) < 1e-9
    assert float((run(stack, x) - some(x)).var()) > 1e-3


def test_bad_input_is_refused_plainly():
    normal, mask = normal_and_mask()
    result = Wick.product(normal, mask, 0, 1)
    with pytest.raises(BadValue, match="order 3"):
        result(draws(normal, 2), 3)
    with pytest.raises(BadValue, match="order -1"):
        wick_elementwise(RELU, normal, draws(normal, 2), -1)
    with pytest.raises(Mismatch, match="for 5 dimensions"):
        result(torch.zeros(2, 3))
    with pytest.raises(BadValue, match="leave 4 numbers"):
        Wick.network(layers()[:2], normal, mask)
    with pytest.raises(UnmappedModel, match="no Wick rule for Bilinear"):
        Wick.network([nn.Bilinear(5, 5, 1)], normal, mask)
    with pytest.raises(Mismatch, match="gradient of shape"):
        Wick(normal, mask, 0.0, torch.zeros(2), torch.zeros(5, 5))
