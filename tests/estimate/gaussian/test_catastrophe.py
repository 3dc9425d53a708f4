"""Catastrophes read off a Gaussian, against closed forms and finite data."""

import math

import pytest
import torch
from torch import nn

from offkey.errors import BadValue, Mismatch, UnmappedModel
from offkey.estimate.gaussian import (
    ArgMax,
    Fires,
    Normal,
    PropagationSettings,
    Threshold,
    bivariate_normal_cdf,
    finite_data,
    probability,
)
from offkey.estimate.gaussian.catastrophe import orthant
from tests.estimate.gaussian.planted import random_normal

LEVEL = 0.1


def phi(x):
    return float(torch.special.ndtr(torch.tensor(x, dtype=torch.float64)))


def test_linear_detector_on_a_linear_model_is_exact():
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([1.0, 2.0**0.5, 0.5**0.5])))
    event = Threshold(torch.tensor([1.0, -1.0, 2.0]), 8.0)
    result = probability(model, event, Normal.standard(3))
    assert float(result) == pytest.approx(phi(-8 / 5**0.5), rel=1e-6)
    assert float(result) == pytest.approx(1.7331e-4, rel=1e-4)
    slim = probability(model, event, Normal(torch.zeros(3), torch.ones(3)))
    assert float(slim) == pytest.approx(float(result))


def test_network_as_detector_and_finite_data_agree():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 4)).double()
    detector = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    normal = random_normal(5)
    event = Fires(detector, threshold=LEVEL)
    guess = probability(model, event, normal)
    seen = finite_data(model, event, normal, 50_000, torch.Generator().manual_seed(0))
    assert seen.status == "ok"
    assert seen.error == pytest.approx((float(seen) * (1 - float(seen)) / 50_000) ** 0.5)
    assert abs(float(guess) - float(seen)) < 0.03
    assert 0.05 < float(seen) < 0.95
    joined = list(model) + list(detector)
    whole = probability(nn.Sequential(*joined), Threshold(torch.ones(1), LEVEL), normal)
    assert float(whole) == pytest.approx(float(guess))
    with pytest.raises(UnmappedModel, match="Softplus"):
        probability(nn.Sequential(model, nn.Softplus()), event, normal)


def test_no_hit_is_below_resolution_and_not_zero():
    event = Threshold(torch.ones(2), 29.0)
    model = nn.Identity()
    seen = finite_data(model, event, Normal.standard(2), 20_000, torch.Generator().manual_seed(0))
    assert (seen.status, seen.value, seen.resolution) == ("below_resolution", None, 1 / 20_000)
    assert "0 of 20000" in seen.reason
    assert 0 < float(probability(model, event, Normal.standard(2))) < 1e-90
    far = probability(model, Threshold(torch.ones(2), 90.0), Normal.standard(2))
    assert far.status == "below_resolution"
    drawn = finite_data(model, event, lambda n, g: torch.full((n, 2), 20.0), 10, torch.Generator())
    assert float(drawn) == 1.0


def test_orthants_known_in_closed_form():
    # all correlations 1/2: 1 / (d + 1)
    for width in (2, 3, 8, 40):
        half = torch.full((width, width), 0.5) + 0.5 * torch.eye(width)
        result = orthant(torch.zeros(width), half)
        assert float(result) == pytest.approx(1 / (width + 1), abs=6 * result.error + 1e-9)
        assert result.error < 0.01 / (width + 1)
    rho = 0.7
    two = orthant(torch.tensor([-3.0, -4.0]), torch.tensor([[1.0, rho], [rho, 1.0]]))
    exact = float(bivariate_normal_cdf(-3.0, -4.0, torch.tensor(rho).double()))
    assert float(two) == pytest.approx(exact, rel=1e-3)
    rare = orthant(torch.full((6,), -3.0), torch.eye(6))
    assert float(rare) == pytest.approx(phi(-3.0) ** 6, rel=1e-6)
    # three copies of one coordinate
    same = orthant(torch.full((3,), 0.4), torch.ones(3, 3))
    assert float(same) == pytest.approx(phi(0.4), rel=1e-4)
    assert orthant(torch.full((2,), -60.0), torch.eye(2)).status == "below_resolution"


def test_argmax_equals_finite_data_and_adds_up_to_one():
    normal = random_normal(6, seed=3)
    model = nn.Identity()
    result = [probability(model, ArgMax(t), normal) for t in range(6)]
    assert sum(map(float, result)) == pytest.approx(1, abs=1e-3)
    for target, guess in enumerate(result):
        seen = finite_data(
            model, ArgMax(target), normal, 100_000, torch.Generator().manual_seed(target)
        )
        assert abs(float(guess) - float(seen)) < 5 * seen.error + 5 * guess.error + 1e-6
    assert float(probability(model, ArgMax(0), Normal.standard(1))) == 1.0
    # two outputs: one number
    pair = random_normal(2, seed=1)
    gap = pair.full[0, 0] + pair.full[1, 1] - 2 * pair.full[0, 1]
    by_hand = phi(float((pair.mean[0] - pair.mean[1]) / math.sqrt(gap)))
    assert float(probability(model, ArgMax(0), pair)) == pytest.approx(by_hand, rel=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Mismatch, match="width 2"):
        probability(nn.Identity(), Threshold(torch.ones(2)), Normal.standard(3))
    with pytest.raises(BadValue, match="target 7"):
        probability(nn.Identity(), ArgMax(7), Normal.standard(3))
    with pytest.raises(BadValue, match="0 draws"):
        finite_data(nn.Identity(), ArgMax(0), Normal.standard(3), 0, torch.Generator())
    still = Normal(torch.ones(2), torch.zeros(2))
    assert (
        float(probability(nn.Identity(), Threshold(torch.ones(2)), still, PropagationSettings()))
        == 1.0
    )
