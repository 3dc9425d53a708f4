"""Loss and repair of estimates."""

import math

import pytest
import torch

from offkey.errors import BadInput, Mismatch, NotEnoughData
from offkey.estimate.risk import best_constant, fit_power, itakura_saito, leave_one_out

TRUTHS = torch.logspace(-9, -5, 24, dtype=torch.float64).tolist()


@pytest.mark.parametrize(
    ("factor", "loss"),
    [
        (0.5, 1 - math.log(2)),
        (2.0, math.log(2) - 0.5),
        (0.1, 9 - math.log(10)),
        (10.0, math.log(10) - 0.9),
        (1.0, 0.0),
    ],
)
def test_loss(factor, loss):
    assert itakura_saito(3e-7, 3e-7 * factor) == pytest.approx(loss, rel=1e-6, abs=1e-12)


def test_printed_values_of_the_loss():
    result = [itakura_saito(1.0, q) for q in (0.5, 2.0, 0.1, 10.0)]

    assert [f"{loss:.3g}" for loss in result] == ["0.307", "0.193", "6.7", "1.4"]


def test_an_estimate_of_zero_loses_everything_and_a_truth_of_zero_is_refused():
    assert itakura_saito(1e-9, 0.0) == math.inf
    with pytest.raises(BadInput, match="truth above 0"):
        itakura_saito(0.0, 1e-9)


def test_floor_of_the_best_constant():
    fine = torch.logspace(-9, -5, 200_001, dtype=torch.float64).tolist()
    constant, loss = best_constant(fine)

    assert constant == pytest.approx(1.0856e-6, rel=1e-4)
    assert loss == pytest.approx(2.3847, abs=1e-3)
    exact = best_constant(TRUTHS)[0]
    at = [sum(itakura_saito(p, exact * k) for p in TRUTHS) for k in (0.9, 1.0, 1.1)]
    assert at[1] == min(at)


def test_a_power_is_repaired():
    estimates = [p**1.3 / 7 for p in TRUTHS]
    fit = fit_power(estimates, TRUTHS)
    losses = [itakura_saito(p, fit(q)) for p, q in zip(TRUTHS, estimates, strict=True)]

    assert sum(losses) / len(losses) < 1e-3
    assert fit.c == pytest.approx(1 / 1.3, rel=1e-2)


def test_estimates_of_nothing_fall_to_the_floor():
    estimates = [p if p > 1e-7 else None for p in TRUTHS]
    fit = fit_power(estimates, TRUTHS)
    raw = [itakura_saito(p, fit(q)) for p, q in zip(TRUTHS, estimates, strict=True)]

    assert fit.b > 0
    assert fit(None) == fit.b
    assert all(map(math.isfinite, raw))
    assert sum(raw) / len(raw) < best_constant(TRUTHS)[1]


def test_one_is_left_out():
    """What is left out has no part in its own repair."""
    truths = TRUTHS[::4]
    estimates = [p**1.3 / 7 for p in truths]
    fit = fit_power(estimates[:-1], truths[:-1])

    assert leave_one_out([*estimates[:-1], 1e-30], truths)[-1] == fit(1e-30)


def test_too_little_is_refused():
    with pytest.raises(NotEnoughData):
        leave_one_out([1e-3] * 3, [1e-3] * 3)
    with pytest.raises(NotEnoughData):
        fit_power([1e-3], [1e-3])
    with pytest.raises(Mismatch):
        fit_power([1e-3] * 4, [1e-3] * 3)
    with pytest.raises(BadInput):
        fit_power([-1.0] * 4, [1e-3] * 4)
