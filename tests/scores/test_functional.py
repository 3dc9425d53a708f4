"""Attribution scores against loops that follow their definitions."""

import numpy as np
import pytest
import torch

from offkey.errors import BadValue, NotEnoughData
from offkey.scores import get_score
from offkey.stats import Sample
from offkey.testing.score import fitted, names, normal_rows


def ccc(x, z):
    return 2 * np.cov(x, z, bias=True)[0, 1] / (x.var() + z.var() + (x.mean() - z.mean()) ** 2)


def test_scores_are_what_they_are_defined_to_be():
    trusted, queries = normal_rows(30, seed=1, width=9), normal_rows(6, seed=2, width=9)
    a, b = trusted.double().numpy(), queries.double().numpy()
    pearson = np.array([[np.corrcoef(x, z)[0, 1] for z in a] for x in b])
    agree = np.array([[ccc(x, z) for z in a] for x in b])
    expected = {
        "functional-mean": 1 - pearson.mean(1),
        "functional-mean-ccc": 1 - agree.mean(1),
        "functional-top-ccc": 1 - np.sort(agree, axis=1)[:, -5:].mean(1),
    }
    for name, slow in expected.items():
        np.testing.assert_allclose(fitted(get_score(name), trusted)(queries), slow, rtol=1e-9)


def finished(trusted):
    samples = {}
    for site, x in trusted.items():
        samples[site] = Sample(1000)
        samples[site].update(x, names(len(x)))
    return get_score("functional-class-ccc").finish(samples, None, torch.Generator())


def test_classes_are_told_apart_by_the_answer():
    trusted, queries = normal_rows(30, seed=1, width=9), normal_rows(6, seed=2, width=9)
    answers = torch.arange(30)[:, None] % 3
    rows = {"logits": queries, "module:answer": torch.zeros(6, 1)}
    found = finished({"logits": trusted, "module:answer": answers.float()})(rows)
    a, b = trusted.double().numpy(), queries.double().numpy()
    agree = np.array([[ccc(x, z) for z in a] for x in b])
    slow = 1 - np.stack([agree[:, c::3].mean(1) for c in range(3)]).max(0)

    np.testing.assert_allclose(found, slow, rtol=1e-9)
    alone = finished({"logits": trusted})({"logits": queries})
    np.testing.assert_allclose(alone, 1 - agree.mean(1), rtol=1e-9)


def test_traces_that_do_not_vary_are_like_nothing():
    trusted = normal_rows(30, seed=1)
    flat = torch.full((1, 6), 0.1)
    assert fitted(get_score("functional-mean"), trusted)(flat).item() == 1
    same = flat.repeat(30, 1)
    assert fitted(get_score("functional-mean-ccc"), same)(flat).item() == pytest.approx(1)


def test_what_cannot_be_is_refused():
    with pytest.raises(NotEnoughData, match="at least 5"):
        fitted(get_score("functional-top-ccc"), normal_rows(4, seed=1))
    with pytest.raises(BadValue, match="k"):
        get_score("functional-top-ccc", k=0)
    with pytest.raises(NotEnoughData, match="only the answers"):
        finished({"module:answer": torch.arange(30.0)[:, None]})


def test_exceedance_counts_deviations_above_the_mean():
    trusted, queries = normal_rows(30, seed=1), normal_rows(6, seed=2)
    trusted[:, 3] = 1.5
    a, b = trusted.double().numpy(), queries.double().numpy()
    spread = a.std(0, ddof=0)
    spread[3] = np.inf
    found = fitted(get_score("exceedance"), trusted)(queries)

    np.testing.assert_allclose(found, ((b - a.mean(0)) / spread).mean(1), rtol=1e-9)
