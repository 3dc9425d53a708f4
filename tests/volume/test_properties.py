"""What must hold whatever the numbers: order, scale, rotation, batches, seeds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.errors import PriorMismatch
from offkey.volume import (
    CrossingSearch,
    Diagonal,
    FunctionCost,
    GaussianMeasure,
    LebesgueMeasure,
    LowESS,
    Tilted,
    Uniform,
    estimate_volume,
    log_ratio,
)
from offkey.volume.rays import CHUNK, Noise
from tests.volume import cases
from tests.volume.cases import quadratic, tensor

pytestmark = pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
H = np.logspace(-1, 1, 6)
THETA = np.linspace(-0.5, 0.5, 6)


def volume(h=H, theta=THETA, eps=0.1, sigma=1.0, n=20, **more):
    return estimate_volume(quadratic(h, theta), eps, GaussianMeasure(sigma), n=n, **more)


@settings(max_examples=20, deadline=None)
@given(st.floats(-6, 3), st.floats(0.05, 2.0))
def test_it_grows_with_the_cutoff(log_eps, more):
    eps = np.exp(log_eps)
    low, high = volume(eps=eps), volume(eps=eps * np.exp(more))

    # Past the cutoff where a ray holds all of the measure's mass nothing can be added.
    assert (high.log_weights >= low.log_weights - 1e-12).all()
    assert (high.rays["radius"] > low.rays["radius"])[low.rays["status"] == "ok"].all()


@pytest.mark.parametrize(("rank", "dimensions"), [(6, 6), (3, 9)])
def test_its_slope_in_the_cutoff_is_half_the_rank(rank, dimensions):
    h, step = cases.leading(rank, dimensions, 4.0), 1e-3
    proposal = Diagonal(tensor(h))

    def log_volume(eps):
        return estimate_volume(
            quadratic(h), eps, GaussianMeasure(1.0), proposal=proposal, n=500
        ).log_volume

    slope = (log_volume(1e-4 * np.exp(step)) - log_volume(1e-4)) / step

    # Only the held directions keep the order in which rays outweigh each other.
    assert slope == pytest.approx(rank / 2, rel=0.05 if dimensions > rank else 1e-3)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 10))
def test_one_scale_for_anchor_width_and_curvature(c):
    for proposal in (Uniform(), Diagonal(tensor(H)), Tilted(Diagonal(tensor(H)))):
        scaled = proposal
        if isinstance(proposal, Diagonal):
            scaled = Diagonal(tensor(H / c**2))
        elif isinstance(proposal, Tilted):
            scaled = Tilted(Diagonal(tensor(H / c**2)))
        here = volume(proposal=proposal, n=4)
        there = volume(h=H / c**2, theta=THETA * c, sigma=c, proposal=scaled, n=4)
        np.testing.assert_allclose(there.log_weights, here.log_weights, atol=1e-7)


def test_rotations_change_nothing_but_the_draw():
    q = tensor(np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0])
    h, theta = tensor(H), tensor(THETA)
    turned = FunctionCost(
        lambda x: (h * ((x - q @ theta) @ q) ** 2).sum(-1) / 2, q @ theta, batched=True
    )
    a = volume(n=3000)
    b = estimate_volume(turned, 0.1, GaussianMeasure(1.0), n=3000, seed=1)
    wide = sum((r.interval[1] - r.interval[0]) / 2 for r in (a, b))

    assert abs(a.log_prob - b.log_prob) < 2 * wide


@pytest.mark.parametrize("proposal", [Uniform(), Tilted(Diagonal(tensor(H)))])
def test_one_by_one_and_side_by_side_agree(proposal):
    h, theta = tensor(H), tensor(THETA)
    alone = FunctionCost(lambda x: (h * (x - theta) ** 2).sum(-1) / 2, theta)
    together = quadratic(H, THETA)
    a = estimate_volume(alone, 0.1, GaussianMeasure(1.0), proposal=proposal, n=300)
    b = estimate_volume(together, 0.1, GaussianMeasure(1.0), proposal=proposal, n=300)

    assert alone.block == 1
    assert together.block > 1
    np.testing.assert_allclose(a.log_weights, b.log_weights, atol=1e-9)
    assert (a.rays["evaluations"] == b.rays["evaluations"]).all()
    assert (a.rays["status"] == b.rays["status"]).all()


def test_more_rays_begin_with_the_same_rays():
    few, many = volume(n=7), volume(n=300)

    np.testing.assert_array_equal(many.log_weights[:7], few.log_weights)


def test_seeds_decide_everything():
    np.testing.assert_array_equal(volume(seed=3).log_weights, volume(seed=3).log_weights)
    assert (volume(seed=3).log_weights != volume(seed=4).log_weights).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2 * CHUNK), st.integers(1, 5000), st.integers(0, 3))
def test_noise_is_found_again_by_its_place(start, count, direction):
    noise = Noise(0, direction)
    whole = noise.normals("w", 0, start + count)

    assert torch.equal(noise.normals("w", start, start + count), whole[start:])


def test_noise_differs_by_seed_direction_and_name_and_is_standard():
    draws = [
        Noise(s, d).normals(n, 0, 200_000)
        for s, d, n in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))
    ]
    for i, x in enumerate(draws):
        assert abs(float(x.mean())) < 0.01
        assert float(x.var()) == pytest.approx(1, abs=0.02)
        assert float((x**4).mean()) == pytest.approx(3, abs=0.1)
        for y in draws[:i]:
            assert abs(float((x * y).mean())) < 0.01


def test_what_is_reported_adds_up():
    with pytest.warns(LowESS, match="lower bound"):
        found = volume(n=8)

    assert found.is_bound
    assert found.interval[1] is None
    assert found.norm_term == pytest.approx(-(THETA**2).sum() / 2)
    assert found.radius_term + found.norm_term == pytest.approx(found.log_prob)
    assert found.bits * np.log(2) == pytest.approx(found.log_prob)
    weights = np.exp(found.log_weights)
    assert found.log_prob == pytest.approx(np.log(weights.mean()))
    assert found.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.mean == pytest.approx(found.log_weights.mean())
    assert found.max == found.log_weights.max()
    assert len(found.rows()) == 8
    assert found.rows()[3]["direction"] == 3
    assert found.summary()["rays_ok"] == 8


def test_intervals_cover():
    covered = 0
    exact = cases.ball_probability(5, 1.0, 1.5)
    for seed in range(30):
        low, high = estimate_volume(
            cases.ball(5, 1.0), 1.5**2, GaussianMeasure(1.0), n=100, seed=seed
        ).interval
        covered += low <= exact <= high

    assert covered >= 25


def test_only_like_volumes_are_compared():
    a, b = volume(), volume(h=2 * H)
    assert log_ratio(a, b) == a.log_prob - b.log_prob
    assert log_ratio(a, b) > 0
    with pytest.raises(PriorMismatch, match="eps is 0.1 for one and 0.2"):
        log_ratio(a, volume(eps=0.2))
    with pytest.raises(PriorMismatch, match="measure"):
        log_ratio(a, volume(sigma=2.0))
    flat = estimate_volume(quadratic(H), 0.1, LebesgueMeasure(), n=2)
    with pytest.raises(PriorMismatch, match="log_volume"):
        _ = flat.log_prob


def test_few_evaluations_a_ray_at_a_tight_tolerance():
    h = tensor(H)
    quartic = FunctionCost(
        lambda x: (h * x**2).sum(-1) / 2 + (h * x**2).sum(-1) ** 2,
        torch.zeros(6).double(),
        batched=True,
    )
    found = estimate_volume(quartic, 0.3, LebesgueMeasure(), n=200)

    assert found.summary()["evaluations_per_ray"] <= 3.5
    tight = estimate_volume(
        quartic, 0.3, LebesgueMeasure(), n=200, search=CrossingSearch(rtol=1e-9)
    )
    # The secant's last step leaves an error of second order in the tolerance of one percent.
    np.testing.assert_allclose(found.rays["radius"], tight.rays["radius"], rtol=2e-4)


@pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
def test_a_direction_made_again_each_time_is_the_one_that_was_kept(monkeypatch):
    from offkey.volume import rays

    kept = volume(proposal=Tilted(Diagonal(tensor(H))), n=8)
    theta, h = tensor(THETA), tensor(H)
    alone = FunctionCost(lambda x: (h * (x - theta) ** 2).sum(-1) / 2, theta)
    monkeypatch.setattr(rays, "KEEP", 0)
    made = estimate_volume(
        alone, 0.1, GaussianMeasure(1.0), proposal=Tilted(Diagonal(tensor(H))), n=8
    )

    np.testing.assert_allclose(made.log_weights, kept.log_weights, atol=1e-9)
