"""Partitions of paths as arguments, and scrubbing by exact expectation."""

import itertools
import math

import numpy as np
import pytest

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.arithmetic import Scrubbing, bell
from offkey.estimate.arithmetic.scrubbing import PathPartition, path_partitions

INPUTS = list(itertools.product((0, 1), repeat=3))


def probability(seen, x):
    """The model says x1 xor x2, and is right with probability 1 - 2**-10."""
    is_right = seen[0][0] ^ seen[1][1] == x[0] ^ x[1]
    return 1 - 2.0**-10 if is_right else 2.0**-10


@pytest.fixture
def toy():
    return Scrubbing(probability, INPUTS, 3)


def by_hand(function, inputs, weights, argument, x, average="loss"):
    """Loops over every draw of every block."""
    total = 0.0
    for drawn in itertools.product(range(len(inputs)), repeat=len(argument.blocks)):
        seen = [x] * argument.paths
        for part, chosen in zip(argument.blocks, drawn, strict=True):
            for path in part:
                seen[path] = inputs[chosen]
        p = function(tuple(seen), x)
        total += math.prod(weights[i] for i in drawn) * (-math.log2(p) if average == "loss" else p)

    return total if average == "loss" else -math.log2(total)


def test_bell_numbers():
    assert [bell(n) for n in range(6)] == [1, 1, 2, 5, 15, 52]
    assert bell(20) == 51724158235372


@pytest.mark.parametrize("paths", range(1, 6))
def test_there_are_as_many_arguments_as_the_code_says(paths):
    result = list(path_partitions("x", paths))
    assert len(set(result)) == len(result) == bell(paths + 1)
    assert sum(2.0**-p.bits for p in result) == pytest.approx(1)
    prefix = list(path_partitions("x", paths, code="prefix"))
    assert sum(2.0**-p.bits for p in prefix) == pytest.approx(1)


def test_lengths_of_the_codes():
    argument = PathPartition("x", 3, frozenset({0, 1}))
    assert argument.bits == pytest.approx(3.907, abs=5e-4)
    prefix = PathPartition("x", 3, frozenset({0}), code="prefix")
    assert prefix.bits == pytest.approx(math.log2(4) + math.log2(3) + math.log2(2))


@pytest.mark.parametrize(
    ("important", "blocks", "bits"),
    [
        ((), (), 5.000704785127),
        ((0, 1), (), 0.001409570255),
        ((0,), (), 5.000704785127),
        ((), ((0, 1),), 5.000704785127),
        ((), ((0, 1, 2),), 5.000704785127),
    ],
)
def test_the_exclusive_or(toy, important, blocks, bits):
    argument = toy.argument(important, blocks)
    assert float(toy.estimate(argument)) == pytest.approx(bits, rel=1e-6)


def test_a_thousand_draws(toy):
    surprise = toy.surprise(toy.argument([0, 1]), 1000)
    assert surprise.empty_outcome == pytest.approx(5000.7, abs=0.05)
    assert surprise.outcome == pytest.approx(1.4, abs=0.05)
    assert surprise.argument == pytest.approx(3.9, abs=0.05)
    assert surprise.net == pytest.approx(surprise.empty_outcome - surprise.outcome)


def test_what_is_recovered(toy):
    recovered = [toy.recovered(toy.argument(x)) for x in ((), (0,), (0, 1), (0, 1, 2))]
    assert recovered == pytest.approx([0, 0, 1, 1], abs=1e-12)


def test_the_best_argument_keeps_the_paths_that_matter(toy):
    for code in ("uniform", "prefix"):
        argument, surprise = toy.best(1000, code=code)
        assert argument.important >= {0, 1}
        assert surprise.outcome == pytest.approx(1.4096, abs=1e-3)
    assert argument.bits == math.log2(4)


def rough(seen, x):
    """A probability that depends on everything."""
    return 1 / (1 + math.exp(0.7 * seen[0] - 0.4 * seen[1] * x + 0.2 * seen[2] * seen[1]))


@pytest.mark.parametrize("average", ["loss", "probability"])
def test_every_argument_against_loops(average):
    inputs, weights = [-1.0, 0.5, 2.0], [0.5, 0.2, 0.3]
    scrubbing = Scrubbing(rough, inputs, 3, weights=weights, average=average)
    for argument in path_partitions(scrubbing.fingerprint, 3):
        expected = [by_hand(rough, inputs, weights, argument, x, average) for x in inputs]
        assert scrubbing.losses(argument) == pytest.approx(np.array(expected), rel=1e-10)


def test_the_mean_of_losses_is_at_least_the_loss_of_the_mean():
    inputs = [-1.0, 0.5, 2.0]
    loss = Scrubbing(rough, inputs, 3)
    mean = Scrubbing(rough, inputs, 3, average="probability")
    assert (loss.losses(loss.argument()) >= mean.losses(mean.argument()) - 1e-12).all()


def test_resampling_among_equal_features_keeps_the_behaviour(toy):
    result = Scrubbing(probability, INPUTS, 3, features=lambda path, x: x[path])
    assert float(result.estimate(result.argument())) == pytest.approx(0.0014095703, rel=1e-6)
    wrong = Scrubbing(probability, INPUTS, 3, features=lambda path, x: x[2])
    assert float(wrong.estimate(wrong.argument())) == pytest.approx(5.000704785, rel=1e-6)
    # Path 1 and path 2 share a draw that agrees in both features.
    both = Scrubbing(probability, INPUTS, 3, features=lambda path, x: x[0] ^ x[1])
    shared = both.argument(blocks=[[0, 1]])
    assert float(both.estimate(shared)) == pytest.approx(0.0014095703, rel=1e-6)
    assert float(both.estimate(both.argument())) == pytest.approx(5.000704785, rel=1e-6)


def test_an_input_that_the_argument_does_not_fit_stands_out():
    def odd(seen, x):
        # The model uses path 3 on one input only.
        if x == (1, 1, 1):
            return 0.99 if seen[2][2] else 0.01
        return probability(seen, x)

    scrubbing = Scrubbing(odd, INPUTS, 3)
    losses = scrubbing.losses(scrubbing.argument([0, 1]))
    assert INPUTS[int(losses.argmax())] == (1, 1, 1)
    assert losses.max() > 100 * np.delete(losses, losses.argmax()).max()


def test_counts_of_what_was_drawn(toy):
    seen = [3, 0, 0, 1, 0, 0, 0, 0]
    losses = toy.losses(toy.argument([0]))
    surprise = toy.surprise(toy.argument([0]), 0, drawn=seen)
    assert surprise.outcome == pytest.approx(3 * losses[0] + losses[3])


def test_bad_input_is_refused(toy):
    for refused, error, result in (
        (lambda: toy.losses(PathPartition("other", 3)), Mismatch, "the argument is about other"),
        (lambda: toy.losses(PathPartition(toy.fingerprint, 2)), Mismatch, "3 paths"),
        (lambda: toy.argument([3]), BadValue, "path 3: there are paths 0 to 2"),
        (lambda: toy.argument([0], [[0, 1]]), BadValue, "in two places"),
        (lambda: toy.argument(code="short"), BadValue, "unknown code"),
        (lambda: toy.surprise(toy.argument(), 1, drawn=[1]), Mismatch, "counts of shape"),
        (lambda: bell(-1), BadValue, "a set of -1"),
        (lambda: Scrubbing(lambda s, x: 2.0, [0], 1), BadInput, "between 0 and 1"),
        (lambda: Scrubbing(rough, [0.0], 1, weights=[0.5]), BadInput, "sum to 1"),
        (lambda: Scrubbing(rough, range(100), 4), BadValue, "a table of more"),
        (lambda: Scrubbing(rough, [0.0], 3, average="x"), BadValue, "unknown average"),
        (
            lambda: Scrubbing(lambda s, x: 0.5, [0], 1).recovered(
                Scrubbing(lambda s, x: 0.5, [0], 1).argument()
            ),
            BadInput,
            "loses nothing",
        ),
    ):
        with pytest.raises(error, match=result):
            refused()
