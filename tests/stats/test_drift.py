"""Drift tests: silent on equal distributions, loud on planted differences."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from offkey.stats import length_drift, named_rng, topic_drift
from offkey.stats.drift import _discrepancy, _separation

FRUIT = "apple pear plum cherry grape melon fig date lemon lime".split()
TOOLS = "saw drill hammer plane chisel file clamp vice wrench level".split()


def texts(rng, words, n, foreign=()):
    return [" ".join(rng.choice([*words, *foreign], 6)) for _ in range(n)]


def test_length_equals_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.poisson(20, 80), rng.poisson(23, 60)
    drift = length_drift(first, second)
    ks = ks_2samp(first, second, method="exact")
    mw = mannwhitneyu(first, second, method="asymptotic")
    assert drift.p_value == pytest.approx(2 * min(ks.pvalue, mw.pvalue))
    assert drift.effect == pytest.approx(ks.statistic)
    assert (drift.n_trusted, drift.n_new) == (80, 60)


def test_length_of_equal_distributions_is_seldom_called_drift():
    rng = np.random.default_rng(0)
    p = [length_drift(rng.poisson(20, 60), rng.poisson(20, 40)).p_value for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_length_planted():
    rng = np.random.default_rng(0)
    wider = length_drift(rng.normal(20, 1, 200), rng.normal(20, 4, 200))
    assert wider.p_value < 1e-6
    longer = length_drift(range(100), range(200, 300))
    assert longer.p_value < 1e-10
    assert longer.effect == 1.0
    assert length_drift([5] * 30, [5] * 30).p_value == 1.0
    assert length_drift([5] * 30, [5] * 30).effect == 0.0
    assert length_drift([None, 3.0], []).p_value is None
    single = length_drift([None, 3.0], [2.0])
    assert (single.p_value, single.n_trusted) == (1.0, 1)


def test_discrepancy_by_definition():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 4))
    is_new = np.array([0, 1, 0, 0, 1, 1, 0, 0, 1.0])
    a, b = x[is_new == 1], x[is_new == 0]

    def mean(p, q, same):
        return np.mean(
            [u @ v for i, u in enumerate(p) for j, v in enumerate(q) if not (same and i == j)]
        )

    slow = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    kernel = x @ x.T
    np.fill_diagonal(kernel, 0)
    sides = np.stack([is_new, 1 - is_new], axis=1)
    assert _discrepancy(kernel, sides[:, :1])[0] == pytest.approx(slow)
    assert _discrepancy(kernel, sides[:, 1:])[0] == pytest.approx(slow)
    assert 0 <= _separation(kernel, is_new) <= 1


def test_topic_of_equal_distributions_is_seldom_called_drift():
    rng = np.random.default_rng(0)
    drifts = [
        topic_drift(texts(rng, FRUIT, 15), texts(rng, FRUIT, 12), rng, rounds=59)
        for _ in range(200)
    ]
    flagged = np.mean([drift.p_value <= 0.1 for drift in drifts])
    assert 0.03 <= flagged <= 0.1 + 3 * (0.1 * 0.9 / 200) ** 0.5
    assert np.mean([drift.effect for drift in drifts]) < 0.2


def test_topic_planted():
    rng = np.random.default_rng(0)
    apart = topic_drift(texts(rng, FRUIT, 40), texts(rng, TOOLS, 30), rng)
    assert apart.p_value == 1 / 500
    assert apart.effect == 1.0
    mild = topic_drift(texts(rng, FRUIT, 150), texts(rng, FRUIT, 150, TOOLS[:2]), rng)
    assert mild.p_value < 0.02
    assert 0 < mild.effect < 0.9


def test_topic_is_repeatable_and_subsamples():
    rng = np.random.default_rng(0)
    first, second = texts(rng, FRUIT, 80), texts(rng, FRUIT, 70)
    one = topic_drift(first, second, named_rng(0, "drift"), most=50)
    assert one == topic_drift(first, second, named_rng(0, "drift"), most=50)
    assert (one.n_trusted, one.n_new) == (50, 50)


def test_topic_of_too_little():
    rng = np.random.default_rng(0)
    assert topic_drift(["a"], ["b", "c"], rng).p_value is None
    assert topic_drift(["", ""], ["", " "], rng).p_value is None
    assert topic_drift(["+ -", "7"], ["? !", "8"], rng).p_value is not None
