"""Independent tokens."""

import itertools
import math

import pytest
import torch

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.risk import Problem, TokenInputs, exact
from tests.estimate.risk.planted import sum_of_tokens, tangled

UNEVEN = [{7: 0.5, 3: 0.5}, {1: 0.2, 2: 0.3, 9: 0.5}]


def test_every_input_comes_once_with_its_probability():
    inputs = TokenInputs.of(UNEVEN)
    choices = torch.cat(list(inputs.all(chunk=4)))
    result = {
        tuple(tokens): p
        for tokens, p in zip(
            inputs.tokens_of(choices).tolist(),
            inputs.log_probability(choices).exp().tolist(),
            strict=True,
        )
    }

    assert inputs.count == 6
    assert result == {
        (one, two): pytest.approx(UNEVEN[0][one] * UNEVEN[1][two])
        for one, two in itertools.product(*UNEVEN)
    }


def test_draws_follow_the_probabilities():
    inputs = TokenInputs.of(UNEVEN)
    drawn = inputs.tokens_of(inputs.draw(40_000, torch.Generator().manual_seed(0)))

    for place, row in enumerate(UNEVEN):
        for token, p in row.items():
            share = float((drawn[:, place] == token).double().mean())
            assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 40_000)


def test_tokens_of_probability_zero_are_left_out():
    assert TokenInputs.of([{1: 0.0, 2: 1.0}]).count == 1


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([{1: 0.5, 2: 0.4}], "position 0: probabilities sum to 0.9, not 1"),
        ([{1: 1.0}, {1: 1.5, 2: -0.5}], "position 1: a probability is negative"),
        ([{1: 1.0}, {}], "position 1: no token has a probability"),
        ([], "no position"),
    ],
)
def test_what_is_no_distribution_is_refused(positions, message):
    with pytest.raises(BadInput, match=message):
        TokenInputs.of(positions)


def test_a_token_given_twice_and_shapes_that_differ_are_refused():
    with pytest.raises(BadInput, match="token is given twice"):
        TokenInputs(torch.tensor([[1, 1]]), torch.tensor([[0.5, 0.5]]))
    with pytest.raises(Mismatch, match="shapes"):
        TokenInputs(torch.tensor([[1, 1]]), torch.tensor([[1.0]]))


def test_tokens_outside_the_vocabulary_are_refused():
    network = tangled()
    with pytest.raises(BadValue, match="token 5 is not in the vocabulary of 5"):
        Problem(network, TokenInputs.uniform(3, range(4)), 5)
    with pytest.raises(BadValue, match="token 9 is not in the vocabulary of 4"):
        Problem(network, TokenInputs.of(UNEVEN + UNEVEN[:1]), 0)


def test_enumeration_is_exact():
    assert sum_of_tokens(8, 22).exact() == pytest.approx(45 / 4**8, rel=1e-10)
    assert float(exact(tangled(), TokenInputs.uniform(3, range(4))).sum()) == pytest.approx(1)
