"""Attribution against true ablation, slow loops over heads, and its promised cost."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from offkey.data import Prompts
from offkey.detect import DetectionRun, Detector, Session
from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData, UnknownName
from offkey.features import get_feature
from offkey.models import ChoiceLogitDifference, Edit, Model, Reading
from offkey.passes import Plan, readings
from offkey.testing.feature import ROWS, TRUSTED, prepared, vectors_of
from offkey.testing.random_models import batch_of, random_module
from tests.models import tiny

DIRECTIONS = ("mean", "zero", "pcs", "grad-norm")
PROJECTION = {
    "llama": lambda module, block: module.model.layers[block].self_attn.o_proj,
    "gpt2": lambda module, block: module.transformer.h[block].attn.c_proj,
}
HEADS, BLOCKS = 4, 3


@pytest.fixture(scope="module")
def linear():
    """One block whose output is linear in what the heads hand over: no MLP, no last norm."""
    module = tiny.llama(num_hidden_layers=1)
    nn.init.zeros_(module.model.layers[0].mlp.down_proj.weight)
    module.model.norm = nn.Identity()
    return Model(module, tokenizer=tiny.tokenizer(), name="linear")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return Model(random_module(family), tokenizer=tiny.tokenizer(), name=family)


def _answer(model, edits=()):
    return model.read(batch_of(ROWS), (), metric=ChoiceLogitDifference(), edit=edits).metric


def _usual(model, direction):
    return prepared(get_feature("attribution", direction=direction), model)


def _trusted_values(model, site):
    """Every trusted prompt's value at the heads, each read alone."""
    return torch.stack([model.read(batch_of([row]), site)[site][0] for row in TRUSTED])


@pytest.mark.parametrize("direction", ["mean", "zero"])
def test_it_is_true_ablation_where_the_answer_is_linear_in_the_heads(linear, direction):
    [found] = vectors_of(_usual(linear, direction), linear, batch_of(ROWS)).values()
    mean = _trusted_values(linear, "z.0").mean(0)
    value = mean if direction == "mean" else torch.zeros_like(mean)
    before = _answer(linear)

    for head in range(HEADS):
        edit = Edit("z.0", "replace", value, positions="last", heads=(head,))
        after = _answer(linear, [edit])
        torch.testing.assert_close(found[:, head], after - before, rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 0.01


def test_moving_a_component_of_one_head_is_true_where_the_answer_is_linear(linear):
    [found] = vectors_of(_usual(linear, "pcs"), linear, batch_of(ROWS)).values()
    trusted = _trusted_values(linear, "z.0")
    z = linear.read(batch_of(ROWS), "z.0")["z.0"]
    mean, components = _components(trusted)
    before = _answer(linear)

    for number in (0, 3, 9):
        v = components[number]
        step = ((mean - z) * v).sum((1, 2))[:, None, None] * v
        for head in range(HEADS):
            edit = Edit(
                "z.0", "add", step, positions="last", heads=(head,), ids=batch_of(ROWS).ids
            )
            gained = _answer(linear, [edit]) - before
            torch.testing.assert_close(found[:, 10 * head + number], gained, rtol=1e-4, atol=1e-5)


def _components(trusted):
    """Mean and ten principal components, by a singular value decomposition of all rows."""
    mean = trusted.double().mean(0)
    _, _, right = torch.linalg.svd((trusted.double() - mean).flatten(1), full_matrices=False)
    return mean.float(), right[:10].view(10, *mean.shape).float()


def _alone(module, family, row):
    """Head values and gradients of one unpadded prompt, without any of offkey."""
    kept, handles = [], []

    def keep(_, args):
        args[0].retain_grad()
        kept.append(args[0])

    for block in range(BLOCKS):
        handles.append(PROJECTION[family](module, block).register_forward_pre_hook(keep))
    logits = module(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
    (logits[5] - logits[3]).backward()
    for handle in handles:
        handle.remove()
    module.zero_grad()

    return [(x.detach()[0, -1].view(HEADS, -1), x.grad[0, -1].view(HEADS, -1)) for x in kept]


def _by_loops(direction, z, g, trusted):
    told = []
    mean, components = _components(trusted)
    for head in range(HEADS):
        if direction == "mean":
            told.append(float((mean[head] - z[head]) @ g[head]))
        elif direction == "zero":
            told.append(float(-z[head] @ g[head]))
        elif direction == "grad-norm":
            told.append(float(sum(x * x for x in g[head].tolist())))
        else:
            for v in components:
                moved = (float((mean * v).sum()) - float((z * v).sum())) * v
                told.append(float(moved[head] @ g[head]))

    return torch.tensor(told)


def test_it_is_what_loops_over_heads_and_prompts_give(model, family):
    batch, given = batch_of(ROWS), {}
    for direction in DIRECTIONS:
        feature = _usual(model, direction)
        given[direction] = vectors_of(feature, model, batch)
        assert feature.learns == (direction in ("mean", "pcs"))
    usual = [_alone(model.module, family, row) for row in TRUSTED]

    for number, row in enumerate(ROWS):
        for block, (z, g) in enumerate(_alone(model.module, family, row)):
            trusted = torch.stack([told[block][0] for told in usual])
            for direction in DIRECTIONS:
                found = given[direction][model.site(f"z.{block}")][number]
                slow = _by_loops(direction, z, g, trusted)
                assert found.shape == slow.shape
                assert (found - slow).norm() <= 1e-4 * slow.norm(), (direction, block)


def test_components_that_do_not_vary_are_left_as_zeros(linear):
    feature = get_feature("attribution", direction="pcs", components=4)
    batch = batch_of([TRUSTED[0], TRUSTED[1], TRUSTED[0]] * 3)
    feature.learn(linear, [linear.read(batch, "z.0")])
    [found] = vectors_of(feature, linear, batch_of(ROWS)).values()

    told = found.view(len(ROWS), HEADS, 4)
    assert told[:, :, 0].abs().min() > 0
    assert torch.equal(told[:, :, 1:], torch.zeros(len(ROWS), HEADS, 3))


def _prompts(count, start=0, choices=True):
    texts = [" ".join(f"w{(7 * i + j * j) % 60}" for j in range(5)) for i in range(start, count)]
    columns = {"prompt": texts, "id": [f"p{i}" for i in range(start, count)]}
    if choices:
        columns["choices"] = [[" w3", " w5"]] * len(texts)
    return Prompts(columns)


@pytest.fixture
def counted(monkeypatch):
    """Counts forward and backward passes."""
    calls = {"forward": 0, "backward": 0}
    call, grad = Model.call, torch.autograd.grad

    def forwards(*args, **kwargs):
        calls["forward"] += 1
        return call(*args, **kwargs)

    def backwards(*args, **kwargs):
        calls["backward"] += 1
        return grad(*args, **kwargs)

    monkeypatch.setattr(Model, "call", forwards)
    monkeypatch.setattr(torch.autograd, "grad", backwards)
    return calls


@pytest.fixture(scope="module")
def small():
    return Model(tiny.llama(), tokenizer=tiny.tokenizer(), name="small")


def _lineup():
    made = [
        Detector(
            get_feature("attribution", direction=direction, components=3),
            "mahalanobis-diagonal",
            alpha=0.2,
            name=f"attribution {direction}",
        )
        for direction in DIRECTIONS
    ]
    return [*made, Detector("activations", "mahalanobis-diagonal", alpha=0.2)]


def test_all_directions_and_activations_share_one_forward_and_one_backward(small, counted):
    detectors = _lineup()
    Session(small).fit(detectors, _prompts(60))
    # one forward pass to learn from, then one of each kind to record
    assert counted == {"forward": 2, "backward": 1}

    told = Session(small).score(detectors, _prompts(80, start=60))
    assert counted == {"forward": 3, "backward": 2}
    assert all(len(scores) == 20 for scores in told)

    plan = Plan.union(detector.feature.plan(small) for detector in detectors)
    assert (plan.extra_forwards, plan.extra_backwards) == (0, 0)


def test_the_cost_is_told_and_the_detector_is_kept(small, tmp_path):
    detectors = _lineup()
    run = DetectionRun(small, detectors, _prompts(60), _prompts(80, start=60), quiet=True)
    metrics = run.run(tmp_path / "run")
    costs = [row.cost for row in metrics.detectors]
    assert costs == ["1 forward, 1 backward"] * 4 + ["1 forward"]

    test = _prompts(80, start=60)
    for detector in detectors:
        again = Detector.load(tmp_path / "run" / "detector" / detector.name.replace("/", "-"))
        assert (
            again.score(small, test).score.tolist() == detector.score(small, test).score.tolist()
        )


def test_prompts_without_choices_are_refused_before_the_model_runs(linear, counted):
    trusted = Prompts.concat([_prompts(7), _prompts(60, start=7, choices=False)])
    with pytest.raises(BadInput, match="prompt p7 has no 'choices'"):
        Detector("attribution", alpha=0.2).fit(linear, trusted)
    run = DetectionRun(
        linear,
        [Detector("attribution", alpha=0.2)],
        _prompts(60),
        _prompts(80, start=60, choices=False),
    )
    with pytest.raises(BadInput, match="prompt p60 has no 'choices'"):
        run.check()
    feature = get_feature("attribution")
    with pytest.raises(BadInput, match="Give every prompt the column 'choices'"):
        next(readings(linear, trusted, feature.plan(linear)))

    assert counted["forward"] == 0


def test_prompts_without_choices_may_be_attributed_to_the_likeliest_token(linear):
    feature = get_feature("attribution", direction="zero", metric="top")
    [reading] = readings(linear, _prompts(4, choices=False), feature.plan(linear))
    z = reading["z.0"]
    tokens = reading.batch.inputs["input_ids"]
    with torch.no_grad():
        logp = linear.module(tokens).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(reading.metric, logp.amax(-1))
    [found] = feature.rows(linear, reading).values()
    [grads] = reading.grads.values()
    torch.testing.assert_close(found, -(z * grads).sum(-1))


def test_models_to_which_it_does_not_apply(linear):
    feature = get_feature("attribution")
    with pytest.raises(BadValue, match="no attention heads that are known"):
        feature.plan(Model(nn.Linear(2, 2), name="plain"))
    with pytest.raises(BadValue, match="the model has no unembedding"):
        feature.plan(Model(tiny.llama().model, name="bare"))
    with torch.inference_mode():
        made = tiny.llama()
    with pytest.raises(BadValue, match="weights were made in inference mode"):
        feature.plan(Model(made, name="frozen"))
    packed = tiny.llama()
    packed.hf_quantizer = SimpleNamespace(
        is_trainable=False, quantization_config=SimpleNamespace(quant_method="awq")
    )
    with pytest.raises(BadValue, match="gradients of packed cannot be had"):
        feature.plan(Model(packed, name="packed"))
    packed.hf_quantizer.quantization_config.quant_method = "gguf"
    assert feature.plan(Model(packed, name="packed")).gradients


def test_settings_that_cannot_be(linear):
    with pytest.raises(UnknownName, match="unknown direction 'zeros'.*") as told:
        get_feature("attribution", direction="zeros")
    assert "Did you mean zero?" in str(told.value)
    with pytest.raises(UnknownName, match="unknown metric 'margin'"):
        get_feature("attribution", metric="margin")
    with pytest.raises(BadValue, match="at least 1"):
        get_feature("attribution", components=0)
    with pytest.raises(BadValue, match="is not the place of heads"):
        get_feature("attribution", sites="resid_post.*").plan(linear)
    with pytest.raises(BadValue, match="no 33 components"):
        get_feature("attribution", direction="pcs", components=33).plan(linear)


def test_what_was_not_learned_from_these_heads_is_said(linear):
    feature = get_feature("attribution")
    with pytest.raises(BadValue, match=r"seen no trusted prompts yet at z\.0"):
        vectors_of(feature, linear, batch_of(ROWS))
    pcs = get_feature("attribution", direction="pcs")
    with pytest.raises(NotEnoughData, match="10 trusted prompts, and 10 components"):
        pcs.learn(linear, [linear.read(batch_of(TRUSTED[:10]), "z.0")])
    prepared(feature, linear)
    site = linear.site("z.0")
    wide = Reading(batch_of(ROWS), {site: torch.ones(4, 4, 9)}, {site: torch.ones(4, 4, 9)})
    with pytest.raises(Mismatch, match="mean has 32 numbers"):
        feature.rows(linear, wide)
