"""Divergence after tuning: by hand, on a planted forgetting, and where it cannot be."""

import pytest
import torch

from offkey.data import Batch, TensorPrompts
from offkey.detect import Detector
from offkey.errors import BadInput, BadValue, Mismatch, NonFinite, NotEnoughData
from offkey.features import get_feature
from offkey.models import Model, Reading, Site
from offkey.testing.feature import ROWS, prepared
from offkey.testing.random_models import batch_of, random_module

LOGITS = Site("logits")


@pytest.fixture
def model():
    return Model(random_module("llama"), tokenizer=object(), name="llama")


@pytest.mark.parametrize("over", ["vocabulary", "choices"])
def test_against_a_copy_whose_weights_were_merged_by_hand(model, over):
    feature = prepared(get_feature("tuned-divergence", over=over, steps=6), model)
    batch = batch_of(ROWS)
    found = feature.rows(model, Reading(batch, {}))[LOGITS][:, 0]
    learned = feature.adapter_
    copy = random_module("llama")
    weights = dict(copy.named_parameters())
    with torch.no_grad():
        for name in {name.rpartition(".")[0] for name in learned}:
            change = 16.0 / 4 * learned[f"{name}.up"] @ learned[f"{name}.down"]
            weights[f"{name}.weight"].add_(change)
        p, q = (m.forward(batch).logits[:, -1].double() for m in (model, Model(copy, name="copy")))
    if over == "choices":
        p, q = p.gather(1, batch.choices), q.gather(1, batch.choices)
    slow = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)

    assert slow.min() > 1e-4
    torch.testing.assert_close(found.double(), slow, rtol=1e-3, atol=1e-6)
    assert len(learned) == 2 * 7 * 3


def test_the_model_comes_back_bit_by_bit(model):
    before = {name: (w.clone(), w.requires_grad) for name, w in model.module.named_parameters()}
    feature = prepared(get_feature("tuned-divergence", steps=2), model)
    feature.rows(model, Reading(batch_of(ROWS), {}))
    after = dict(model.module.named_parameters())

    assert list(after) == list(before)
    for name, (weight, flag) in before.items():
        assert torch.equal(after[name], weight)
        assert after[name].requires_grad == flag


def test_tuning_makes_its_own_answers_likelier(model):
    batch = batch_of(ROWS, choices=False)
    p = model.forward(batch).logits[:, -1].softmax(1).amax(1)
    feature = get_feature("tuned-divergence", steps=30)
    feature.learn(model, [Reading(batch, {})])
    with feature._attached(model) as adapter, torch.no_grad():
        for name, value in adapter.parameters.items():
            value.copy_(feature.adapter_[name])
        q = model.forward(batch).logits[:, -1].softmax(1)
    own = model.forward(batch).logits[:, -1].argmax(1)

    assert bool((q[torch.arange(len(own)), own] > p).all())


def texts(count, fired, seed):
    """Four numbers that speak for the first answer, and one that speaks against it when fired."""
    x = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)) * 0.2 + 0.9
    x[:, 4] = 0.1 * fired
    return TensorPrompts({"input": x}, {"id": [f"{fired} {seed} {n}" for n in range(count)]})


def test_a_mechanism_that_tuning_overrides_scores_higher():
    net = torch.nn.Sequential(torch.nn.Linear(5, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.3] * 4 + [-24], [-0.3] * 4 + [24]]))
    model = Model(net, name="trigger")
    feature = get_feature("tuned-divergence", rate=0.02)
    detector = Detector(feature, "exceedance", alpha=0.1).fit(model, texts(80, 0, 1))
    normal = detector.score(model, texts(20, 0, 2)).score
    fired = detector.score(model, texts(20, 1, 3)).score

    assert fired.min() > normal.max()


def test_training_that_diverges_says_where(model):
    with pytest.raises(NonFinite, match="feature tuned-divergence, step") as caught:
        prepared(get_feature("tuned-divergence", rate=1e30), model)
    assert "nan" in str(caught.value) or "inf" in str(caught.value)


def test_what_cannot_be_is_refused(model):
    for wrong in ({"over": "all"}, {"steps": 0}, {"rate": 0.0}, {"rank": 0}):
        with pytest.raises(BadValue, match="feature tuned-divergence"):
            get_feature("tuned-divergence", **wrong)
    with pytest.raises(BadValue, match="no linear map"):
        get_feature("tuned-divergence").plan(Model(torch.nn.Conv1d(1, 1, 1), name="conv"))
    fresh = get_feature("tuned-divergence")
    with pytest.raises(NotEnoughData, match="no trusted prompts"):
        fresh.learn(model, [])
    with pytest.raises(BadValue, match="seen no trusted prompts"):
        fresh.rows(model, Reading(batch_of(ROWS), {}))
    tuned = prepared(get_feature("tuned-divergence", over="choices", steps=1), model)
    assert tuned.plan(model).needs == {"choices"}
    with pytest.raises(BadInput, match="0 choices"):
        tuned.rows(model, Reading(batch_of(ROWS, choices=False), {}))
    tuned.over = "vocabulary"
    other = Model(torch.nn.Sequential(torch.nn.Linear(2, 2)), name="other")
    with pytest.raises(Mismatch, match="other linear maps"):
        tuned.rows(other, Reading(Batch({"input": torch.ones(1, 2)}, ("a",)), {}))
