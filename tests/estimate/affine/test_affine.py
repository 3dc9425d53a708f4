"""Affine forms: published intervals, soundness on networks, and what intervals cannot do."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from offkey.errors import BadInput, BadValue, Mismatch, UnmappedModel
from offkey.estimate import Bound
from offkey.estimate.affine import AffineForm, interval_bounds, propagate, tail_bound
from offkey.estimate.bilinear import Bilinear
from offkey.training import TrainingSettings, train_module

SAMPLES = 100_000


def ends(form):
    low, high = form.range()
    return [float(low[0]), float(high[0])]


def near(values):
    return pytest.approx(values, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("method", "expected"), [("simple", [-3.5, 4]), ("tight", [-1.25, 4])])
def test_square_of_minus_one_to_two(method, expected):
    x = AffineForm.box([-1], [2])
    product = x.times(x, method)
    assert ends(product) == near(expected)
    assert (product.low[0], product.high[0]) == near((max(-2, expected[0]), 4))


@pytest.mark.parametrize(("method", "expected"), [("simple", [24, 26]), ("tight", [24, 25])])
def test_product_with_its_complement(method, expected):
    x = AffineForm.box([4], [6])
    assert ends(x.times(10 - x, method)) == near(expected)


def test_relu_by_the_tightest_strip():
    form = AffineForm.box([-1], [2]).relu()
    assert form.centre[0] == near(2 / 3)
    assert sorted(form.generators[0]) == near([1 / 3, 1])
    assert ends(form) == near([-2 / 3, 2])
    assert form.bound().low == 0
    assert form.bound().high == near(2)


def test_relu_by_range():
    assert ends(AffineForm.box([-1], [2]).relu("min-range")) == near([0, 2])


def test_relu_that_does_not_cross_is_exact():
    form = AffineForm.box([1, -3], [2, -1]).relu()
    np.testing.assert_allclose(form.generators[:, :2], [[0.5, 0], [0, 0]], rtol=1e-12)
    assert [form.low[1], form.high[1]] == [0, 0]


def test_linear_operations_forget_nothing():
    x = AffineForm.box([-1, 3], [2, 5])
    assert (x - x).bounds() == [Bound(0.0, 0.0)] * 2
    y = x.linear([[1, 2], [3, -1]], [1, -1])
    back = y.linear(np.linalg.inv([[1, 2], [3, -1]]), -np.linalg.inv([[1, 2], [3, -1]]) @ [1, -1])
    np.testing.assert_allclose(back.low, [-1, 3], atol=1e-10)
    np.testing.assert_allclose(back.high, [2, 5], atol=1e-10)
    gone = y - y
    assert float(np.abs(gone.high - gone.low).max()) < 1e-10


def test_sums_with_numbers_and_rows():
    x = AffineForm.box([-1, 3], [2, 5])
    shifted = 1 + x - 0.5
    np.testing.assert_allclose([shifted.low, shifted.high], [[-0.5, 3.5], [2.5, 5.5]])
    assert len(x[[1]]) == 1
    joined = x[[0]] + x[[1]]
    assert ends(joined) == near([2, 7])


def naive_tight(x0, x, y0, y):
    """The tight rule by its definition, pair by pair."""
    m = len(x)
    centre = x0 * y0 + 0.5 * sum(x[i] * y[i] for i in range(m))
    radius = 0.5 * sum(abs(x[i] * y[i]) for i in range(m)) + sum(
        abs(x[i] * y[j] + x[j] * y[i]) for i in range(m) for j in range(i + 1, m)
    )
    return centre, radius


def test_tight_product_equals_its_definition():
    rng = np.random.default_rng(0)
    box = AffineForm.box(-np.ones(5), np.ones(5))
    wx, wy, bx, by = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), *rng.normal(size=(2, 3))
    x, y = box.linear(wx, bx), box.linear(wy, by)
    product = x.times(y)
    for row in range(3):
        centre, radius = naive_tight(bx[row], wx[row], by[row], wy[row])
        assert product.centre[row] == near(centre)
        assert np.abs(product.generators[row, 5:]).sum() == near(radius)
        assert product.radius[row] <= x.times(y, "simple").radius[row] + 1e-9


def relu_net(depth, width=24, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(width, 3)).double()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
    return net


def bilinear_net(seed=0):
    return nn.Sequential(
        Bilinear(6, 10, 5, bias=True, seed=seed), nn.Identity(), Bilinear(5, 8, 3, bias=False)
    ).double()


def trained_net():
    """A regression of a kink, so that its weights are not random."""
    net = relu_net(2, 16, seed=4)
    x = torch.rand(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    y = torch.stack([x.abs().sum(1), x[:, 0] * x[:, 1], x.amax(1)], 1)
    settings = TrainingSettings(steps=150, batch=100, rate=0.01)
    train_module(net, x, y, settings, loss=nn.functional.mse_loss)
    return net


NETS = {
    "depth 1": lambda: relu_net(1),
    "depth 2": lambda: relu_net(2, seed=1),
    "depth 4": lambda: relu_net(4, seed=2),
    "bilinear": bilinear_net,
    "trained": trained_net,
}


@pytest.mark.parametrize("radius", [0.05, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_sound_and_never_wider_than_intervals(name, radius):
    net, rng = NETS[name](), np.random.default_rng(1)
    centre = rng.normal(size=6)
    low, high = centre - radius, centre + radius
    inside = rng.uniform(low, high, size=(SAMPLES - 64, 6))
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(6, -1).T
    with torch.no_grad():
        seen = net(torch.tensor(np.vstack([inside, corners]))).numpy()
    plain = interval_bounds(net, low, high)
    for product in ("simple", "tight"):
        for relu in ("chebyshev", "min-range"):
            form = propagate(net, AffineForm.box(low, high), product=product, relu=relu)
            assert int(((seen < form.low) | (seen > form.high)).sum()) == 0
            a, b = form.range()
            assert int(((seen < a) | (seen > b)).sum()) == 0
            for mine, theirs in zip(form.bounds(), plain, strict=True):
                assert mine.low >= theirs.low
                assert mine.high <= theirs.high


def test_tighter_than_intervals_where_values_depend_on_one_another():
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight[:] = 1.0
        net[1].weight[:] = torch.tensor([[1.0, -1.0]])
    assert float(propagate(net, AffineForm.box([-1], [1])).high[0]) < 1e-10
    assert interval_bounds(net, [-1], [1])[0].high >= 2


def test_a_point_stays_a_point():
    net, x = relu_net(3), np.full(6, 0.3)
    form = propagate(net, AffineForm.box(x, x))
    with torch.no_grad():
        truth = net(torch.tensor(x)).numpy()
    np.testing.assert_allclose(form.low, truth, atol=1e-9)
    np.testing.assert_allclose(form.high, truth, atol=1e-9)


def test_uniform_unknowns_give_covariances():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(3, 4))
    form = AffineForm.box(-np.ones(4), np.ones(4)).linear(weight, np.arange(3.0))
    draws = rng.uniform(-1, 1, size=(SAMPLES, 4)) @ weight.T + np.arange(3.0)
    normal = form.normal()
    np.testing.assert_allclose(normal.full.numpy(), weight @ weight.T / 3, rtol=1e-12)
    errors = draws.std(0) / math.sqrt(SAMPLES)
    assert bool((np.abs(draws.mean(0) - normal.mean.numpy()) < 5 * errors).all())
    np.testing.assert_allclose(np.cov(draws.T), normal.full.numpy(), atol=0.05)


@pytest.mark.parametrize("name", ["depth 1", "depth 2", "trained"])
def test_tail_bounds_hold_the_sampled_probability(name):
    net, rng = NETS[name](), np.random.default_rng(3)
    draws = rng.uniform(-0.3, 0.3, size=(SAMPLES, 6))
    with torch.no_grad():
        seen = net(torch.tensor(draws)).numpy()
    form = propagate(net, AffineForm.box(np.full(6, -0.3), np.full(6, 0.3)))
    telling = 0
    for row in range(3):
        edges = np.linspace(form.low[row], form.high[row], 40)
        quantiles = np.quantile(seen[:, row], [0.001, 0.01, 0.5, 0.99, 0.999])
        for threshold in map(float, [*quantiles, *edges]):
            bound = tail_bound(form, threshold, row)
            truth = float((seen[:, row] > threshold).mean())
            assert bound.low - 0.005 <= truth <= bound.high + 0.005
            telling += 0 < bound.high < 0.5 or 0.5 < bound.low < 1
    assert telling > 3
    assert tail_bound(form, float(form.high[0])) == Bound(0.0, 0.0)
    assert tail_bound(form, float(form.low[0]) - 1) == Bound(1.0, 1.0)


def test_tail_bound_of_a_sum_is_the_sub_gaussian_one():
    form = AffineForm.box(-np.ones(12), np.ones(12)).linear(np.ones((1, 12)))
    assert tail_bound(form, 6.0).high == near(math.exp(-36 / 8))


def test_bad_input_is_named():
    with pytest.raises(UnmappedModel, match="layer 1: Tanh has no rule"):
        propagate(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), AffineForm.box([0, 0], [1, 1]))
    with pytest.raises(UnmappedModel, match="layer 1.0: Sigmoid has no rule"):
        interval_bounds(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sigmoid())), [0], [1])
    with pytest.raises(Mismatch, match=r"weight of shape \(2, 3\) for a form of 2 rows"):
        propagate(nn.Linear(3, 2), AffineForm.box([0, 0], [1, 1]))
    with pytest.raises(BadInput, match="dimension 1: low 3 is above high 1"):
        AffineForm.box([0, 3], [1, 1])
    with pytest.raises(BadInput, match="not finite"):
        AffineForm.box([math.nan], [1])
    with pytest.raises(Mismatch, match="different boxes"):
        AffineForm.box([0], [1]) + AffineForm.box([0], [1])
    with pytest.raises(Mismatch, match="forms of 1 and 2 rows"):
        AffineForm.box([0], [1]) + AffineForm.box([0, 0], [1, 1])
    with pytest.raises(BadValue, match="not known"):
        AffineForm.box([0], [1]).relu("exact")
    with pytest.raises(BadValue, match="row 4 of 1"):
        tail_bound(AffineForm.box([0], [1]), 0.5, 4)
