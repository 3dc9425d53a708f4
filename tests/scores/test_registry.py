import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from offkey import registry
from offkey.errors import BadValue, Mismatch, UnknownName
from offkey.scores import (
    TensorScore,
    get_score,
    restore_score,
    score_class,
    score_names,
)
from offkey.stats import Moments
from offkey.testing.score import ScoreContract
from tests.scores.rows import finished, gaussian_rows

BUILT_IN = {
    "activation-model",
    "activation-model-joint",
    "isolation-forest",
    "knn",
    "knn-cosine",
    "knn-ratio",
    "likelihood-ratio",
    "lof",
    "mahalanobis",
    "mahalanobis-diagonal",
    "mahalanobis-l2",
    "mahalanobis-pca",
    "mahalanobis-relative",
    "que",
    "spectral",
}


class Gap(TensorScore):
    """A score as another package would write it: distance to the mean in one norm."""

    name = "gap"

    def __init__(self, power: float = 2.0) -> None:
        self.power = power

    def statistic(self):
        return Moments(diagonal=True)

    def finish(self, trusted, pool, generator):
        self._need(trusted, 2)
        self.mean_ = trusted.mean

        return self

    def _score(self, x):
        return torch.linalg.vector_norm(x - self.mean_, ord=self.power, dim=1)


class TestGap(ScoreContract):
    @pytest.fixture
    def make(self):
        return Gap


def test_every_name_makes_a_score_of_that_name():
    assert set(score_names()) >= BUILT_IN
    for name in BUILT_IN:
        assert get_score(name).name == score_class(name).name == name
        assert score_class(name).__doc__


def test_unknown_names_name_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean mahalanobis") as caught:
        get_score("mahalanobbis")
    assert caught.value.kind == "score"
    with pytest.raises(UnknownName, match="Known: .*mahalanobis"):
        get_score("zzz")


def test_unknown_settings_name_the_nearest():
    with pytest.raises(BadValue, match="unknown setting 'shrinkge'. It has shrinkage"):
        get_score("mahalanobis", shrinkge=0.1)
    with pytest.raises(BadValue, match="no settings"):
        get_score("spectral", alpha=1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("activation-model", {"way": "near"}),
        ("activation-model", {"rounds": -1}),
        ("activation-model-joint", {"way": "near"}),
        ("activation-model-joint", {"components": 0}),
        ("activation-model-joint", {"rounds": 1.5}),
        ("mahalanobis", {"shrinkage": "lw"}),
        ("mahalanobis", {"shrinkage": 1.5}),
        ("mahalanobis", {"shrinkage": float("nan")}),
        ("mahalanobis", {"rcond": -1}),
        ("mahalanobis-pca", {"components": 0}),
        ("mahalanobis-pca", {"variance": 0}),
        ("mahalanobis-pca", {"residual": "keep"}),
        ("lof", {"k": 0}),
        ("lof", {"k": 2.5}),
        ("lof", {"k": 20, "rows": 20}),
        ("isolation-forest", {"trees": 0}),
        ("isolation-forest", {"rows_per_tree": True}),
        ("que", {"alpha": -1}),
        ("que", {"alpha": float("inf")}),
        ("pyod:LOF", {"rows": 1}),
    ],
)
def test_bad_settings_are_refused_at_once(name, settings):
    setting = list(settings)[-1]
    with pytest.raises(BadValue, match=f"{name} {setting}") as caught:
        get_score(name, **settings)
    assert caught.value.mend


def test_a_score_is_restored_by_name():
    score = finished("mahalanobis", gaussian_rows(50, 3, seed=1), shrinkage="oas")
    again = restore_score("mahalanobis", score.state())
    rows = gaussian_rows(5, 3, seed=2)
    assert torch.equal(again(rows), score(rows))
    assert again.settings() == score.settings()


def test_rows_of_another_width_are_refused():
    score = finished("mahalanobis", gaussian_rows(50, 3, seed=1))
    with pytest.raises(Mismatch, match="width 3"):
        score(gaussian_rows(5, 4, seed=2))


def test_an_unfinished_score_says_so():
    with pytest.raises(AttributeError, match="has not learned anything yet"):
        get_score("mahalanobis")(gaussian_rows(5, 3, seed=2))


def test_sparse_and_half_rows_are_scored_as_dense_ones():
    score = finished("mahalanobis-diagonal", gaussian_rows(50, 3, seed=1))
    rows = gaussian_rows(5, 3, seed=2).to(torch.bfloat16)
    assert torch.equal(score(rows), score(rows.double()))
    assert torch.equal(score(rows.double().to_sparse()), score(rows.double()))


def test_installed_packages_add_scores(monkeypatch):
    entries = [
        EntryPoint("gap", f"{__name__}:Gap", "offkey.scores"),
        EntryPoint("lof", f"{__name__}:Gap", "offkey.scores"),
    ]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Gap.__module__])
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    assert "gap" in score_names()
    assert get_score("gap", power=1.0).power == 1.0
    assert score_class("lof").__name__ == "LocalOutlierFactor"


def test_the_room_is_entered_without_loading_its_families():
    code = (
        "import sys, offkey.scores; offkey.scores.score_names(); "
        "print([m for m in sys.modules if m.startswith(('sklearn', 'pyod', 'offkey.scores.m'))])"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
