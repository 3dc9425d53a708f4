"""Noise on activations: against whole passes, one prompt and one draw at a time."""

import numpy as np
import pytest
import torch

from offkey.data import PromptPairs, Prompts, pack
from offkey.errors import BadValue, NonFinite, UnknownName
from offkey.models import Edit, Model, load
from offkey.sensitivity import (
    PRESETS,
    ActivationNoise,
    activation_sensitivity,
    contrast_norm,
)
from tests.models.tiny import gpt2, llama, tokenizer

NOISE = ActivationNoise(
    site="resid_post.0", coefficients=(0.0, 0.5, 2.0), shape="gaussian", draws=3, seed=1
)


@pytest.fixture(scope="module", params=[llama, gpt2])
def model(request):
    return Model(request.param(), tokenizer=tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prompts():
    texts = ["w1 w2 w3", "w9 w8 w7 w6 w5 w4", "w1 w1", "w30 w31 w32 w33"]
    return Prompts(
        {
            "prompt": texts,
            "choices": [[" w5", " w6"]] * 4,
            "target": [0, 1, 1, 0],
        }
    )


@pytest.fixture(scope="module")
def unlike():
    """Two choices, three, none, and two without a target."""
    texts = ["w1 w2 w3", "w9 w8 w7 w6 w5 w4", "w1 w1", "w30 w31 w32 w33"]
    return Prompts(
        {
            "prompt": texts,
            "choices": [[" w5", " w6"], [" w7", " w8", " w9"], None, [" w5", " w6"]],
            "target": [0, 2, None, None],
        }
    )


def by_definition(model, prompts, noise, norm):
    """Whole passes of one prompt, with the noise added by an edit at its last token."""
    found = {"kl": [], "drop": [], "right": []}
    for row in range(len(prompts)):
        (batch,) = pack(prompts.take([row]), model.tokenizer, token_budget=100)
        clean = model.read(batch, [], logits=True).logits[0].double().log_softmax(-1)
        choices = None if batch.choices is None else batch.choices[0]
        target = -1 if batch.target is None else int(batch.target[0])
        answer = int(clean.argmax() if choices is None else choices[clean[choices].argmax()])
        told = {name: np.empty((len(noise.coefficients), noise.draws)) for name in found}
        for i, coefficient in enumerate(noise.coefficients):
            for draw in range(noise.draws):
                value = -coefficient * noise.direction(draw, model.width, norm)
                edit = Edit(noise.site, "add", value.float(), positions="last")
                noisy = model.read(batch, [], edit=[edit], logits=True).logits[0].double()
                noisy = noisy.log_softmax(-1)
                told["kl"][i, draw] = float((clean.exp() * (clean - noisy)).sum())
                told["drop"][i, draw] = float(clean[answer].exp() - noisy[answer].exp())
                told["right"][i, draw] = (
                    np.nan if target < 0 else float(int(noisy[choices].argmax()) == target)
                )
        for name, values in told.items():
            found[name].append(values)

    return {name: np.stack(values, axis=2) for name, values in found.items()}


def test_equals_whole_passes_of_single_prompts(model, prompts):
    curve = activation_sensitivity(model, prompts, NOISE, norm=3.0)
    expected = by_definition(model, prompts, NOISE, 3.0)

    assert curve.ids == prompts.ids
    for name, values in expected.items():
        np.testing.assert_allclose(curve.metric(name), values, atol=2e-5)
    assert curve.mean("kl")[2] > curve.mean("kl")[1] > 0
    np.testing.assert_allclose(curve.metric("kl")[0], 0, atol=1e-9)


def test_prompts_of_unlike_choices_are_each_measured_as_if_alone(model, unlike):
    """Which answer a row prefers, and whether it has a target, is decided for that row."""
    curve = activation_sensitivity(model, unlike, NOISE, norm=3.0)
    expected = by_definition(model, unlike, NOISE, 3.0)
    alone = [
        activation_sensitivity(model, unlike.take([row]), NOISE, norm=3.0) for row in range(4)
    ]

    for name, values in expected.items():
        np.testing.assert_allclose(curve.metric(name), values, atol=2e-5)
    for row in range(4):
        np.testing.assert_allclose(
            alone[row].metric("drop")[..., 0], curve.metric("drop")[..., row], atol=2e-5
        )
    assert ["right" in each.values for each in alone] == [True, True, False, False]


def test_missing_values_are_left_out_and_counted(model, unlike):
    curve = activation_sensitivity(model, unlike, NOISE, norm=3.0)
    known = curve.metric("right")[:, :, :2]

    assert (curve.missing("right"), curve.missing("kl")) == (2, 0)
    np.testing.assert_allclose(curve.mean("right"), known.mean((1, 2)))
    np.testing.assert_allclose(curve.draw_means("right"), known.mean(2))
    np.testing.assert_allclose(
        curve.spread("right"), known.mean(2).std(1, ddof=1) / NOISE.draws**0.5
    )


def test_the_norm_may_be_that_of_pairs(model, prompts):
    pairs = PromptPairs(prompts.take([0, 1]), prompts.take([2, 3]))
    curve = activation_sensitivity(model, prompts, NOISE, norm=pairs)

    assert curve.about["norm"] == contrast_norm(model, pairs, NOISE.site)


def test_a_preset_with_settings_of_ones_own():
    noise = ActivationNoise.preset("poser", draws=3, seed=4)

    assert (noise.shape, noise.draws, noise.seed) == ("uniform01", 3, 4)
    assert ActivationNoise.preset("corrected") == PRESETS["corrected"]
    with pytest.raises(UnknownName, match="corrected"):
        ActivationNoise.preset("correct")


def test_leaves_the_model_as_it_was(model, prompts):
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    activation_sensitivity(model, prompts, NOISE, norm=3.0)

    assert not model.is_edited
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())


def test_norms_are_those_of_the_noise(model, prompts):
    sphere = ActivationNoise(site="resid_post.0", coefficients=(0.0, 2.0), shape="sphere", draws=2)
    curve = activation_sensitivity(model, prompts, sphere, norm=3.0)
    reading = [
        model.read(pack(prompts.take([row]), model.tokenizer, token_budget=99)[0], "resid_post.0")
        for row in range(4)
    ]
    length = np.mean([float(next(iter(r.values.values())).norm()) for r in reading])

    np.testing.assert_allclose(curve.norms, [[0, 0], [6, 6]])
    np.testing.assert_allclose(curve.relative[1], 6 / length, rtol=1e-5)


def test_shapes_of_noise():
    uniform, sphere, gaussian = (
        np.stack(
            [
                ActivationNoise(shape=shape, draws=1, seed=3).direction(d, 400, 2.0).numpy()
                for d in range(50)
            ]
        )
        for shape in ("uniform01", "sphere", "gaussian")
    )

    np.testing.assert_allclose(np.linalg.norm(uniform, axis=1), 2)
    np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), 2)
    assert (uniform >= 0).all()
    # A uniform direction leans on the diagonal: mean over root mean square is sqrt(3/4).
    np.testing.assert_allclose(uniform.sum(1) / 20 / 2, 0.75**0.5, atol=0.03)
    assert abs((sphere.sum(1) / 20 / 2).mean()) < 0.05
    np.testing.assert_allclose(np.linalg.norm(gaussian, axis=1).mean(), 2, atol=0.05)


def test_presets_are_as_published_and_corrected():
    assert PRESETS["poser"].shape == "uniform01"
    assert PRESETS["poser"].coefficients[0] == 0
    assert PRESETS["poser"].coefficients[-1] == 20
    assert PRESETS["corrected"].draws == 8


def test_contrast_norm_is_the_distance_of_means(model, prompts):
    pairs = PromptPairs(prompts.take([0, 1]), prompts.take([2, 3]))
    rows = [
        next(
            iter(
                model.read(
                    pack(prompts.take([row]), model.tokenizer, token_budget=99)[0], "resid_post.1"
                ).values.values()
            )
        )[0].double()
        for row in range(4)
    ]
    expected = (rows[2] + rows[3] - rows[0] - rows[1]).norm() / 2

    assert contrast_norm(model, pairs, "resid_post.1") == pytest.approx(float(expected), rel=1e-5)


def test_saved_and_loaded(model, prompts, tmp_path):
    curve = activation_sensitivity(model, prompts, NOISE, norm=3.0)
    curve.save(tmp_path / "curve")
    back = type(curve).load(tmp_path / "curve")

    assert back.about == curve.about
    assert back.ids == curve.ids
    np.testing.assert_array_equal(back.metric("kl"), curve.metric("kl"))


@pytest.mark.parametrize(
    "settings",
    [{"shape": "cube"}, {"draws": 0}, {"coefficients": (1.0, 0.5)}, {"coefficients": (-1.0, 1.0)}],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(BadValue):
        ActivationNoise(**settings)


def test_bad_input(model, prompts):
    with pytest.raises(BadValue, match="norm"):
        activation_sensitivity(model, prompts, NOISE, norm=0.0)
    with pytest.raises(NonFinite, match="prompt"):
        activation_sensitivity(model, prompts, NOISE, norm=1e39)
    plain = load(torch.nn.Linear(2, 2))
    plain.tokenizer = tokenizer()
    with pytest.raises(BadValue, match="plain module"):
        activation_sensitivity(plain, prompts, NOISE, norm=1.0)
