"""Functional attribution: against losses by hand, gradients by hand, and a chain's known law."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from offkey.data import Batch, TensorPrompts, pack
from offkey.detect import Detector
from offkey.errors import BadValue, NonFinite, NotEnoughData
from offkey.features import get_feature
from offkey.features.functional import Functional
from offkey.models import Model, Reading, Site
from offkey.sensitivity import GradientKernel, Langevin, LangevinKernel, WeightNoiseKernel
from offkey.sensitivity import kernels as room
from offkey.testing.feature import ROWS, prepared
from offkey.testing.random_models import batch_of, random_module
from offkey.volume import Noise, later_half

LOGITS, ANSWER = Site("logits"), Site("module", path="answer")


@pytest.fixture
def model():
    return Model(random_module("llama"), tokenizer=object(), name="llama")


@pytest.fixture
def softmax():
    """A softmax regression whose loss has the gradient (p - y) x' in its weights."""
    torch.manual_seed(0)
    return Model(torch.nn.Linear(6, 4), name="softmax")


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(1)
    return Batch({"input": torch.randn(8, 6, generator=generator)}, tuple("abcdefgh"))


def gradients_by_hand(model, points):
    x = points.inputs["input"]
    weight, bias = model.module.weight.detach(), model.module.bias.detach()
    p = (x @ weight.T + bias).softmax(1)
    error = p - torch.nn.functional.one_hot(p.argmax(1), 4)
    sizes = [float(w.square().mean().sqrt()) for w in (weight, bias)]
    outer = torch.einsum("no,ni->noi", error, x).flatten(1)

    return torch.cat([outer * sizes[0], error * sizes[1]], dim=1).double()


def correlations(rows):
    return torch.from_numpy(np.corrcoef(rows.double().numpy()))


def test_small_noise_orders_prompts_as_their_gradients_do(softmax, points):
    g = gradients_by_hand(softmax, points)
    exact = cosine_similarity(g[:, None], g[None], dim=-1)
    traces, _ = WeightNoiseKernel(draws=1500, scale=1e-3).rows(softmax, points)
    sketches, _ = GradientKernel(width=2).rows(softmax, points)

    # A correlation of 1500 draws is off by about (1 - r²)/√1500.
    assert (correlations(traces) - exact).abs().max() < 0.1
    assert sketches.shape == (8, 2)


def test_sketches_keep_the_gradients_inner_products(softmax, points):
    g = gradients_by_hand(softmax, points)
    exact = g @ g.T
    estimates = torch.stack(
        [
            (r := GradientKernel(16, seed).rows(softmax, points)[0].double()) @ r.T
            for seed in range(100)
        ]
    )
    error = (estimates.mean(0) - exact) / estimates.std(0).clamp(min=1e-9) * 10

    assert error.abs().max() < 4.5


def test_a_sketch_as_wide_as_the_weights_is_exact(points):
    torch.manual_seed(0)
    model = Model(torch.nn.Linear(6, 4, bias=False), name="softmax")
    with torch.no_grad():
        model.module.weight.div_(model.module.weight.square().mean().sqrt())
    x = points.inputs["input"]
    p = (x @ model.module.weight.T).softmax(1)
    g = torch.einsum("no,ni->noi", p - torch.nn.functional.one_hot(p.argmax(1), 4), x).flatten(1)
    sketches, _ = GradientKernel(width=24).rows(model, points)

    torch.testing.assert_close(sketches @ sketches.T, g @ g.T, rtol=1e-5, atol=1e-6)


def test_the_two_kernels_agree_on_a_language_model(model):
    batch = batch_of([tuple((5 * i + j * j) % 60 + 1 for j in range(6)) for i in range(7)])
    traces, _ = WeightNoiseKernel(draws=300, scale=1e-3).rows(model, batch)
    sketches, _ = GradientKernel(width=8192).rows(model, batch)

    assert (correlations(traces) - correlations(sketches)).abs().max() < 0.22


def test_a_trace_is_the_loss_of_the_own_answer_at_moved_weights(model):
    batch = batch_of(ROWS)
    found, classes = WeightNoiseKernel(draws=2, scale=0.1, seed=3).rows(model, batch)
    _, names = later_half(model)
    weights = dict(model.module.named_parameters())
    answers = model.forward(batch).logits[:, -1].gather(1, batch.choices).argmax(1)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for draw in range(2):
        with torch.no_grad():
            for name in names:
                w = before[name]
                xi = Noise(3, draw).normals(name, 0, w.numel()).view(w.shape)
                weights[name].copy_(w + 0.1 * w.square().mean().sqrt() * xi)
            logits = model.forward(batch).logits[:, -1]
            for name, w in before.items():
                weights[name].copy_(w)
        own = batch.choices.gather(1, answers[:, None])[:, 0]
        expected = cross_entropy(logits, own, reduction="none")
        torch.testing.assert_close(found[:, draw], expected, rtol=1e-5, atol=1e-5)

    assert classes.tolist() == answers.tolist()


@pytest.mark.parametrize("kernel", ["weight-noise", "sgld", "gradients"])
def test_weights_and_their_flags_come_back_bit_by_bit(model, kernel):
    weights = dict(model.module.named_parameters())
    weights["lm_head.weight"].requires_grad_(False)
    before = {name: (w.detach().clone(), w.requires_grad) for name, w in weights.items()}
    feature = prepared(get_feature("functional", kernel=kernel, draws=2), model)
    feature.rows(model, Reading(batch_of(ROWS), {}))

    for name, weight in weights.items():
        assert torch.equal(weight, before[name][0]), name
        assert weight.requires_grad == before[name][1], name
        assert weight.grad is None


def test_passes_are_as_declared(model, monkeypatch):
    calls = []
    plain = model.call
    monkeypatch.setattr(
        model, "call", lambda *a, **k: (calls.append(len(a[0])), plain(*a, **k))[1]
    )
    batch = batch_of(ROWS)
    for settings in ({"draws": 5}, {"kernel": "gradients"}):
        feature = get_feature("functional", **settings)
        calls.clear()
        feature.rows(model, Reading(batch, {}))
        assert sum(calls) == len(ROWS) * feature.plan(model).extra_forwards
    assert feature.plan(model).extra_backwards == 1
    assert get_feature("functional", draws=5).plan(model).extra_backwards == 0


@pytest.mark.parametrize("pull", [0.05, 0.5])
def test_a_chain_on_a_quadratic_loss_has_the_known_variances(pull):
    """h u² / 2 for half of the weights, nothing for the others; βh = γ."""
    chain = Langevin(width=0.01, beta=1e6, pull=pull, burn_in=int(6 / pull), thin=int(2 / pull))
    h = 1e-2
    curvature = torch.cat([torch.full((8000,), h), torch.zeros(8000)])
    shapes = {"w": torch.Size([16000])}
    draws = torch.stack(
        [u["w"].clone() for u in chain.draws(lambda _, u: {"w": curvature * u["w"]}, shapes, 12)]
    )
    held, free = draws[:, :8000].var().item(), draws[:, 8000:].var().item()

    # The step is a share `pull` of the way back where it is flat, twice that where it is not.
    assert free == pytest.approx(1e-4 / (1 - pull / 2), rel=0.02)
    assert held == pytest.approx(0.5e-4 / (1 - pull), rel=0.02)


def test_a_chain_that_diverges_says_where():
    def gradient(step, u):
        return {"w": u["w"] * (float("nan") if step == 3 else 1)}

    with pytest.raises(NonFinite, match="step 3") as caught:
        list(Langevin().draws(gradient, {"w": torch.Size([2])}, 4))
    assert "nan" in str(caught.value)


def test_a_chain_is_the_same_kept_or_made_again(model, monkeypatch):
    sampling = (batch_of(ROWS),)
    kernel = LangevinKernel(sampling, draws=3)
    kept, _ = kernel.rows(model, batch_of(ROWS[:2]))
    monkeypatch.setattr(room, "MEMORY_SHARE", 1 << 60)
    made, _ = kernel.rows(model, batch_of(ROWS[:2]))

    assert torch.equal(kept, made)
    assert not torch.equal(
        LangevinKernel(sampling, 3, Langevin(seed=1)).rows(model, sampling[0])[0][:2], kept
    )


def test_noise_that_breaks_the_model_is_named(model):
    with pytest.raises(NonFinite, match="draw 0, prompt 7-11-3-9-2"):
        WeightNoiseKernel(2, 1e38).rows(model, batch_of(ROWS))


def test_what_cannot_be_is_refused(model):
    for wrong in ({"kernel": "nosuch"}, {"draws": 1}, {"scale": 0.0}, {"width": 1}):
        with pytest.raises(BadValue, match="feature functional"):
            get_feature("functional", **wrong)
    with pytest.raises(BadValue, match="none of its weights"):
        get_feature("functional").plan(Model(torch.nn.ReLU(), name="no weights"))
    with pytest.raises(BadValue, match="seen no trusted prompts"):
        get_feature("functional", kernel="sgld").rows(model, Reading(batch_of(ROWS), {}))
    with pytest.raises(NotEnoughData, match="no trusted prompts"):
        get_feature("functional", kernel="sgld").learn(model, [])
    zeros = torch.nn.Linear(2, 2)
    for weight in zeros.parameters():
        torch.nn.init.zeros_(weight)
    one = Batch({"input": torch.ones(1, 2)}, ("a",))
    with pytest.raises(BadValue, match="all its weights are zero"):
        get_feature("functional").rows(Model(zeros, name="zeros"), Reading(one, {}))


def two_mechanisms():
    """A net that takes its answer from one half of its inputs or, where those are 0, the other."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    with torch.no_grad():
        net[0].weight[:8, 4:] = 0
        net[0].weight[8:, :4] = 0
        net[0].bias.zero_()
    return Model(net, name="halves")


def halves(count, which, seed):
    x = torch.zeros(count, 8)
    generator = torch.Generator().manual_seed(seed)
    x[:, 4 * which : 4 * which + 4] = torch.rand(count, 4, generator=generator) + 0.5
    return TensorPrompts({"input": x}, {"id": [f"{which} {seed} {n}" for n in range(count)]})


@pytest.mark.parametrize("kernel", ["weight-noise", "sgld", "gradients"])
@pytest.mark.parametrize("score", ["functional-top-ccc", "functional-class-ccc"])
def test_prompts_of_another_mechanism_score_higher(kernel, score):
    model = two_mechanisms()
    feature = get_feature("functional", kernel=kernel, answers="class" in score)
    detector = Detector(feature, score, alpha=0.1).fit(model, halves(80, 0, 1))
    normal = detector.score(model, halves(20, 0, 2)).score
    other = detector.score(model, halves(20, 1, 3)).score

    assert (other[:, None] > normal).mean() > (0.8 if "class" in score else 0.95)


def test_a_saved_chain_keeps_its_trusted_prompts(model, tmp_path):
    feature = prepared(get_feature("functional", kernel="sgld", draws=2, sampling=5), model)
    kept = feature.state()["sampled_"]
    again = Functional.from_state(feature.state())

    assert sum(len(batch["ids"]) for batch in kept) == 5
    assert torch.equal(
        again.rows(model, Reading(batch_of(ROWS), {}))[LOGITS],
        feature.rows(model, Reading(batch_of(ROWS), {}))[LOGITS],
    )


def test_free_text_and_mixed_choices(model):
    rows = batch_of(ROWS)
    plain = get_feature("functional", draws=2, answers=True)
    free = plain.rows(model, Reading(batch_of(ROWS, choices=False), {}))
    mixed = batch_of(ROWS)
    mixed.choices[1] = -1
    found = plain.rows(model, Reading(mixed, {}))
    logits = model.forward(rows).logits[:, -1]

    assert free[ANSWER][:, 0].tolist() == logits.argmax(1).tolist()
    assert torch.equal(found[LOGITS][1], free[LOGITS][1])
    assert torch.equal(found[LOGITS][0], plain.rows(model, Reading(rows, {}))[LOGITS][0])
    assert list(pack(halves(2, 0, 0)))[0].mask is None
