"""Language models after a fixed prefix."""

import pytest
import torch

from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.estimate.risk import ITGIS, LanguageNetwork, Problem, TokenInputs, exact
from offkey.models import load
from tests.models import tiny

PREFIX = [3, 17, 5, 40]
INPUTS = TokenInputs.of(
    [{1: 0.5, 9: 0.25, 30: 0.25}, {2: 0.9, 8: 0.1}, {k: 0.2 for k in range(5)}]
)


@pytest.fixture(params=[tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def model(request):
    return load(request.param())


def plain(model, tokens):
    """Logits of the whole text, run without any cache."""
    whole = torch.cat([torch.tensor(PREFIX).expand(len(tokens), -1), tokens], 1)
    with torch.no_grad():
        return model.module(input_ids=whole).logits[:, -1]


def test_cached_keys_change_nothing(model):
    network = LanguageNetwork(model, PREFIX)
    tokens = INPUTS.tokens_of(torch.cat(list(INPUTS.all())))
    logits = network.finals(tokens) @ network.weight.T + network.bias

    torch.testing.assert_close(logits, plain(model, tokens), atol=1e-4, rtol=1e-4)


def test_the_tree_comes_to_the_same(model):
    network = LanguageNetwork(model, PREFIX)
    parts = list(network.walk(INPUTS))
    choices = torch.cat([part for part, _ in parts])
    finals = torch.cat([part for _, part in parts])

    assert torch.equal(choices, torch.cat(list(INPUTS.all())))
    torch.testing.assert_close(
        finals, network.finals(INPUTS.tokens_of(choices)), atol=1e-4, rtol=1e-4
    )


def test_few_nodes_at_a_time_come_to_the_same(model, monkeypatch):
    network = LanguageNetwork(model, PREFIX)
    whole = torch.cat([finals for _, finals in network.walk(INPUTS)])
    monkeypatch.setattr("offkey.estimate.risk.language._NODES", 2)

    torch.testing.assert_close(
        torch.cat([finals for _, finals in network.walk(INPUTS)]), whole, atol=1e-4, rtol=1e-4
    )


def test_gradients_agree_with_finite_differences():
    """One token is moved a little towards another; Llama's norms would compute in float32."""
    model = load(tiny.gpt2().double())
    network = LanguageNetwork(model, PREFIX)
    tokens = INPUTS.tokens_of(torch.cat(list(INPUTS.all())))[4:5]
    result = network.gradients(tokens, 7, INPUTS.tokens)
    embedding = model.wiring.embedding.weight
    whole = torch.cat([torch.tensor([PREFIX]), tokens], 1)
    for place in range(3):
        for column in range(INPUTS.sizes[place]):
            moved = []
            for step in (1e-5, -1e-5):
                embedded = embedding[whole].clone()
                embedded[0, 4 + place] += step * embedding[INPUTS.tokens[place, column]]
                with torch.no_grad():
                    moved.append(model.module(inputs_embeds=embedded).logits[0, -1, 7])
            slope = float(moved[0] - moved[1]) / 2e-5
            assert float(result.gradient[0, place, column]) == pytest.approx(slope, rel=1e-5)


def test_a_rare_token_is_found(model):
    network = LanguageNetwork(model, PREFIX)
    truth = exact(network, INPUTS)
    rare = int(torch.where(truth > 0, truth, 1.0).argmin())
    result = ITGIS(2.0, samples=4000, batch=200)(Problem(network, INPUTS, rare), seed=0)

    assert 0 < float(truth[rare]) < 0.5
    assert abs(result.value - float(truth[rare])) < 5 * result.error


def test_what_cannot_be_asked_is_refused(model):
    with pytest.raises(BadInput, match="prefix is empty"):
        LanguageNetwork(model, [])
    with pytest.raises(BadValue, match="not in the vocabulary of 64"):
        LanguageNetwork(model, [3, 64])
    with pytest.raises(UnmappedModel):
        LanguageNetwork(load(torch.nn.Sequential(torch.nn.Linear(2, 2))), PREFIX)
