"""Noise on weights: against perturbed copies of the model."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from offkey.data import Prompts, pack
from offkey.errors import BadValue, NoMatchingParameters, PrecisionTooLow, RadiusNotFound
from offkey.models import Model
from offkey.sensitivity import WeightNoise, weight_sensitivity
from offkey.volume import Noise
from tests.models.tiny import llama, tokenizer

PROMPTS = Prompts(
    {
        "prompt": ["w1 w2 w3", "w9 w8 w7 w6 w5 w4", "w30 w31 w32 w33"],
        "choices": [[" w5", " w6"]] * 3,
        "target": [0, 1, 0],
    }
)


@pytest.fixture(scope="module")
def model():
    return Model(llama(), tokenizer=tokenizer(), name="tiny")


def kl_of_a_copy(model, noise, draw, radius):
    """A copy whose weights are moved one by one."""
    copy = deepcopy(model.module)
    pattern = noise.parameters.strip("*")
    moved = [(n, p) for n, p in copy.named_parameters() if pattern in n]
    steps = [Noise(noise.seed, draw).normals(n, 0, p.numel()).view(p.shape) for n, p in moved]
    length = sum(float(step.double().square().sum()) for step in steps) ** 0.5
    with torch.no_grad():
        for (_, weight), step in zip(moved, steps, strict=True):
            weight += step * (radius / length)
    other = Model(copy, tokenizer=model.tokenizer, name="copy")
    told = []
    for row in range(len(PROMPTS)):
        (batch,) = pack(PROMPTS.take([row]), model.tokenizer, token_budget=99)
        p, q = (
            m.read(batch, [], logits=True).logits[0].double().log_softmax(-1)
            for m in (model, other)
        )
        told.append(float((p.exp() * (p - q)).sum()))

    return np.array(told)


@pytest.mark.parametrize("parameters", ["*", "*layers.1*"])
def test_equals_a_perturbed_copy(model, parameters):
    noise = WeightNoise(parameters, radii=(0.5, 2.0), draws=2, seed=5)
    before = [p.clone() for p in model.module.parameters()]
    curve = weight_sensitivity(model, PROMPTS, noise)

    assert all(map(torch.equal, before, model.module.parameters()))
    for place, radius in enumerate(noise.radii):
        for draw in range(2):
            np.testing.assert_allclose(
                curve.metric("kl")[place, draw],
                kl_of_a_copy(model, noise, draw, radius),
                rtol=2e-3,
                atol=1e-6,
            )
    np.testing.assert_allclose(curve.norms, [[0.5, 0.5], [2.0, 2.0]])
    assert set(curve.values) == {"kl", "drop", "right"}


def test_prompts_of_unlike_choices_are_each_measured_as_if_alone(model):
    unlike = Prompts(
        {
            "prompt": [*PROMPTS["prompt"], "w2 w2 w4"],
            "choices": [[" w5", " w6"], [" w7", " w8", " w9"], None, [" w1", " w2"]],
            "target": [0, 2, None, None],
        }
    )
    noise = WeightNoise(radii=(0.5, 2.0), draws=2, seed=5)
    curve = weight_sensitivity(model, unlike, noise)
    for row in range(4):
        alone = weight_sensitivity(model, unlike.take([row]), noise)
        np.testing.assert_allclose(
            alone.metric("drop")[..., 0], curve.metric("drop")[..., row], atol=1e-5
        )
        if row < 2:
            np.testing.assert_array_equal(
                alone.metric("right")[..., 0], curve.metric("right")[..., row]
            )
        else:
            assert "right" not in alone.values
            assert np.isnan(curve.metric("right")[..., row]).all()


def test_a_target_kl_is_met(model):
    noise = WeightNoise(target_kl=(0.01, 0.05), draws=2)
    curve = weight_sensitivity(model, PROMPTS, noise)

    np.testing.assert_allclose(
        curve.metric("kl").mean(2), np.array([[0.01] * 2, [0.05] * 2]), rtol=0.02
    )
    assert (curve.norms[1] > curve.norms[0]).all()
    weights = (
        sum(float(p.detach().double().square().sum()) for p in model.module.parameters()) ** 0.5
    )
    np.testing.assert_allclose(curve.relative, curve.norms / weights, rtol=1e-6)


def test_the_same_seed_moves_models_alike(model):
    noise = WeightNoise(radii=(1.0,), draws=1, seed=2)
    first, second = (weight_sensitivity(model, PROMPTS, noise) for _ in range(2))

    np.testing.assert_array_equal(first.metric("kl"), second.metric("kl"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"radii": (1.0,), "target_kl": (0.1,)}, {"radii": (2.0, 1.0)}, {"radii": (0.0,)}],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(BadValue):
        WeightNoise(**settings)


def test_bad_input(model):
    with pytest.raises(NoMatchingParameters, match="nosuch"):
        weight_sensitivity(model, PROMPTS, WeightNoise("nosuch*", radii=(1.0,)))
    with pytest.raises(RadiusNotFound, match="draw 0"):
        weight_sensitivity(
            model,
            PROMPTS,
            WeightNoise("model.layers.0.self_attn.q_proj.weight", target_kl=(500.0,)),
        )
    coarse = Model(llama(dtype=torch.bfloat16), tokenizer=tokenizer(), name="coarse")
    with pytest.raises(PrecisionTooLow, match="float32"):
        weight_sensitivity(coarse, PROMPTS, WeightNoise(radii=(1e-3,)))
