"""Masks learned against total surprise."""

import math

import pytest
import torch

from offkey.errors import BadInput, BadValue, NotEnoughData
from offkey.estimate.activations import (
    ActivationModel,
    close,
    divergence_bits,
    mask_of,
    open_probability,
    search,
    surprise_of_activations,
)
from offkey.estimate.activations.mask_search import (
    description_bits,
    gate_price,
    hard_concrete_gates,
    marginal_gain,
    pair_surprise,
    still_gates,
    tracked_in_rounds,
)
from offkey.estimate.activations.model import pairs_of
from offkey.estimate.activations.surprise import pair_gain
from tests.estimate.activations.planted import (
    PAIRS,
    PLANTED,
    covariance,
    random_covariance,
    rows,
    sampled,
)

METHODS = ["greedy", "hard-concrete", "straight-through", "lasso"]


@pytest.mark.parametrize("method", METHODS)
def test_planted_pairs_are_recovered_and_nothing_is_found_in_noise(method):
    result = search(sampled(rows(2000, covariance(PLANTED), seed=0)), 2000, method)
    assert result.pairs == PAIRS
    assert result.surprise.net > 1000
    assert result.scored >= 2

    nothing = search(sampled(rows(2000, torch.eye(8).double(), seed=1)), 2000, method)
    assert nothing.pairs == frozenset()
    assert nothing.surprise.net == 0


@pytest.mark.parametrize("seed", range(3))
def test_nothing_beats_trying_every_mask(seed):
    s = sampled(rows(60, random_covariance(4, seed=seed), seed=seed))
    best = search(s, 60, "exhaustive")

    assert best.scored == 64
    for method in METHODS:
        assert search(s, 60, method).surprise.total >= best.surprise.total - 1e-9
    # greedy is allowed to miss the best mask, but not by much
    assert search(s, 60, "greedy").surprise.total <= best.surprise.total + 5


@pytest.mark.parametrize("method", METHODS)
def test_a_search_scores_as_the_model_does(method):
    x = rows(500, covariance(PLANTED), seed=4)
    estimate = search(sampled(x), 500, method)
    result = surprise_of_activations(
        ActivationModel.empirical({"h": x}, {"h": estimate.pairs}), {"h": x}
    )

    assert estimate.surprise.net == pytest.approx(result.net, rel=1e-8)
    assert estimate.surprise.explained == pytest.approx(result.explained, rel=1e-8)
    assert estimate.surprise.argument == pytest.approx(result.argument)


def test_scale_does_not_matter():
    s = sampled(rows(800, covariance(PLANTED), seed=2))
    scale = torch.logspace(-5, 5, 8, dtype=torch.float64)
    stretched = s * torch.outer(scale, scale)
    assert search(stretched, 800, "greedy").pairs == search(s, 800, "greedy").pairs


def test_hard_concrete_gates_have_the_published_law():
    logits = torch.tensor([0.0, 1.3, -2.0], dtype=torch.float64)
    assert float(open_probability(logits)[0]) == pytest.approx(0.83182, abs=5e-6)
    noise = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0)).double()
    gates = hard_concrete_gates(logits, noise)
    seen = (gates > 0).double().mean(0)
    torch.testing.assert_close(seen, open_probability(logits), rtol=0, atol=5 * 0.5 / 316)
    assert float(gates.amin()) == 0
    assert float(gates.amax()) == 1
    assert still_gates(torch.tensor([-9.0, 0.0, 9.0])).tolist() == pytest.approx([0, 0.5, 1])


def test_the_price_of_a_gate_is_the_slope_of_the_description():
    n, k, samples = 595, 40, 1000
    slope = (description_bits(35, k + 1, samples) - description_bits(35, k - 1, samples)) / 2
    assert gate_price(n, k, samples) == pytest.approx(slope, rel=1e-3)
    assert gate_price(n, 0, 1) == pytest.approx(math.log2(595.5 / 0.5))


def test_a_gate_scales_the_correlation_of_its_pair():
    rho = torch.tensor([0.3, -0.8], dtype=torch.float64)
    assert pair_surprise(rho, torch.zeros(2).double(), 100).tolist() == [0, 0]
    torch.testing.assert_close(
        pair_surprise(rho, torch.ones(2).double(), 100), -pair_gain(rho, 100)
    )
    for r, z in ((0.3, 0.5), (-0.8, 0.7)):
        true = torch.tensor([[1, r], [r, 1]], dtype=torch.float64)
        result = torch.tensor([[1, z * r], [z * r, 1]], dtype=torch.float64)
        apart = divergence_bits(true, result) - divergence_bits(true, torch.eye(2).double())
        got = pair_surprise(true[0, 1], torch.tensor(z, dtype=torch.float64), 100)
        assert float(got) == pytest.approx(100 * apart, rel=1e-9)


def test_the_marginal_gain_is_a_bound_on_what_a_pair_adds():
    s = random_covariance(6, seed=8)
    scale = s.diagonal().sqrt()
    r = s / torch.outer(scale, scale)
    pairs = {(0, 1), (1, 2), (3, 4)}
    before = close(r, mask_of(pairs, 6))
    gain = marginal_gain(r, before, 50)
    alone = marginal_gain(r, torch.eye(6).double(), 50)
    for i, j in [(0, 2), (2, 3), (4, 5), (0, 5)]:
        after = close(r, mask_of(pairs | {(i, j)}, 6))
        added = 50 * (divergence_bits(r, before) - divergence_bits(r, after))
        assert -1e-9 <= float(gain[i, j]) <= added + 1e-9
        assert float(alone[i, j]) == pytest.approx(float(pair_gain(r[i, j], 50)))
    assert float(gain[0, 1]) == pytest.approx(0, abs=1e-9)


def test_rounds_begin_with_the_best_tree():
    # a chain: its tree is the truth, and its closure explains every other correlation
    width, samples = 12, 4000
    s = torch.tensor([[0.8 ** abs(i - j) for j in range(width)] for i in range(width)]).double()
    r = torch.corrcoef(rows(samples, s, seed=3).T)
    mask, closed = tracked_in_rounds(r, samples)

    assert pairs_of(mask) == {(i, i + 1) for i in range(width - 1)}
    torch.testing.assert_close(closed, close(r, mask), rtol=0, atol=1e-4)


def test_rounds_find_loops_and_leave_noise_alone():
    precision = torch.eye(9).double()
    ring = [(i, (i + 1) % 8) for i in range(8)]
    for i, j in ring:
        precision[i, j] = precision[j, i] = -0.35
    r = torch.corrcoef(rows(5000, torch.linalg.inv(precision), seed=1).T)
    mask, _ = tracked_in_rounds(r, 5000)
    assert pairs_of(mask) == {(min(p), max(p)) for p in ring}

    noise = torch.corrcoef(rows(5000, torch.eye(30).double(), seed=1).T)
    assert pairs_of(tracked_in_rounds(noise, 5000)[0]) == frozenset()


def test_rounds_bear_fewer_samples_than_dimensions():
    x = rows(40, covariance((0.95,) * 30), seed=2)
    mask, closed = tracked_in_rounds(torch.corrcoef(x.T), 40, shrinkage=0.1)
    planted = {(2 * k, 2 * k + 1) for k in range(30)}

    assert len(pairs_of(mask) & planted) >= 28
    assert len(pairs_of(mask) - planted) <= 2
    assert torch.linalg.eigvalsh(closed)[0] > 0


def test_bad_input_is_refused_plainly():
    s = covariance(PLANTED)
    with pytest.raises(BadValue, match="unknown method 'genetic'"):
        search(s, 100, "genetic")
    with pytest.raises(BadValue, match="8 dimensions have 2.28 masks"):
        search(s, 100, "exhaustive")
    with pytest.raises(BadValue, match="1 samples"):
        search(s, 1)
    with pytest.raises(BadInput, match="not positive semi-definite"):
        search(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 100)
    with pytest.raises(NotEnoughData, match="dimension 1: it does not vary"):
        search(torch.diag(torch.tensor([1.0, 0.0])), 100)
