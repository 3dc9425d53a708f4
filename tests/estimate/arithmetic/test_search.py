"""Surprise of arguments about circuits, and the searches for the least."""

import itertools
import math

import numpy as np
import pytest
import torch

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate import surprise_of_events
from offkey.estimate.arithmetic import (
    Circuit,
    Events,
    Values,
    account,
    bernoulli,
    both,
    differ,
    either,
    exhaustive,
    greedy,
    guided,
    leaf,
    negation,
    propagate,
    relaxed,
)
from offkey.estimate.arithmetic.propagation import Masked, closure
from offkey.estimate.arithmetic.search import adjoints

FIRST = [("u", "w"), ("w", "nu")]
SECOND = [*FIRST, ("v", "w"), ("w", "nv"), ("o", "nv")]
TABLE = {
    (): (49 / 64, 0.385290, 0, (6.165, 15.412, 24.659)),
    tuple(FIRST): (58 / 64, 0.142019, 7.714, (9.987, 13.395, 16.803)),
    tuple(SECOND): (1, 0, 14.313, (14.313, 14.313, 14.313)),
    (*SECOND, ("a", "nv")): (61 / 64, 0.069263, 15.728, (16.836, 18.498, 20.161)),
}


def test_the_table_of_the_toy(toy):
    common = math.log2(22)
    for pairs, (estimate, bits, length, totals) in TABLE.items():
        argument = toy.tracked(pairs)
        assert float(propagate(toy, argument).estimate()) == estimate
        assert argument.bits - common == pytest.approx(length, abs=5e-4)
        assert account(toy, Events(1), argument).outcome == pytest.approx(bits, abs=5e-7)
        for draws, total in zip((16, 40, 64), totals, strict=True):
            surprise = account(toy, Events(draws), argument)
            assert surprise.total - common == pytest.approx(total, abs=5e-4)
            assert surprise.empty_argument == pytest.approx(common)
            assert surprise.net == pytest.approx(
                account(toy, Events(draws)).total - surprise.total
            )


@pytest.mark.parametrize(("draws", "best"), [(16, 0), (40, 1), (64, 2)])
def test_the_best_argument_of_the_table(toy, draws, best):
    totals = [account(toy, Events(draws), toy.tracked(pairs)).total for pairs in TABLE]
    assert totals.index(min(totals)) == best


def test_crossings_of_the_table(toy):
    result = [account(toy, Events(1), toy.tracked(pairs)) for pairs in list(TABLE)[:3]]
    crossings = [
        (after.argument - before.argument) / (before.outcome - after.outcome)
        for before, after in itertools.pairwise(result)
    ]
    assert crossings == pytest.approx([31.71, 46.46], abs=5e-3)


def test_one_more_pair_can_hurt(toy):
    better = float(propagate(toy, toy.tracked(SECOND)).estimate())
    argument = toy.tracked([*SECOND, ("a", "nv")])
    done = propagate(toy, argument)
    assert better == 1
    assert done.covariance("a", "nv") == -3 / 64
    assert float(done.estimate("a")) == 0
    assert float(done.estimate()) == 61 / 64
    surprise = account(toy, Events(64), argument)
    assert surprise.total > account(toy, Events(64), toy.tracked(SECOND)).total


@pytest.mark.parametrize(("draws", "best"), [(16, 0), (40, 1), (64, 2)])
def test_searches_find_the_best_small_argument(toy, draws, best):
    pairs = list(TABLE)[best]
    outcome = Events(draws)
    result = {
        "exhaustive": exhaustive(toy, outcome, at_most=10),
        "greedy": greedy(toy, outcome, prune=True),
        "relaxed": relaxed(toy, outcome),
    }
    if best < 2:  # without pruning, what B needs beside itself costs more than it explains
        result |= {"plain": greedy(toy, outcome), "guided": guided(toy, outcome)}
    for search in result.values():
        assert search.argument == toy.tracked(pairs)
        assert search.surprise == account(toy, outcome, toy.tracked(pairs))
    assert all(s.surprise.total >= result["exhaustive"].surprise.total for s in result.values())


def test_plain_greedy_cannot_leave_out_what_a_pair_needs(toy):
    outcome = Events(64)
    assert greedy(toy, outcome).argument == toy.tracked(FIRST)
    assert guided(toy, outcome).argument == toy.tracked(FIRST)
    assert guided(toy, outcome).evaluated < greedy(toy, outcome).evaluated


def test_greedy_tells_its_path(toy):
    search = greedy(toy, Events(40))
    (added, total), *rest = search.path
    assert added == closure(toy, [toy.pair("w", "nu")])
    assert rest == []
    assert total == search.surprise.total
    assert float(search.estimate) == 58 / 64


def test_pairs_alone_explain_nothing_here(toy):
    assert greedy(toy, Events(64), close=False).argument == toy.tracked()


def test_tracking_everything_is_free_to_say(toy):
    search = exhaustive(toy, Events(40))
    assert len(search.argument) == 21
    assert search.surprise.argument == pytest.approx(math.log2(22))


def small():
    """Either x or not x, and a lone y: ten pairs that can move a mean, four of them idle."""
    x, y = bernoulli(0.25, name="x"), bernoulli(0.5, name="y")
    return Circuit(both(either(x, negation(x, name="nx"), name="z"), y, name="out"))


def smaller():
    """x and not y: one pair that could move a mean, and does not; six that move variances."""
    x, y = bernoulli(0.25, name="x"), bernoulli(0.5, name="y")
    return Circuit((x - x * y).named("out"))


@pytest.mark.parametrize(
    ("circuit", "outcome"),
    [
        (small(), Events(30, 20)),
        (small(), Events(5)),
        (smaller(), Events(5)),
        (smaller(), Values([0.1, 0.9, 0.4])),
        (smaller(), Values([0.1, 0.2] * 50)),
    ],
)
@pytest.mark.parametrize("at_most", [None, 3])
def test_exhaustive_is_the_least_of_all_sets(circuit, outcome, at_most):
    language = outcome.candidates
    pairs = list(circuit.candidates(language))
    totals = {
        account(circuit, outcome, circuit.tracked(chosen, candidates=language)).total
        for k in range(min(len(pairs), at_most or len(pairs)) + 1)
        for chosen in itertools.combinations(pairs, k)
    }
    result = exhaustive(circuit, outcome, at_most=at_most)
    assert result.surprise.total == pytest.approx(min(totals), abs=1e-9)
    assert at_most is None or len(result.argument) <= at_most


@pytest.mark.parametrize("seed", range(6))
def test_masks_of_zero_and_one_are_propagation(make_circuit, seed):
    circuit = make_circuit(seed)
    rng = np.random.default_rng(seed)
    pairs = list(circuit.candidates("all"))
    masks = rng.random((5, len(pairs))) < 0.5
    means, variances = Masked(circuit, pairs)(torch.from_numpy(masks).double())
    for row, mean, variance in zip(masks, means, variances, strict=True):
        chosen = itertools.compress(pairs, row)
        done = propagate(circuit, circuit.tracked(chosen, candidates="all"))
        assert float(mean) == pytest.approx(float(done.estimate()), rel=1e-9, abs=1e-12)
        expected = done.variances[circuit.outputs[0]]
        assert float(variance) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gradients_reach_the_masks(toy):
    pairs = [toy.pair("u", "w"), toy.pair("w", "nu")]
    masked = Masked(toy, pairs)
    masks = torch.tensor([[0.7, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: masked(z)[0], (masks,))


def test_adjoints_are_the_first_order_effect(toy):
    naive = propagate(toy)
    slopes = adjoints(toy, naive)
    step = 1e-6
    for k, name in enumerate(node.name for node in toy.nodes):
        assert slopes[k] == pytest.approx(moved(toy, name, step), abs=1e-6)
    # a enters y through products once, so the effect of the pair (w, nu) is exact.
    tracked = propagate(toy, toy.tracked(FIRST))
    guess = slopes[toy.index("a")] * tracked.covariance("w", "nu")
    assert float(tracked.estimate()) - float(naive.estimate()) == pytest.approx(guess, abs=1e-12)


def moved(circuit, name, step):
    """Finite difference of the output's naive estimate in one node's mean."""
    values = []
    for off in (-step, step):
        means = []
        for k, one in enumerate(circuit.steps):
            if one.kind == "leaf":
                mean = circuit.leaf(k).mean
            elif one.kind == "product":
                mean = means[one.parents[0]] * means[one.parents[1]]
            else:
                mean = one.constant + sum(
                    a * means[i] for a, i in zip(one.weights, one.parents, strict=True)
                )
            means.append(mean + off * (circuit.label(k) == name))
        values.append(means[circuit.outputs[0]])

    return (values[1] - values[0]) / (2 * step)


def test_events_are_those_of_the_shared_formula():
    for p, seen, missed in ((0.3, 4, 0), (0.3, 4, 7), (1.2, 3, 2), (-0.1, 3, 2), (0.0, 1, 0)):
        bits = Events(seen, missed).bits(torch.tensor(p, dtype=torch.float64), torch.zeros(()))
        assert float(bits) == pytest.approx(surprise_of_events(p, seen, missed), rel=1e-12)


def test_values_are_a_gaussian_density():
    x = leaf(1.0, 2.0)
    circuit = Circuit(1.0 * x)
    seen = [0.3, -1.0, 2.5]
    normal = torch.distributions.Normal(
        torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64).sqrt()
    )
    expected = -float(normal.log_prob(torch.tensor(seen, dtype=torch.float64)).sum()) / math.log(2)
    assert account(circuit, Values(seen)).outcome == pytest.approx(expected, rel=1e-12)


def test_pairs_that_move_only_a_variance_are_found():
    circuit = Circuit(differ(bernoulli(0.5), bernoulli(0.5)))
    assert [*circuit.candidates()] == [(0, 1)]
    seen = np.random.default_rng(0).integers(0, 2, size=400)
    outcome = Values(seen)
    needed = circuit.tracked([(0, 2), (1, 2)], candidates="all")
    assert propagate(circuit, needed).variances[-1] == 0.25
    best, walked = exhaustive(circuit, outcome, at_most=3), greedy(circuit, outcome)
    assert best.argument == needed
    assert best.surprise.net > 0
    assert walked.argument.tracked["circuit"] >= needed.tracked["circuit"]
    assert walked.surprise.net > 0


def test_a_wide_language_costs_more(toy):
    narrow, wide = toy.tracked(FIRST), toy.tracked(FIRST, candidates="all")
    result = account(toy, Events(40), wide)
    assert wide.bits > narrow.bits
    assert result.empty_argument == pytest.approx(math.log2(37))


def test_bad_requests_are_refused(toy):
    other = small()
    for refused, error, result in (
        (lambda: account(toy, Events(1), other.tracked()), Mismatch, "the argument is about"),
        (lambda: Events(-1), BadValue, "-1 seen"),
        (lambda: Values([]), BadInput, "finite numbers"),
        (lambda: Values([math.nan]), BadInput, "finite numbers"),
        (lambda: guided(toy, Events(1), tries=0), BadValue, "0 tries"),
        (lambda: exhaustive(toy, Events(1), most=100), BadValue, "2\\^17 arguments"),
        (lambda: Masked(toy, [(0, 1)])(torch.zeros(1, 2)), Mismatch, "for 1 pairs"),
    ):
        with pytest.raises(error, match=result):
            refused()
