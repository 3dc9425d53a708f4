"""Volumes with analytic answers, to the printed digits where rays have no spread."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, ncx2

from offkey.errors import RadiusNotFound
from offkey.volume import (
    CrossingSearch,
    Dense,
    Diagonal,
    FunctionCost,
    GaussianMeasure,
    KLCost,
    Kronecker,
    LebesgueMeasure,
    Power,
    Tilted,
    Uniform,
    estimate_volume,
)
from tests.volume import cases
from tests.volume.cases import quadratic, tensor

pytestmark = pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")


def within(result, exact, floor=1e-9):
    """The estimate is off by less than four of its own standard errors."""
    low, high = result.interval
    assert high is not None, "only a bound"
    assert abs(result.log_volume - exact) <= 2 * (high - low) + floor


@pytest.mark.parametrize(("dimensions", "exact"), cases.ELLIPSOIDS)
@pytest.mark.parametrize("rule", [Power(0.5, 0.0), None])
def test_ellipsoids_need_one_ray(dimensions, exact, rule):
    h = np.logspace(-2, 2, dimensions)
    proposal = Diagonal(tensor(h), rule)
    found = estimate_volume(quadratic(h), 0.01, LebesgueMeasure(), proposal=proposal, n=3)

    assert found.log_volume == pytest.approx(exact, abs=1e-6)
    assert found.std < 1e-9
    assert list(found.rays["status"]) == ["ok"] * 3


def test_a_rotated_ellipsoid_needs_one_ray_of_the_right_basis():
    h = np.logspace(-2, 2, 10)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
    matrix = tensor(q @ np.diag(h) @ q.T)
    cost = FunctionCost(
        lambda x: torch.einsum("ni,ij,nj->n", x, matrix, x) / 2,
        torch.zeros(10).double(),
        batched=True,
    )
    found = estimate_volume(cost, 0.01, LebesgueMeasure(), proposal=Dense(matrix), n=3)

    assert found.log_volume == pytest.approx(cases.ELLIPSOIDS[0][1], abs=1e-6)
    assert found.std < 1e-9


@pytest.mark.parametrize(("given", "exact"), cases.BALLS)
def test_gaussian_balls(given, exact):
    dimensions, distance, radius = given
    assert cases.ball_probability(*given) == pytest.approx(exact, abs=1e-6)
    cost = cases.ball(dimensions, distance)
    flat = torch.full((dimensions,), 2.0, dtype=torch.float64)
    for proposal, n in ((Uniform(), 2000), (Tilted(Diagonal(flat)), 1000)):
        found = estimate_volume(cost, radius**2, GaussianMeasure(1.0), proposal=proposal, n=n)
        within(found, exact)


@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_half_spaces_lose_half_of_the_rays(sigma):
    g, theta, n = (3.0, -1.0, 2.0), (0.3, 0.2, -0.5), 2000
    cost = cases.half_space(g, theta)
    found = estimate_volume(cost, 1.0, GaussianMeasure(sigma), n=n)

    within(found, cases.half_space_probability(g, theta, 1.0, sigma))
    assert abs(found.statuses["infinite"] - n / 2) < 3 * np.sqrt(n) / 2
    assert found.statuses["infinite"] + found.statuses["ok"] == n


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_the_whole_space_is_certain(dimensions):
    anchor = torch.ones(dimensions, dtype=torch.float64)
    cost = FunctionCost(lambda x: 0 * x.sum(-1), anchor, batched=True)
    plain = estimate_volume(cost, 1.0, GaussianMeasure(1.0), n=3000)
    tilted = estimate_volume(cost, 1.0, GaussianMeasure(1.0), proposal=Tilted(), n=5)

    assert plain.log_prob == pytest.approx(0, abs=0.1)
    assert plain.statuses == {"infinite": 3000}
    assert tilted.log_prob == pytest.approx(0, abs=1e-9)
    assert tilted.std < 1e-9


def test_a_typical_ray_of_the_whole_space_says_its_norm_term():
    anchor = torch.full((4000,), 0.3, dtype=torch.float64)
    found = estimate_volume(
        FunctionCost(lambda x: 0 * x.sum(-1), anchor, batched=True),
        1.0,
        GaussianMeasure(1.0),
        n=50,
    )

    assert found.norm_term == pytest.approx(-180.0)
    assert np.median(found.log_weights) == pytest.approx(found.norm_term, abs=15)


@pytest.mark.parametrize(("rank", "exact"), cases.RANKS)
def test_few_directions_hold(rank, exact):
    assert chi2.logcdf(2 * 0.01 / 4, rank) == pytest.approx(exact, abs=1e-6)
    h = cases.leading(rank, 4 * rank, 4.0)
    damped = Diagonal(tensor(h))
    for proposal in (damped, Tilted(damped)):
        found = estimate_volume(quadratic(h), 0.01, GaussianMeasure(1.0), proposal=proposal, n=800)
        within(found, exact)
    typical = estimate_volume(quadratic(h), 0.01, GaussianMeasure(1.0), n=200)

    assert typical.is_bound
    assert typical.log_volume < exact


def test_few_directions_hold_away_from_the_centre():
    h, theta = cases.leading(5, 20, 4.0), np.linspace(-1, 1, 20)
    exact = ncx2.logcdf(2 * 0.01 / 4, 5, (theta[:5] ** 2).sum())
    found = estimate_volume(
        quadratic(h, theta),
        0.01,
        GaussianMeasure(1.0),
        proposal=Tilted(Diagonal(tensor(h))),
        n=1000,
    )

    within(found, exact)


def test_unequal_curvatures_against_a_weighted_chi_square():
    h = np.array([4.0, 1.0, 0.25])
    draws = np.random.default_rng(0).normal(size=(400_000, 3)) ** 2
    inside = (draws @ h / 2 < 0.5).mean()
    error = np.sqrt((1 - inside) / inside / len(draws))
    found = estimate_volume(
        quadratic(h), 0.5, GaussianMeasure(1.0), proposal=Diagonal(tensor(h)), n=2000
    )
    low, high = found.interval

    assert abs(found.log_prob - np.log(inside)) < 4 * error + 2 * (high - low)


def test_linear_regression_is_a_quadratic_of_kronecker_factors():
    x = tensor(np.random.default_rng(1).normal(size=(30, 4)))
    w, s2 = torch.zeros(3, 4, dtype=torch.float64), 0.7
    cost = FunctionCost(
        lambda p: (p["w"] @ x.T).square().sum((-1, -2)) / (2 * len(x) * s2), {"w": w}, batched=True
    )
    gram = x.T @ x / (len(x) * s2)
    proposal = Kronecker({"w": (torch.eye(3).double(), gram)})
    found = estimate_volume(cost, 0.01, LebesgueMeasure(), proposal=proposal, n=3)
    full = torch.kron(torch.eye(3).double(), gram)
    exact = estimate_volume(cost, 0.01, LebesgueMeasure(), proposal=Dense(full), n=1).log_volume
    from offkey.volume import log_ball_volume

    definition = log_ball_volume(12) + 6 * np.log(0.02) - float(torch.logdet(full)) / 2

    assert found.log_volume == pytest.approx(definition, abs=1e-9)
    assert exact == pytest.approx(definition, abs=1e-9)
    assert found.std < 1e-9


def test_linear_softmax_at_a_small_cutoff():
    x = tensor(np.random.default_rng(2).normal(size=(12, 4)))
    model, batch = cases.linear_model(x)
    hessian = cases.softmax_hessian(model, x)
    values = torch.linalg.eigvalsh(hessian)
    eps, sigma, anchor = 1e-8, 0.5, model.module.weight.detach()

    assert int((values > 1e-12).sum()) == 2 * 4
    # Under a Gaussian this wide the held directions are a Lebesgue ellipsoid in their own space.
    held = values[values > 1e-12]
    vectors = torch.linalg.eigh(hessian)[1][:, values > 1e-12]
    centre = (vectors.T @ anchor.reshape(-1)).square().sum() / (2 * sigma**2)
    from offkey.volume import log_ball_volume

    exact = (
        log_ball_volume(8)
        + 4 * np.log(2 * eps)
        - float(held.log().sum()) / 2
        - 4 * np.log(2 * np.pi * sigma**2)
        - float(centre)
    )
    found = estimate_volume(
        KLCost(model, [batch]),
        eps,
        GaussianMeasure(sigma),
        proposal=Tilted(Dense(hessian)),
        search=CrossingSearch(rtol=1e-6),
        n=300,
    )

    within(found, exact, floor=2e-3)


def test_a_flat_direction_has_no_plain_volume():
    with pytest.raises(RadiusNotFound, match="infinite"):
        estimate_volume(cases.half_space((1.0,), (0.0,)), 1.0, LebesgueMeasure(), n=40)
