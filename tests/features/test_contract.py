"""Every registered feature keeps the contract, on every family of text models."""

import pytest

from offkey.features import feature_names, get_feature
from offkey.models import Model
from offkey.testing.feature import FeatureContract
from offkey.testing.random_models import FAMILIES, random_module
from tests.models import tiny

_KEPT = {}
FITTED_TO_A_MODEL = ("sae",)
QUICK = {"functional": {"draws": 6}, "tuned-divergence": {"steps": 3}}
"""Settings that cost less; the contract does not depend on them."""


def model_of(family):
    if family not in _KEPT:
        _KEPT[family] = Model(random_module(family), tokenizer=tiny.tokenizer(), name=family)
    return _KEPT[family]


class TestEveryFeature(FeatureContract):
    @pytest.fixture(params=[name for name in feature_names() if name not in FITTED_TO_A_MODEL])
    def make(self, request):
        return lambda: get_feature(request.param, **QUICK.get(request.param, {}))

    @pytest.fixture
    def model(self):
        return model_of("llama")


class TestFunctionalKernels(FeatureContract):
    @pytest.fixture(params=["sgld", "gradients"])
    def make(self, request):
        return lambda: get_feature("functional", kernel=request.param, draws=3, answers=True)

    @pytest.fixture
    def model(self):
        return model_of("llama")


class TestActivationsOnEveryFamily(FeatureContract):
    @pytest.fixture
    def make(self):
        return lambda: get_feature("activations", sites="embed, resid_post.later, z.0, q.1, final")

    @pytest.fixture(params=[name for name in FAMILIES if name != "llama"])
    def model(self, request):
        return model_of(request.param)


class TestEntropyOnOtherFamilies(FeatureContract):
    @pytest.fixture
    def make(self):
        return lambda: get_feature("entropy")

    @pytest.fixture(params=["gemma2", "gpt2", "gpt_neox"])
    def model(self, request):
        return model_of(request.param)


class TestEveryAttribution(FeatureContract):
    @pytest.fixture(params=["zero", "pcs", "grad-norm"])
    def make(self, request):
        return lambda: get_feature("attribution", direction=request.param, sites=("z.1", "z.2"))

    @pytest.fixture(params=["gpt2", "gemma2"])
    def model(self, request):
        return model_of(request.param)


class TestHeadsAtTwoTokens(FeatureContract):
    @pytest.fixture
    def make(self):
        return lambda: get_feature("activations", sites=("z.*", "final"), positions=(-2, -1))


class TestActivationsAtOtherPositions(FeatureContract):
    @pytest.fixture(params=["mean", (-1,), (-1, -3)], ids=str)
    def make(self, request):
        return lambda: get_feature("activations", positions=request.param)

    @pytest.fixture
    def model(self):
        return model_of("llama")
