"""Means over tasks and seeds, and correlations."""

import numpy as np
import pytest
from scipy import stats

from offkey.bench import correlation, over_seeds
from offkey.bench.averages import over_tasks, task_mean


def test_correlation_against_the_definition():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 8))
    y = y + x
    result = correlation(x.tolist(), y.tolist())
    dx, dy = x - x.mean(), y - y.mean()
    r = (dx @ dy) / np.sqrt((dx @ dx) * (dy @ dy))
    half = stats.norm.ppf(0.975) / np.sqrt(8 - 3)
    assert result.pearson == pytest.approx(r)
    assert result.low == pytest.approx(np.tanh(np.arctanh(r) - half))
    assert result.high == pytest.approx(np.tanh(np.arctanh(r) + half))
    ranks = np.argsort(np.argsort(x)), np.argsort(np.argsort(y))
    assert result.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_correlation_of_too_little_is_null():
    assert correlation([1.0] * 3, [2.0] * 3).reason == "needs 4 tasks; there are 3"
    assert correlation([1.0] * 5, [0.0, 1.0, 2.0, 3.0, 4.0]).reason == "nothing varies"


def test_organisms_of_one_task_count_as_one_task():
    values = {"comparison": 1.0, "comparison-1": 0.6, "comparison-2": 0.8, "owner": 0.5}

    mean = over_tasks(values)
    assert mean.value == pytest.approx((0.8 + 0.5) / 2) == task_mean(values)
    assert mean.low < mean.value < mean.high
    assert over_tasks({"comparison": 0.7}).low == 0.7


def test_seeds_are_compared_on_the_tasks_that_have_them():
    values = {
        "comparison": 0.9,
        "comparison-1": 0.8,
        "comparison-2": 0.7,
        "agreement": 0.7,
        "agreement-1": 0.6,
        "agreement-2": 0.5,
        "owner": 0.1,
    }
    mean = over_seeds(values)
    half = 4.302653 * 0.1 / 3**0.5  # t with two degrees of freedom

    assert mean.seeds == 3
    assert mean.value == pytest.approx(0.7)
    assert mean.low == pytest.approx(0.7 - half)
    assert mean.high == pytest.approx(0.7 + half)
    assert over_seeds({"comparison": 1.0, "owner": 1.0}).value is None
    assert over_seeds({"comparison": 1.0, "comparison-1": 0.8, "owner": 1.0}).seeds == 2
