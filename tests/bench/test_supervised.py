"""The supervised ceiling: right where there is something, blind where labels are random."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from offkey.bench import ceiling
from offkey.bench.supervised import PENALTIES
from offkey.data import TensorPrompts
from offkey.detect import Detector, Session, evaluate
from offkey.errors import BadValue, Mismatch
from offkey.features import get_feature
from offkey.models import Model


@pytest.fixture(scope="module")
def model():
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Tanh())
    return Model(module, name="two places")


def prompts_of(x, labels, sources=None):
    columns = {"id": [f"p{(7 * n) % 1009:04d}" for n in range(len(x))], "label": list(labels)}
    if sources is not None:
        columns["source"] = [f"s{source}" for source in sources]
    return TensorPrompts({"x": torch.as_tensor(x, dtype=torch.float32)}, columns)


@pytest.fixture
def of(model, tmp_path):
    """The ceiling of prompts, each call in a folder of its own."""
    calls = []

    def score(prompts, detector=None, **settings):
        detector = detector or Detector("activations", sites="module:0, module:1")
        calls.append(1)
        blind = prompts.without("label")
        session = Session(model, tmp_path / str(len(calls)))
        (rows,) = session.record_features([detector], blind, "test")
        return ceiling(detector, model, rows, prompts, **settings)

    return score


def planted(n, d, *, seed, shift):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d))
    x[:, 0] += shift * (2 * labels - 1)
    return prompts_of(x, labels.tolist()), labels


def test_a_plant_is_found_and_the_mode_says_what_it_is(of):
    prompts, labels = planted(200, 12, seed=0, shift=3.0)
    scores = of(prompts)
    assert roc_auc_score(labels, scores.score) > 0.99
    assert scores.mode == "ceiling"
    assert scores.sites == ("all sites",)
    assert np.isnan(scores.p_value).all()
    assert not scores.flagged.any()
    assert evaluate(scores, prompts).auroc.value > 0.99


def test_random_labels_are_not_learned_by_heart(of):
    # 600 numbers a prompt: a regression that saw its label would be right every time
    x = np.random.default_rng(1).normal(size=(160, 300))
    found = []
    for seed in range(3):
        labels = np.random.default_rng(seed).integers(0, 2, 160)
        found.append(roc_auc_score(labels, of(prompts_of(x, labels.tolist())).score))
    assert abs(np.mean(found) - 0.5) < 0.1


def test_prompts_of_one_source_stay_together(of):
    rng = np.random.default_rng(2)
    items = rng.normal(size=(80, 150))
    labels = rng.integers(0, 2, 80)
    x = np.concatenate([items, items + 1e-3 * rng.normal(size=items.shape)])
    twice = [*labels.tolist(), *labels.tolist()]
    apart = of(prompts_of(x, twice))
    together = of(prompts_of(x, twice, [*range(80), *range(80)]))
    assert roc_auc_score(twice, apart.score) > 0.9
    assert abs(roc_auc_score(twice, together.score) - 0.5) < 0.2


@pytest.mark.parametrize("d", [3, 30])
def test_against_regressions_by_a_general_minimiser(of, d):
    prompts, labels = planted(50, d, seed=3, shift=0.7)
    found = of(prompts, folds=3, seed=4).score

    order = np.argsort(np.array(prompts.ids))
    x = prompts.arrays["x"].double()
    x = torch.cat([x, x.tanh()], 1).numpy()
    z = ((x - x.mean(0)) / x.std(0))[order] / (2 * d) ** 0.5
    y = labels[order]

    def solved(rows, answers, penalty):
        sign = 2 * answers - 1

        def loss(theta):
            margins = sign * (rows @ theta[:-1] + theta[-1])
            pull = penalty / 2 * np.sum(theta[:-1] ** 2)
            slope = -sign / (1 + np.exp(margins)) / len(rows)
            grad = np.append(rows.T @ slope + penalty * theta[:-1], slope.sum())
            return np.mean(np.logaddexp(0, -margins)) + pull, grad

        return minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, tol=1e-12).x

    def held_out(rows, answers, penalty):
        total = 0.0
        for train, test in StratifiedKFold(3).split(rows, answers):
            theta = solved(rows[train], answers[train], penalty)
            margins = (2 * answers[test] - 1) * (rows[test] @ theta[:-1] + theta[-1])
            total += np.logaddexp(0, -margins).sum()
        return total

    splitter = StratifiedGroupKFold(3, shuffle=True, random_state=4)
    for train, test in splitter.split(z, y, np.array(prompts["source"])[order]):
        penalty = min(PENALTIES, key=lambda each: held_out(z[train], y[train], each))
        theta = solved(z[train], y[train], penalty)
        np.testing.assert_allclose(
            found[order][test], z[test] @ theta[:-1] + theta[-1], rtol=0.02, atol=0.02
        )


def test_the_order_of_prompts_says_nothing(of):
    prompts, _ = planted(50, 4, seed=5, shift=1.0)
    there = dict(zip(prompts.ids, of(prompts).score, strict=True))
    back = prompts.take(list(range(49, -1, -1)))
    again = of(back)
    np.testing.assert_allclose([there[id] for id in again.ids], again.score, rtol=1e-6)


def test_prompts_without_a_label_have_no_score(of):
    prompts, labels = planted(60, 4, seed=6, shift=2.0)
    some = [None if n % 3 == 0 else int(label) for n, label in enumerate(labels)]
    scores = of(prompts.with_columns(label=some))
    assert np.isnan(scores.score[::3]).all()
    assert np.isfinite(np.delete(scores.score, range(0, 60, 3))).all()
    assert set(scores.reasons.values()) == {"it has no label"}


@pytest.mark.parametrize("labels", [[0] * 20, [0] * 19 + [1]])
def test_a_class_of_fewer_than_two_sources_has_no_ceiling(of, labels):
    x = np.random.default_rng(7).normal(size=(20, 3))
    scores = of(prompts_of(x, labels))
    assert np.isnan(scores.score).all()
    assert scores.mode == "ceiling"
    assert "of both classes" in scores.reasons[scores.ids[0]]
    assert evaluate(scores, prompts_of(x, labels)).auroc is None


def test_a_feature_that_stands_still_tells_nothing(of):
    prompts, labels = planted(40, 3, seed=8, shift=0.0)
    prompts.arrays["x"][:] = 1.0
    scores = of(prompts)
    assert np.isfinite(scores.score).all()
    assert np.ptp(scores.score) < 0.5


def test_what_cannot_be_is_refused(of, model, tmp_path):
    prompts, _ = planted(40, 3, seed=9, shift=1.0)
    with pytest.raises(BadValue, match="folds: must be at least 2"):
        of(prompts, folds=1)
    detector = Detector("activations", sites="module:0")
    (rows,) = Session(model, tmp_path).record_features([detector], prompts, "test")
    with pytest.raises(Mismatch, match="rows: they are not of these prompts"):
        ceiling(detector, model, rows, prompts.take(range(30)))
    other = Detector(get_feature("activations", sites="module:1"))
    with pytest.raises(Mismatch, match="they hold no activations"):
        ceiling(other, model, rows, prompts)
