"""Each feature against a slow, obvious computation, and on planted outputs."""

import math
from collections import Counter

import pytest
import torch

from offkey.data import Batch
from offkey.errors import BadValue, UnknownName
from offkey.features import get_feature
from offkey.models import Model, Reading, Site
from offkey.testing.feature import ROWS, vectors_of
from offkey.testing.random_models import batch_of, random_module
from tests.models import tiny


@pytest.fixture(scope="module")
def model():
    return Model(random_module("llama"), tokenizer=tiny.tokenizer(), name="llama")


def _alone(model, row):
    """Hidden states and next-token probabilities of one unpadded prompt, by transformers."""
    with torch.no_grad():
        told = model.module(
            input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False
        )
    logits = told.logits[0, -1].double().tolist()
    most = max(logits)
    total = sum(math.exp(value - most) for value in logits)
    return told.hidden_states, [math.exp(value - most) / total for value in logits]


def _output(name, model, batch):
    return vectors_of(get_feature(name), model, batch)[Site("logits")][:, 0].tolist()


def test_entropy_is_the_sum_of_its_definition(model):
    found = _output("entropy", model, batch_of(ROWS))

    for row, entropy in zip(ROWS, found, strict=True):
        _, p = _alone(model, row)
        assert entropy == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-5)


def test_max_probability_is_that_of_the_likeliest_token(model):
    found = _output("max-probability", model, batch_of(ROWS))

    for row, value in zip(ROWS, found, strict=True):
        assert value == pytest.approx(max(_alone(model, row)[1]), rel=1e-5)


def test_own_answer_loss_takes_the_preferred_choice(model):
    found = _output("own-answer-loss", model, batch_of(ROWS))

    for row, loss in zip(ROWS, found, strict=True):
        _, p = _alone(model, row)
        assert loss == pytest.approx(-math.log(max(p[3], p[5])), rel=1e-5)


def test_own_answer_loss_without_choices_takes_the_likeliest_token(model):
    found = _output("own-answer-loss", model, batch_of(ROWS, choices=False))

    for row, loss in zip(ROWS, found, strict=True):
        assert loss == pytest.approx(-math.log(max(_alone(model, row)[1])), rel=1e-5)


@pytest.mark.parametrize("over", ["choices", "vocabulary"])
def test_energy_is_the_sum_of_its_definition(model, over):
    feature = get_feature("energy", over=over)
    found = vectors_of(feature, model, batch_of(ROWS))[Site("logits")][:, 0].tolist()

    for row, energy in zip(ROWS, found, strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([row])).logits[0, -1].tolist()
        some = [logits[3], logits[5]] if over == "choices" else logits
        expected = -math.log(sum(math.exp(value) for value in some))
        assert energy == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_energy_of_rows_with_and_without_choices():
    reading = _planted([[0.0, 0.0, 0.0, 9.0]] * 3, [[0, 1, -1], [0, 1, 2], [-1, -1, -1]])

    [energy] = get_feature("energy").rows(None, reading).values()

    whole = -math.log(3 + math.exp(9))
    assert energy[:, 0].tolist() == pytest.approx([-math.log(2), -math.log(3), whole])
    with pytest.raises(BadValue, match="feature energy, over: 'all' is not allowed"):
        get_feature("energy", over="all")


def _planted(logits, choices=None):
    logits = torch.tensor(logits)
    batch = Batch(
        {"input_ids": torch.zeros(len(logits), 1, dtype=torch.long)},
        ids=tuple(str(i) for i in range(len(logits))),
        choices=None if choices is None else torch.tensor(choices),
    )
    return Reading(batch, {}, logits=logits)


@pytest.mark.parametrize(
    ("name", "uniform", "sure"),
    [
        ("entropy", math.log(4), 0.0),
        ("max-probability", 0.25, 1.0),
        ("own-answer-loss", math.log(4), 0.0),
    ],
)
def test_outputs_of_known_value(name, uniform, sure):
    [value] = get_feature(name).rows(None, _planted([[0.0] * 4, [0.0, 200.0, 0.0, 0.0]])).values()

    assert value[:, 0].tolist() == pytest.approx([uniform, sure], abs=1e-6)


def test_rows_with_and_without_choices_may_be_mixed():
    logits = [[math.log(x) for x in (0.1, 0.2, 0.3, 0.4)]] * 3
    reading = _planted(logits, [[0, 1, -1], [0, 1, 2], [-1, -1, -1]])

    [loss] = get_feature("own-answer-loss").rows(None, reading).values()

    assert loss[:, 0].tolist() == pytest.approx([-math.log(x) for x in (0.2, 0.3, 0.4)])


def test_output_features_want_logits():
    with pytest.raises(TypeError, match="without logits"):
        get_feature("entropy").rows(None, Reading(batch_of(ROWS), {}))


@pytest.mark.parametrize("bins", [1, 7, 256])
def test_bag_of_words_counts_each_token_into_its_bin(model, bins):
    [found] = vectors_of(get_feature("bag-of-words", bins=bins), model, batch_of(ROWS)).values()

    for row, counts in zip(ROWS, found.tolist(), strict=True):
        expected = Counter((token * 48_271 % (2**31 - 1)) % bins for token in row)
        assert counts == [expected.get(number, 0) for number in range(bins)]


def test_bag_of_words_knows_no_order_and_no_padding(model):
    twice = [(5, 6, 6, 7), (7, 6, 5, 6)]
    [found] = vectors_of(get_feature("bag-of-words"), model, batch_of(twice, width=9)).values()

    assert torch.equal(found[0], found[1])
    assert found.sum(1).tolist() == [4, 4]


def test_length_is_the_number_of_tokens(model):
    [found] = vectors_of(get_feature("length"), model, batch_of(ROWS, width=12)).values()

    assert found[:, 0].tolist() == [len(row) for row in ROWS]


def test_activations_are_the_hidden_states_of_transformers(model):
    feature = get_feature("activations", sites="resid_pre.0, resid_post.*")
    found = vectors_of(feature, model, batch_of(ROWS))

    for number, row in enumerate(ROWS):
        hidden, _ = _alone(model, row)
        for site, value in found.items():
            block = 0 if site.kind == "resid_pre" else site.block + 1
            if site.kind == "resid_post" and block == model.n_blocks:
                continue  # transformers gives the last one after the norm
            expected = hidden[block][0, -1]
            assert (value[number] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("positions", ["last", "mean", (-1,), (-2, -1)])
def test_activations_at_positions_are_those_of_all_tokens_reduced(model, positions):
    feature = get_feature("activations", sites="resid_post.1, z.2", positions=positions)
    found = vectors_of(feature, model, batch_of(ROWS))

    for number, row in enumerate(ROWS):
        every = model.read(batch_of([row]), feature.plan(model).reads, positions="all")
        for site, value in found.items():
            tokens = every[site][0].flatten(1)
            if positions == "mean":
                expected = sum(tokens) / len(tokens)
            elif positions == "last":
                expected = tokens[-1]
            else:
                expected = torch.cat([tokens[place] for place in positions])
            assert (value[number] - expected).norm() <= 1e-5 * expected.norm(), site


def test_what_cannot_be_is_refused(model):
    blind = Model(torch.nn.Linear(2, 2), name="plain")
    for name in ("bag-of-words", "length"):
        with pytest.raises(BadValue, match=f"feature {name}: counts tokens"):
            get_feature(name).plan(blind)
    with pytest.raises(BadValue, match="bins: must be at least 1"):
        get_feature("bag-of-words", bins=0).plan(model)
    with pytest.raises(UnknownName, match="unknown feature 'entropie'"):
        get_feature("entropie")
    with pytest.raises(BadValue, match="activations: unknown setting 'site'"):
        get_feature("activations", site="final")
    with pytest.raises(UnknownName, match="resid_pots"):
        get_feature("activations", sites="resid_pots.1").plan(model)
