"""Samplers of inputs on planted problems."""

import itertools
import math

import pytest
import torch

from offkey.errors import BadInput, BadValue
from offkey.estimate.risk import (
    ITGIS,
    MHIS,
    CachedNetwork,
    Draws,
    Problem,
    TokenInputs,
    exact,
    monte_carlo,
)
from offkey.estimate.risk.samplers import _Walkers, importance_mean, log_normalisers
from tests.estimate.risk.planted import sum_of_tokens, tangled

TRUTH = 153 / 4**16
RARE = sum_of_tokens(16, 46)
UNEVEN = TokenInputs.of([{0: 0.7, 1: 0.1, 2: 0.2}, {0: 0.5, 3: 0.5}, {1: 0.05, 2: 0.9, 3: 0.05}])


COMMON = int(exact(tangled(), UNEVEN).argmax())


def mean_and_error(values):
    values = torch.tensor(values, dtype=torch.float64)

    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def test_itgis_finds_what_plain_samples_miss():
    result = ITGIS(temperature=0.5, samples=2**16)(RARE, seed=1)

    assert result.status == "ok"
    assert result.value == pytest.approx(TRUTH, rel=0.05)
    assert abs(result.value - TRUTH * (1 - 256 / 2**16)) < 5 * result.error
    assert result.error / TRUTH < 0.01


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_itgis_is_unbiased(temperature):
    problem = sum_of_tokens(8, 19)
    result = [ITGIS(temperature, samples=2048)(problem, seed=seed).value for seed in range(20)]
    mean, error = mean_and_error(result)

    assert abs(mean - problem.exact()) < 5 * error
    assert error < 0.1 * problem.exact()


def test_itgis_is_unbiased_where_tokens_interact():
    problem = Problem(tangled(), UNEVEN, 1)
    result = [ITGIS(1.0, samples=512, batch=64)(problem, seed=seed).value for seed in range(20)]
    mean, error = mean_and_error(result)

    assert 0 < problem.exact() < 0.9
    assert abs(mean - problem.exact()) < 5 * error


def test_itgis_uses_earlier_batches_only():
    """One batch is plain sampling."""
    problem = sum_of_tokens(4, 8)
    result = ITGIS(0.5, samples=256, batch=256)(problem, seed=3)
    drawn = problem.inputs.draw(256, torch.Generator().manual_seed(3))

    assert result.value == pytest.approx(float((drawn.sum(1) >= 8).double().mean()), rel=1e-12)


def test_chains_visit_inputs_as_often_as_they_should():
    problem, beta = Problem(tangled(), UNEVEN, 1), 1.3
    walkers = _Walkers(problem, 160, torch.Generator().manual_seed(0))
    walkers.run(beta, 50)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(300):
        walkers.run(beta, 1)
        for row in walkers.choices.tolist():
            seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    choices = torch.cat(list(UNEVEN.all()))
    score = problem.logit(problem.network.finals(UNEVEN.tokens_of(choices)))
    wanted = (UNEVEN.log_probability(choices) + beta * score).softmax(0)
    got = torch.tensor([seen.get(tuple(row), 0) for row in choices.tolist()]) / 48_000

    assert float((got - wanted).abs().sum()) < 0.05


@pytest.mark.parametrize("temperature", [1.5, 0.5])
def test_mhis_with_a_sound_normaliser(temperature):
    result = MHIS(temperature, samples=2**16)(RARE, seed=0)

    assert result.status == "ok"
    assert result.value == pytest.approx(TRUTH, rel=0.5)
    assert abs(result.value - TRUTH) < 5 * result.error


def test_the_harmonic_normaliser_is_wrong_at_low_temperature_and_flagged():
    result = MHIS(0.5, samples=2**15, normaliser="compat-harmonic")(RARE, seed=0)

    assert result.value > 20 * TRUTH
    assert result.status == "failed"
    assert result.effective_samples < 10
    assert "effective sample size" in result.reason


def test_both_normalisers_agree_where_both_are_sound():
    problem = Problem(tangled(), UNEVEN, COMMON)
    for normaliser in ("bridge", "compat-harmonic"):
        result = MHIS(2.0, samples=2**13, normaliser=normaliser)(problem, seed=0)
        assert abs(result.value - problem.exact()) < 5 * result.error
        assert result.error < 0.1 * problem.exact()


def test_normalisers_of_tilted_gaussians():
    generator = torch.Generator().manual_seed(0)
    betas = torch.tensor([0.0, 0.5, 1.0, 2.0]).double()
    scores = torch.randn(4, 20_000, generator=generator).double() + betas[:, None]
    counts = torch.full((4,), 20_000.0).double()
    result = log_normalisers(scores.flatten(), betas, counts)

    torch.testing.assert_close(result, betas**2 / 2, atol=0.03, rtol=0)


def test_normalisers_of_two_rungs_solve_bennetts_equation():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 500, generator=generator).double()
    scores[1] += 0.8
    betas, counts = torch.tensor([0.0, 0.8]).double(), torch.full((2,), 500.0).double()
    free = log_normalisers(scores.flatten(), betas, counts)[1]
    forth, back = 0.8 * scores[0] - free, free - 0.8 * scores[1]

    assert float(torch.sigmoid(forth).sum()) == pytest.approx(float(torch.sigmoid(back).sum()))


def test_rungs_that_do_not_overlap_are_refused():
    scores = torch.cat([torch.zeros(50), torch.full((50,), 1e6)]).double()
    with pytest.raises(BadInput, match="Use more rungs"):
        log_normalisers(scores, torch.tensor([0.0, 1.0]), torch.tensor([50.0, 50.0]).double())


def test_chains_without_overlap_fail_and_say_so():
    """Two rungs 200 standard deviations apart."""
    result = MHIS(0.05, samples=2**14, rungs=2)(RARE)

    assert (result.value, result.status) == (None, "failed")
    assert "do not overlap" in result.reason


def test_mhis_is_right_on_average():
    problem = Problem(tangled(), UNEVEN, 1)
    result = [MHIS(1.0, samples=2048)(problem, seed=seed).value for seed in range(12)]
    mean, error = mean_and_error(result)

    assert abs(mean - problem.exact()) < 5 * error
    assert error < 0.2 * problem.exact()


@pytest.mark.parametrize("method", [ITGIS(50.0, samples=1024), MHIS(50.0, samples=1024)])
def test_zero_accepted_samples_are_below_resolution(method):
    result = method(RARE)

    assert (result.status, result.value, result.resolution) == ("below_resolution", None, 1 / 1024)
    assert "below resolution 1/1024" in result.reason


def test_few_effective_samples_are_flagged_and_many_are_not():
    few = importance_mean(torch.tensor([1.0] + [1e-3] * 99).double())
    many = importance_mean(torch.ones(100).double())

    assert (few.status, many.status) == ("failed", "ok")
    assert few.effective_samples == pytest.approx((1.099**2) / (1 + 99e-6))
    assert few.value == pytest.approx(1.099 / 100)
    assert many.effective_samples == pytest.approx(100)


def test_plain_samples():
    problem = sum_of_tokens(4, 8)
    draws = Draws.of(problem.network, problem.inputs, 20_000, seed=0)
    result = monte_carlo(draws, 0)

    assert abs(result.value - problem.exact()) < 5 * result.error
    assert result.effective_samples == round(result.value * 20_000)
    none = monte_carlo(Draws.of(RARE.network, RARE.inputs, 500), 0)
    assert (none.status, none.value, none.resolution) == ("below_resolution", None, 1 / 500)


def test_a_remembered_network_says_the_same_and_computes_less():
    plain = Problem(tangled(), UNEVEN, 1)
    remembered = CachedNetwork(plain.network)
    again = Problem(remembered, UNEVEN, 1)
    method = MHIS(1.0, samples=2048)

    assert method(again, seed=1).value == pytest.approx(method(plain, seed=1).value, rel=1e-12)
    assert remembered.computed <= UNEVEN.count
    tokens = torch.tensor(list(itertools.islice(itertools.product(range(4), repeat=3), 9)))
    torch.testing.assert_close(remembered.finals(tokens), plain.network.finals(tokens))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ITGIS(temperature=0.0),
        lambda: ITGIS(decay=1.0),
        lambda: MHIS(temperature=-1.0),
        lambda: MHIS(chains=2),
        lambda: MHIS(samples=100),
        lambda: MHIS(rungs=1),
        lambda: MHIS(normaliser="mean"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(BadValue):
        wrong()
