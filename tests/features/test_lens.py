"""The trajectory of the logit lens against the whole unembedding, layer by layer."""

import math

import pytest
import torch

from offkey.data import Batch
from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.features import get_feature
from offkey.models import Model, Site
from offkey.testing.feature import ROWS, FeatureContract, vectors_of
from offkey.testing.random_models import DETECTED, FAMILIES, batch_of, random_module

LOGITS = Site("logits")
_KEPT = {}


def model_of(family):
    if family not in _KEPT:
        _KEPT[family] = Model(random_module(family), tokenizer=object(), name=family)
    return _KEPT[family]


def full_lens(model, row):
    """Every layer's logits over the whole vocabulary, from the model's own modules."""
    hidden = model.read(batch_of([row]), "resid_post.*")
    head, cap = model.wiring.unembedding, model.wiring.softcap
    for value in hidden.values.values():
        with torch.no_grad():
            logits = head(model.wiring.final_norm(value))[0]
        yield cap * torch.tanh(logits / cap) if cap else logits


class TestLogProbabilities(FeatureContract):
    @pytest.fixture
    def make(self):
        return lambda: get_feature(
            "lens", sites=("resid_pre.1", "resid_post.*"), quantity="log-probabilities"
        )

    @pytest.fixture(params=["gpt2", "gemma2"])
    def model(self, request):
        return model_of(request.param)


@pytest.mark.parametrize("family", [*FAMILIES, *DETECTED])
def test_it_is_the_full_lens_at_the_choices(family):
    model = model_of(family)
    odds = vectors_of(get_feature("lens"), model, batch_of(ROWS))[LOGITS]
    feature = get_feature("lens", quantity="log-probabilities")
    logp = vectors_of(feature, model, batch_of(ROWS))[LOGITS]

    assert odds.shape == (4, model.n_blocks)
    assert logp.shape == (4, 2 * model.n_blocks)
    for number, row in enumerate(ROWS):
        for layer, logits in enumerate(full_lens(model, row)):
            assert odds[number, layer] == pytest.approx(
                float(logits[5] - logits[3]), rel=1e-4, abs=1e-4
            )
            p = logits.double().softmax(-1)
            for place, token in enumerate((3, 5)):
                expected = math.log(float(p[token] / (p[3] + p[5])))
                assert logp[number, 2 * layer + place] == pytest.approx(
                    expected, rel=1e-4, abs=1e-4
                )


@pytest.mark.parametrize("family", [*FAMILIES, *DETECTED])
def test_after_the_last_layer_it_is_the_models_own_answer(family):
    model, batch = model_of(family), batch_of(ROWS)
    odds = vectors_of(get_feature("lens"), model, batch)[LOGITS]
    logits = model.read(batch, (), logits=True).logits
    torch.testing.assert_close(odds[:, -1], logits[:, 5] - logits[:, 3], rtol=1e-4, atol=1e-4)


def test_it_runs_the_model_once_and_never_the_whole_unembedding(monkeypatch):
    model, seen = model_of("llama"), []
    call = type(model).call
    monkeypatch.setattr(
        type(model), "call", lambda self, *a, **k: (seen.append(1), call(self, *a, **k))[1]
    )

    def refuse(*_):
        raise AssertionError("the whole vocabulary was computed")

    handle = model.wiring.unembedding.register_forward_pre_hook(refuse)
    vectors_of(get_feature("lens"), model, batch_of(ROWS))
    handle.remove()
    assert len(seen) == 1


def with_choices(choices):
    batch = batch_of(ROWS)
    fields = {"mask": batch.mask, "positions": batch.positions, "roles": batch.roles}
    choices = None if choices is None else torch.tensor(choices)
    return Batch(batch.inputs, batch.ids, **fields, choices=choices)


def test_prompts_with_two_and_with_three_choices_may_be_mixed():
    model, feature = model_of("llama"), get_feature("lens")
    mixed = with_choices([[3, 5, -1], [3, 9, 5], [7, -1, 2], [3, 5, -1]])
    found = vectors_of(feature, model, mixed)[LOGITS]
    for number, (row, (first, last)) in enumerate(
        zip(ROWS, [(3, 5), (3, 5), (7, 2), (3, 5)], strict=True)
    ):
        for layer, logits in enumerate(full_lens(model, row)):
            assert found[number, layer] == pytest.approx(
                float(logits[last] - logits[first]), rel=1e-4, abs=1e-4
            )
    with pytest.raises(BadInput, match="prompt 7-11-3-9-2: it has fewer choices than others"):
        vectors_of(get_feature("lens", quantity="log-probabilities"), model, mixed)


@pytest.mark.parametrize("choices", [None, [[3, 5], [-1, 5], [3, 5], [3, 5]]])
def test_prompts_without_choices_are_refused(choices):
    with pytest.raises(BadInput, match=r"prompt .*two choices or more, and it has [01]"):
        vectors_of(get_feature("lens"), model_of("llama"), with_choices(choices))


def test_what_cannot_be_is_refused():
    with pytest.raises(BadValue, match="quantity: 'odds' is not allowed"):
        get_feature("lens", quantity="odds")
    with pytest.raises(BadValue, match="site z.0: the lens reads residuals only"):
        get_feature("lens", sites="z.0").plan(model_of("llama"))
    with pytest.raises(BadValue, match="a plain module has no named sites"):
        get_feature("lens").plan(Model(torch.nn.Linear(2, 2), name="plain"))
    module = random_module("llama")
    module.lm_head = torch.nn.Sequential(module.lm_head)
    with pytest.raises(UnmappedModel, match="plain unembedding, and this model has a Sequential"):
        get_feature("lens").plan(Model(module, name="wrapped"))
