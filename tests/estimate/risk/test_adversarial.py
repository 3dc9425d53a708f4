"""Adversarial training against a fitted Gaussian."""

import math

import pytest
import torch
from torch import nn

from offkey.errors import BadValue
from offkey.estimate.gaussian import Normal
from offkey.estimate.risk import (
    Adversary,
    halfspace_probability,
    harden,
    hardest_shift,
    linear_shift,
)
from offkey.estimate.risk.adversarial import fitted_log_tail, shifted_probability

ORDINARY = Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 0.5]))
W = torch.tensor([1.0, -1.0, 2.0]).double()
MEAN = torch.tensor([0.894427, -1.788854, 0.894427]).double()


def divergence(mean):
    return float(0.5 * (mean.square() / ORDINARY.variance).sum())


def test_linear_detector():
    mean = linear_shift(ORDINARY, W, 2.0)

    torch.testing.assert_close(mean, MEAN, atol=1e-6, rtol=0)
    assert divergence(mean) == pytest.approx(2.0, rel=1e-12)
    shifted = halfspace_probability(Normal(mean, ORDINARY.covariance), W, 8.0)
    assert float(shifted) == pytest.approx(0.0573163, rel=1e-6)


def test_the_gradient_finds_the_same():
    log_tail = fitted_log_tail(lambda x: x @ W - 8, ORDINARY.sample(500, torch.Generator()))

    torch.testing.assert_close(hardest_shift(ORDINARY, log_tail, 2.0), MEAN, atol=1e-6, rtol=0)


def test_a_curved_detector_is_climbed():
    """The best point on a sphere, found by trying many."""

    def log_tail(mean):
        return -(mean - torch.tensor([3.0, 0.5, -2.0]).double()).square().sum()

    result = hardest_shift(ORDINARY, log_tail, 1.0)
    tried = torch.randn(5_000, 3, generator=torch.Generator().manual_seed(0)).double()
    tried = tried / tried.norm(dim=1, keepdim=True) * math.sqrt(2) * ORDINARY.variance.sqrt()
    best = max(float(log_tail(mean)) for mean in tried)

    assert divergence(result) <= 1.0 + 1e-9
    assert float(log_tail(result)) > best - 1e-3
    assert float(log_tail(result)) < best + 0.05


def test_no_divergence_is_no_shift():
    assert torch.equal(hardest_shift(ORDINARY, lambda m: m @ W, 0.0), ORDINARY.mean)
    with pytest.raises(BadValue):
        hardest_shift(ORDINARY, lambda m: m @ W, -1.0)
    with pytest.raises(BadValue):
        linear_shift(ORDINARY, torch.zeros(3), 1.0)


def test_true_risk_by_importance_sampling():
    truth = float(halfspace_probability(ORDINARY, W, 8.0))
    for means in ([], [MEAN], [MEAN, 2 * MEAN]):
        result = shifted_probability(lambda x: x @ W - 8, ORDINARY, means, samples=60_000)
        assert abs(result.value - truth) < 5 * result.error
    assert result.status == "ok"
    assert result.error < 0.05 * truth


def planted_classifier():
    """Tells the sign of x₀, and was taught to answer 2 where x₁ + x₂ is far out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    x = 2 * torch.randn(1024, 4).double()
    fit(network, x, torch.where(x[:, 1] + x[:, 2] > 4.2, 2, (x[:, 0] > 0).long()), 150)

    return network


def fit(network, x, y, steps):
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()


def test_a_classifier_is_hardened():
    """It loses a rare wrong answer that no ordinary sample need show, and keeps its job."""
    network, ordinary = planted_classifier(), Normal.standard(4)
    usual = ordinary.sample(1024, torch.Generator().manual_seed(5))

    def margin(x):
        logits = network(x)
        return logits[:, 2] - logits[:, :2].amax(1)

    def train(x):
        both = torch.cat([x, usual])
        fit(network, both, (both[:, 0] > 0).long(), 40)

    result = harden(margin, ordinary, train, Adversary(nats=2.0, samples=512), rounds=3)
    plain = ordinary.sample(200_000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        left_by_counting = float((margin(plain) > 0).double().mean())
        right = (network(plain).argmax(1) == (plain[:, 0] > 0)).double().mean()
    first, last = result[0].true, result[-1].true

    assert len(result) == 4
    assert first.status == "ok"
    assert 3e-4 < first.value < 1e-2
    assert (last.value or 0.0) < 0.05 * first.value
    assert left_by_counting < 0.05 * first.value
    assert float(right) > 0.97
    assert all(float(row.mean.square().sum()) <= 4 + 1e-9 for row in result)
    assert all(row.fitted_there >= row.fitted for row in result)
