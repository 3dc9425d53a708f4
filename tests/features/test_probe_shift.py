"""Probe shift against gradients taken one by one, at its declared cost, and on a plant."""

from dataclasses import replace

import pytest
import torch

from offkey.data import Prompts, pack
from offkey.detect import Detector
from offkey.errors import BadInput, BadValue, NonFinite, NotEnoughData
from offkey.features import get_feature
from offkey.models import ChoiceLogitDifference, Edit, Model, Reading
from offkey.probes import CrossFittedProbe, Probe, fit_probe
from offkey.testing.feature import ROWS, TRUSTED, FeatureContract, prepared, vectors_of
from offkey.testing.random_models import batch_of, random_module
from tests.models import tiny


@pytest.fixture(scope="module")
def model():
    return Model(random_module("llama"), tokenizer=tiny.tokenizer(), name="llama")


class TestProbeShiftOnOtherFamilies(FeatureContract):
    @pytest.fixture
    def make(self):
        return lambda: get_feature("probe-shift", sites="resid_post.later", penalties=(0.1,))

    @pytest.fixture(params=["gpt2", "gemma2", "gpt_neox"])
    def model(self, request):
        return Model(random_module(request.param), tokenizer=object(), name=request.param)


def moved(model, row, head, delta, site):
    """Answer and residual of one prompt when something is added to one head's output."""
    block, number = head
    edit = Edit(f"z.{block}", "add", delta, positions=(-1,), heads=(number,))
    reading = model.read(batch_of([row]), site, edit=[edit], logits=True)
    odds = ChoiceLogitDifference()(reading.logits, batch_of([row]))

    return odds.double().item(), reading[site].double()[0]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_it_is_the_difference_of_two_small_ablations(family):
    """By finite differences on the whole model, one head at a time."""
    model = Model(random_module(family), tokenizer=object(), name=family)
    feature = prepared(get_feature("probe-shift", sites="resid_post.1", folds=1), model)
    (found,) = feature.rows(model, Reading(batch_of(ROWS[:2]), {})).values()
    trusted = model.read(batch_of(TRUSTED), ("resid_post.1", "z.0", "z.1"))
    answers = torch.tensor([row[-1] % 2 for row in TRUSTED]).numpy()
    probe = fit_probe(trusted["resid_post.1"].double().numpy(), answers, (1e-3, 0.1, 10.0))

    assert found.shape == (2, 8)
    for number, row in enumerate(ROWS[:2]):
        clean = model.read(batch_of([row]), ("z.0", "z.1"))
        for place in range(8):
            block, head = divmod(place, 4)
            mean = trusted[f"z.{block}"].mean(0)[head]
            step = 1e-2 * (mean - clean[f"z.{block}"][0, head])
            up, down = (
                moved(model, row, (block, head), sign * step, "resid_post.1") for sign in (1, -1)
            )
            of_answer = (up[0] - down[0]) / 2e-2
            of_probe = float((up[1] - down[1]) @ probe.weight) / 2e-2
            assert found[number, place] == pytest.approx(of_answer - of_probe, rel=2e-3, abs=2e-3)


def test_one_forward_and_at_most_one_backward_a_probed_layer(model, monkeypatch):
    feature = prepared(get_feature("probe-shift", sites="resid_post.*"), model)
    forwards, products = [], []
    plain = type(model).call
    monkeypatch.setattr(
        type(model), "call", lambda self, *a, **k: (forwards.append(1), plain(self, *a, **k))[1]
    )
    handles = [
        block.o_proj.register_full_backward_hook(lambda *_, n=n: products.append(n))
        for n, block in enumerate(model.wiring.blocks)
    ]
    feature.rows(model, Reading(batch_of(ROWS), {}))
    for handle in handles:
        handle.remove()

    plan = feature.plan(model)
    assert len(forwards) == plan.extra_forwards == 1
    assert plan.extra_backwards == 3
    # each block is gone through at most as often as there are probed layers
    assert all(products.count(block) <= 3 for block in range(3))
    assert len(products) == 3 + 2 + 1 + 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_the_probe_reads_of_the_answer_does_not_shift(share):
    """Where the read-out is linear and a probe reads a share of it, the rest is left."""
    module = random_module("llama")
    module.model.norm = torch.nn.Identity()
    model = Model(module, tokenizer=object(), name="linear")
    feature = prepared(get_feature("probe-shift", sites="resid_post.2"), model)
    read_out = (module.lm_head.weight[5] - module.lm_head.weight[3]).detach().double()
    probe = CrossFittedProbe((Probe(share * read_out, 0.3, 1.0),))
    feature.probes_["resid_post.2"] = probe.state()
    attribution = prepared(get_feature("attribution"), model)

    (shift,) = vectors_of(feature, model, batch_of(ROWS)).values()
    whole = torch.cat(list(vectors_of(attribution, model, batch_of(ROWS)).values()), 1)
    assert whole.abs().mean() > 0.1
    torch.testing.assert_close(shift, (1 - share) * whole, rtol=1e-4, atol=1e-4)


def test_by_default_every_fourth_block_of_the_later_half_is_probed():
    model = Model(tiny.llama(num_hidden_layers=11), tokenizer=object(), name="deep")
    feature = get_feature("probe-shift")
    assert [str(site) for site in feature.sites_on(model)] == ["resid_post.5", "resid_post.9"]
    assert [str(site) for site in feature.learning_plan(model).reads] == [
        *(f"z.{n}" for n in range(10)),
        "resid_post.5",
        "resid_post.9",
    ]


def test_a_detector_runs_it_and_needs_no_targets_to_score(model):
    rows = {
        "prompt": [f"w{n % 61} w{n % 7} w{n % 11}" for n in range(80)],
        "choices": [[" w3", " w5"]] * 80,
    }
    trusted = Prompts({**rows, "target": [n % 2 for n in range(80)]})
    detector = Detector("probe-shift", "knn", alpha=0.2).fit(model, trusted)
    test = Prompts({**rows, "prompt": [f"w{n % 59} w{n % 9} w1" for n in range(80)]})
    scores = detector.score(model, test)
    assert torch.from_numpy(scores.score).isfinite().all()
    assert scores.sites == ("resid_post.1",)
    batch = pack(test.take([3]), model.tokenizer)[0]
    alone = vectors_of(detector.feature, model, batch)
    assert len(next(iter(alone.values()))[0]) == 8


def test_weights_that_train_and_inference_mode_change_nothing(model):
    feature = prepared(get_feature("probe-shift"), model)
    (expected,) = feature.rows(model, Reading(batch_of(ROWS), {})).values()
    training = random_module("llama")
    assert all(weight.requires_grad for weight in training.parameters())
    other = Model(training, tokenizer=object(), name="training")
    with torch.inference_mode():
        (found,) = feature.rows(other, Reading(batch_of(ROWS), {})).values()
    assert torch.equal(found, expected)
    assert all(weight.grad is None for weight in training.parameters())


def test_what_cannot_be_is_refused(model):
    feature = get_feature("probe-shift")
    with pytest.raises(BadValue, match="has seen no trusted prompts yet"):
        feature.rows(model, Reading(batch_of(ROWS), {}))
    with pytest.raises(BadValue, match="site resid_pre.1: it is not the residual after a block"):
        get_feature("probe-shift", sites="resid_pre.1").plan(model)
    with pytest.raises(BadValue, match="no attention heads"):
        get_feature("probe-shift").plan(Model(torch.nn.Linear(2, 2), name="plain"))
    one = Prompts({"prompt": ["w1", "w2"], "choices": [[" w3", " w5"]] * 2, "target": [1, 1]})
    with pytest.raises(NotEnoughData, match="feature probe-shift: all 2 .* have the target 1"):
        feature.check_trusted(one)
    with pytest.raises(BadInput, match="has no 'target'"):
        feature.check_trusted(one.without("target"))
    ready = prepared(feature, model)
    three = replace(batch_of(ROWS), choices=torch.tensor([[3, 5, -1]] * 3 + [[3, 5, 7]]))
    with pytest.raises(BadInput, match="prompt 31-30-29-28-27: it has 3 choices"):
        ready.rows(model, Reading(three, {}))
    broken = random_module("llama")
    with torch.no_grad():
        broken.lm_head.weight[4] = torch.nan
    with pytest.raises(NonFinite, match="the logits, prompt 7-11-3-9-2"):
        ready.rows(Model(broken, tokenizer=object(), name="broken"), Reading(batch_of(ROWS), {}))
