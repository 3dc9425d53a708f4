"""Rank figures against pair counting and scikit-learn; coverage of their intervals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as their_roc_curve

from offkey.errors import BadInput, BadValue
from offkey.stats import (
    auroc,
    average_precision,
    excess,
    named_rng,
    paired_auroc_difference,
    roc_curve,
    tpr_at_fpr,
)

samples = st.tuples(
    st.lists(st.integers(-4, 4), min_size=1, max_size=12),
    st.lists(st.integers(-4, 4), min_size=1, max_size=12),
)


def joined(positive, negative):
    return [*positive, *negative], [1] * len(positive) + [0] * len(negative)


def slow_delong(columns, labels):
    """Areas and their covariance, pair by pair."""
    labels = np.array(labels)
    areas, by_pos, by_neg = [], [], []
    for scores in map(np.array, columns):
        psi = [[(x > y) + (x == y) / 2 for y in scores[labels == 0]] for x in scores[labels == 1]]
        psi = np.array(psi, dtype=float)
        areas.append(psi.mean())
        by_pos.append(psi.mean(1))
        by_neg.append(psi.mean(0))
    covariance = np.cov(by_pos) / len(by_pos[0]) + np.cov(by_neg) / len(by_neg[0])
    return areas, np.atleast_2d(covariance)


@settings(max_examples=25, deadline=None)
@given(samples, st.randoms(use_true_random=False))
def test_values_with_ties(sample, random):
    scores, labels = joined(*sample)
    pairs = [(x > y) + (x == y) / 2 for x, y in itertools.product(*sample)]
    figure = auroc(scores, labels)
    assert figure.value == pytest.approx(np.mean(pairs), abs=1e-12)
    assert figure.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert figure.high - figure.low > 0.01
    precision = average_precision(scores, labels)
    assert precision.value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert precision.low <= precision.value <= precision.high

    order = list(range(len(scores)))
    random.shuffle(order)
    moved = [scores[i] for i in order], [labels[i] for i in order]
    assert auroc(*moved).value == figure.value
    assert auroc(*moved).low == pytest.approx(figure.low, abs=1e-12)
    assert average_precision(*moved).value == pytest.approx(precision.value)
    flipped = auroc([-s for s in scores], labels)
    assert flipped.low == pytest.approx(1 - figure.high, abs=1e-9)
    assert flipped.high == pytest.approx(1 - figure.low, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_equals_pair_by_pair(ties):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    first, second = rng.standard_normal((2, 60)) + labels
    if ties:
        first, second = np.round(first), np.round(second)
    areas, covariance = slow_delong([first, second], labels)
    figure = auroc(first, labels)
    reach = norm.isf(0.025) * covariance[0, 0] ** 0.5 / (areas[0] * (1 - areas[0]))
    logit = np.log(areas[0] / (1 - areas[0]))
    assert figure.low == pytest.approx(1 / (1 + np.exp(-logit + reach)))
    assert figure.high == pytest.approx(1 / (1 + np.exp(-logit - reach)))
    paired = paired_auroc_difference(first, second, labels)
    error = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    assert paired.value == pytest.approx(areas[0] - areas[1])
    assert paired.high - paired.value == pytest.approx(norm.isf(0.025) * error)
    assert paired.p_value == pytest.approx(2 * norm.sf(abs(paired.value) / error))


def test_ends_do_not_collapse():
    for n_pos, n_neg in [(1, 1), (5, 300), (300, 5), (200, 200)]:
        perfect = auroc(*joined(range(1000, 1000 + n_pos), range(n_neg)))
        assert perfect.value == perfect.high == 1.0
        assert perfect.low == pytest.approx(0.025 ** (1 / min(n_pos, n_neg)))
        worst = auroc(*joined(range(n_pos), range(1000, 1000 + n_neg)))
        assert worst.value == worst.low == 0.0
        assert worst.high == pytest.approx(1 - 0.025 ** (1 / min(n_pos, n_neg)))
    tied = auroc(*joined([1] * 50, [1] * 50))
    assert tied.value == 0.5
    assert tied.low < 0.4 < 0.6 < tied.high


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


@pytest.mark.parametrize(("hits", "n"), [(3, 4), (1, 30), (29, 30), (150, 200)])
def test_exact_interval_by_scan(hits, n):
    """One normal level, anomalous rows above or below it: the area is a rate."""
    figure = auroc(*joined([1] * hits + [-1] * (n - hits), [0] * n), method="exact")
    inside = [q for q in np.linspace(1e-5, 1 - 1e-5, 100_001) if n * kl(hits / n, q) <= np.log(40)]
    assert figure.low == pytest.approx(inside[0], abs=2e-5)
    assert figure.high == pytest.approx(inside[-1], abs=2e-5)


def worlds():
    """Pairs of distributions with known area: smooth, heavy ties, and rare misses."""
    for shift in (0.0, 1.0, 2.5):
        yield (
            lambda rng, n, shift=shift: rng.standard_normal(n) + shift,
            lambda rng, n: rng.standard_normal(n),
            float(norm.cdf(shift / 2**0.5)),
        )
    for miss in (0.02, 0.2):
        yield (
            lambda rng, n, miss=miss: np.where(rng.random(n) < miss, -1.0, 1.0),
            lambda rng, n: np.zeros(n),
            1 - miss,
        )


@pytest.mark.parametrize("world", range(5))
def test_coverage(world):
    """Exact covers by construction; DeLong comes within 2.5 points of 95 % at 50 a class."""
    positive, negative, truth = list(worlds())[world]
    rng = np.random.default_rng(world)
    rounds = 600
    covered = {"delong": 0, "exact": 0}
    for _ in range(rounds):
        table = joined(positive(rng, 50), negative(rng, 60))
        for method in covered:
            figure = auroc(*table, method=method)
            covered[method] += figure.low <= truth <= figure.high
    assert covered["exact"] / rounds >= 0.95
    assert covered["delong"] / rounds >= 0.925


def test_perfect_bound_is_wrong_at_most_as_often_as_stated():
    """At the truth where the bound is tight, perfect separation bounds it away in 2.5 %."""
    rng = np.random.default_rng(1)
    k = 40
    truth = 0.025 ** (1 / k) - 1e-9
    wrong = [
        auroc(*joined(np.where(rng.random(k) < truth, 1.0, -1.0), np.zeros(k))).low > truth
        for _ in range(3000)
    ]
    assert 0.017 <= np.mean(wrong) <= 0.034


def test_nulls_and_empty_classes():
    figure = auroc([0.1, None, 0.7, float("nan"), 0.2], [0, 0, 1, 1, 0])
    assert (figure.value, figure.n_pos, figure.n_neg, figure.n_null) == (1.0, 1, 2, 2)
    for function in (auroc, average_precision, tpr_at_fpr):
        empty = function([1.0, 2.0], [0, 0])
        assert (empty.value, empty.low, empty.high) == (None, None, None)
        assert (empty.n_pos, empty.n_neg) == (0, 2)
        assert function([], []).value is None
    assert roc_curve([1.0], [1]) is None
    assert paired_auroc_difference([1.0], [1.0], [1]).value is None
    assert excess([1.0], [1.0], [1], np.random.default_rng(0)).value is None
    pair = paired_auroc_difference([1, 2, None, 3], [1, 2, 3, None], [0, 1, 1, 0])
    assert (pair.n_pos, pair.n_neg, pair.n_null) == (1, 1, 2)


def test_takes_tensors_and_infinite_scores():
    scores = torch.tensor([1.0, 2.0, float("inf"), 0.0])
    assert auroc(scores, torch.tensor([0, 1, 1, 0])).value == 1.0
    assert roc_curve(scores, [False, True, True, False]).tpr[-1] == 1.0


def test_paired_difference_of_equal_rankings_does_not_collapse():
    scores, labels = joined(range(50, 90), range(40))
    pair = paired_auroc_difference(scores, scores, labels)
    assert pair.value == 0.0
    assert pair.p_value == 1.0
    assert pair.low < -0.05 < 0.05 < pair.high


def test_excess_equals_resampling_row_by_row():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [40, 70])
    scores, clean = np.round(rng.standard_normal((2, 110)) * 3) + 3 * labels * [[1.0], [0.3]]
    ours = excess(scores, clean, labels, named_rng(0, "x"), rounds=3000)
    draws = []
    for _ in range(1500):
        pos, neg = rng.integers(0, 40, 40), rng.integers(40, 110, 70)
        gaps = [np.sign(column[pos][:, None] - column[neg]) for column in (scores, clean)]
        areas = [(1 + gap.mean()) / 2 for gap in gaps]
        draws.append(areas[0] - max(0.5, areas[1]))
    value = roc_auc_score(labels, scores) - max(0.5, roc_auc_score(labels, clean))
    assert ours.value == pytest.approx(value)
    assert ours.low == pytest.approx(np.quantile(draws, 0.025), abs=0.015)
    assert ours.high == pytest.approx(np.quantile(draws, 0.975), abs=0.015)
    again = excess(scores, clean, labels, named_rng(0, "x"), rounds=3000)
    assert again == ours


def test_excess_of_a_perfect_detector_is_not_certain():
    scores, labels = joined(range(100, 130), range(30))
    figure = excess(scores, [0.0] * 60, labels, named_rng(0, "x"))
    assert figure.value == 0.5
    assert figure.low == pytest.approx(0.025 ** (1 / 30) - 0.5)


def test_tpr_at_fpr():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [200, 900])
    scores = np.round(rng.standard_normal(1100) + 2 * labels, 1)
    fpr, tpr, _ = their_roc_curve(labels, scores, drop_intermediate=False)
    for level in (0.01, 0.05, 0.2):
        figure = tpr_at_fpr(scores, labels, fpr=level)
        assert figure.value == pytest.approx(tpr[fpr <= level].max())
        assert figure.low < figure.value < figure.high
    few = joined(range(10), range(299))
    assert tpr_at_fpr(*few).value is None
    assert tpr_at_fpr(*few, fpr=0.05).value is not None
    assert tpr_at_fpr(*joined([500.0, 295.5, -1], range(300))).value == pytest.approx(1 / 3)
    assert tpr_at_fpr(*joined([500.0, 296.0, 296.5], range(300))).value == pytest.approx(2 / 3)


def test_roc_curve_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    scores = np.round(rng.standard_normal(80), 1)
    ours = roc_curve(scores, labels)
    for a, b in zip(ours, their_roc_curve(labels, scores, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(a, b)


def test_errors():
    with pytest.raises(BadInput, match="label 2 of row 1"):
        auroc([1, 2], [0, 2])
    with pytest.raises(BadInput, match="differ in number"):
        auroc([1, 2], [0])
    with pytest.raises(BadInput, match="differ in number"):
        paired_auroc_difference([1, 2], [1], [0, 1])
    with pytest.raises(BadValue):
        tpr_at_fpr([1], [1], fpr=0)
    with pytest.raises(BadValue):
        auroc([1], [1], confidence=1.0)
