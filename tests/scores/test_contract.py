"""Every registered score, in several settings, keeps the contract."""

from collections.abc import Callable

import pytest

from offkey.scores import Score, get_score, score_class, score_names
from offkey.testing.score import ScoreContract, normal_rows
from offkey.testing.sites_score import SitesScoreContract

QUICK = {"flow-laplace": {"steps": 8}, "flow-mahalanobis": {"steps": 8}, "vae": {"steps": 8}}
"""Settings that shorten a training; the contract does not depend on how well it went."""


def of_scope(scope: str) -> list[str]:
    return [name for name in score_names() if score_class(name).scope == scope]


OF_SHAPE = ("functional-mean",)
"""Scores that see the shape of a row and not how far away it is."""


class TestOfShape(ScoreContract):
    @pytest.fixture(params=OF_SHAPE)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Score]:
        return lambda: get_score(request.param)

    def test_a_planted_outlier_scores_higher(self, score: Score) -> None:
        normal, planted = score(normal_rows(60, seed=3)), score(normal_rows(20, seed=4).flip(1))
        assert (planted[:, None] > normal).double().mean() > 0.9


class TestRegistered(ScoreContract):
    @pytest.fixture(params=[name for name in of_scope("site") if name not in OF_SHAPE])
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Score]:
        return lambda: get_score(request.param, **QUICK.get(request.param, {}))


class TestRegisteredOfAllSites(SitesScoreContract):
    @pytest.fixture(params=of_scope("sites"))
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Score]:
        return lambda: get_score(request.param, **QUICK.get(request.param, {}))


VARIANTS = {
    "broken relations": ("activation-model", {"way": "relations"}),
    "squared residuals": ("activation-model", {"way": "residuals", "rounds": 1}),
    "oas": ("mahalanobis", {"shrinkage": "oas"}),
    "random matrix": ("mahalanobis", {"shrinkage": "random-matrix"}),
    "nonlinear": ("mahalanobis", {"shrinkage": "nonlinear"}),
    "fixed": ("mahalanobis", {"shrinkage": 0.1}),
    "isotropic residual": ("mahalanobis-pca", {"components": 3, "residual": "isotropic"}),
    "pseudo-inverse": ("mahalanobis-pca", {"variance": 1}),
    "steep": ("que", {"alpha": 1e4}),
    "PyOD, exact": ("pyod:KNN", {"n_neighbors": 3}),
    "PyOD, random": ("pyod:IForest", {"n_estimators": 10, "rows": 100}),
}


class TestVariants(ScoreContract):
    @pytest.fixture(params=VARIANTS)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Score]:
        name, settings = VARIANTS[request.param]

        return lambda: get_score(name, **settings)


SITES_VARIANTS = {
    "early reference": ("ted", {"reference": 0, "k": 3}),
    "second differences": ("trajectory", {"order": 2}),
    "fixed": ("lcf", {"shrinkage": 0.1}),
    "few components": ("mahalanobis-concatenated", {"components": 2, "shrinkage": "oas"}),
}


class TestVariantsOfAllSites(SitesScoreContract):
    @pytest.fixture(params=SITES_VARIANTS)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Score]:
        name, settings = SITES_VARIANTS[request.param]

        return lambda: get_score(name, **settings)
