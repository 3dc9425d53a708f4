"""Latents of a dictionary as a feature, and what it refuses."""

import pytest
import torch

from offkey.dictionaries import Dictionary, load_dictionary, save_dictionary
from offkey.errors import BadInput, BadValue, Mismatch, UnknownName
from offkey.features import get_feature
from offkey.models import Model
from offkey.testing.feature import ROWS, FeatureContract, batch_of, vectors_of
from offkey.testing.random_models import random_module


def dictionary(**changes):
    generator = torch.Generator().manual_seed(0)
    facts = {"site": "resid_post.1", "model": "hub/Random", "activation": "topk", "k": 6}
    width = changes.pop("width", 32)
    return Dictionary(
        torch.randn(width, 50, generator=generator),
        torch.randn(50, generator=generator),
        torch.randn(50, width, generator=generator),
        torch.randn(width, generator=generator),
        **{**facts, **changes},
    )


@pytest.fixture
def folder(tmp_path):
    save_dictionary(tmp_path / "sae", dictionary())
    return str(tmp_path / "sae")


@pytest.fixture(scope="module")
def model():
    return Model(random_module("llama"), tokenizer=object(), name="random")


class TestSparseLatents(FeatureContract):
    @pytest.fixture(params=["last", (-2,)], ids=str)
    def make(self, request, folder):
        return lambda: get_feature("sae", dictionary=folder, positions=request.param)


def test_it_is_the_dictionary_applied_to_what_is_read(model, folder):
    batch = batch_of(ROWS)
    feature = get_feature("sae", dictionary=folder)
    (site,) = feature.plan(model).reads
    found = vectors_of(feature, model, batch)[site]
    values = model.read(batch, "resid_post.1")["resid_post.1"]
    assert str(site) == "resid_post.1"
    assert torch.equal(found, load_dictionary(folder).encode(values))
    assert ((found > 0).sum(1) <= 6).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 48}, "it has width 48, and resid_post.1 of random has width 32"),
        ({"model": "gpt2"}, "it was trained on gpt2, not on random"),
        ({"site": "resid_post.9"}, "blocks"),
        ({"site": ""}, "does not say at which site"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_runs(model, tmp_path, changes, words):
    save_dictionary(tmp_path, dictionary(**changes))
    feature = get_feature("sae", dictionary=str(tmp_path))
    with pytest.raises((Mismatch, BadValue, BadInput), match=words):
        feature.plan(model)


def test_another_model_can_be_insisted_on(model, tmp_path):
    save_dictionary(tmp_path, dictionary(model="gpt2"))
    feature = get_feature("sae", dictionary=str(tmp_path), any_model=True)
    assert [str(site) for site in feature.plan(model).reads] == ["resid_post.1"]


def test_other_weights_than_a_saved_detector_had_are_refused(folder):
    state = get_feature("sae", dictionary=folder).state()
    save_dictionary(folder, dictionary(k=7).to(dtype=torch.bfloat16))
    with pytest.raises(Mismatch, match="not those the detector was made with"):
        get_feature("sae", **state)


def test_bad_settings_are_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="no dictionary is there"):
        get_feature("sae", dictionary=str(tmp_path))
    with pytest.raises(UnknownName, match="bundled:resid_post.99"):
        get_feature("sae", dictionary="bundled:resid_post.99")
    for positions in ("mean", (-1, -2)):
        with pytest.raises(BadValue, match="is not one token"):
            get_feature("sae", dictionary=folder, positions=positions)
