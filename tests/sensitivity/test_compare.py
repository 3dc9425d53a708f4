"""Curves in one number, and populations of models."""

import numpy as np
import pytest
from scipy.stats import norm

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData, UnknownName
from offkey.sensitivity import (
    Curve,
    check_comparable,
    compare_curves,
    compare_models,
    load_curves,
    smallest_detectable_auroc,
    summarise,
)


def curve(strengths, heights, **about):
    strengths, heights = np.array(strengths, float), np.array(heights, float)
    norms = np.repeat(strengths[:, None], 2, axis=1)
    values = np.stack([heights, heights], 1)[:, :, None] * np.array([0.5, 1.0, 1.5])

    return Curve(strengths, norms, norms, {"kl": values}, ("a", "b", "c"), about)


def test_summaries_of_a_power_law():
    x = np.geomspace(0.1, 10, 30)
    squared = curve(x, 0.5 * x**2)

    assert summarise(squared, "slope") == pytest.approx(2)
    assert summarise(squared, "strength_at", at=2.0) == pytest.approx(-np.log(2))
    assert summarise(squared, "at", at=x[7]) == pytest.approx(0.5 * x[7] ** 2)
    assert summarise(curve([0, 1, 3], [0, 2, 4]), "auc") == pytest.approx(7 / 3)


def test_volume_is_the_mean_log_length_over_draws():
    x = np.geomspace(0.1, 10, 30)
    lengths = x[:, None] * np.array([1.0, 4.0])
    heights = np.stack([x**2, x**2], 1)[:, :, None] * np.ones(3)
    told = Curve(x, lengths, lengths, {"kl": heights}, ("a", "b", "c"))

    # Both reach 2 at the same strength, which is a length of √2 and one of 4 √2.
    assert summarise(told, "volume", at=2.0) == pytest.approx(-(np.log(2) / 2 + np.log(4) / 2))


def test_a_level_never_reached_counts_as_the_greatest_strength():
    assert summarise(curve([1, 2, 4], [0.1, 0.2, 0.3]), "strength_at", at=9) == pytest.approx(
        -np.log(4)
    )


def test_bad_summaries():
    flat = curve([1, 2], [0.1, 0.2])
    with pytest.raises(BadValue, match="needs"):
        summarise(flat, "at")
    with pytest.raises(BadValue, match="outside"):
        summarise(flat, "at", at=3)
    with pytest.raises(UnknownName, match="kl"):
        summarise(flat, metric="lk")


def test_curves_are_compared_by_their_summaries():
    curves = {
        n: curve([0, 1, 3], [0, h, 2 * h]) for n, h in zip("abcd", (4, 1, 2, 3), strict=True)
    }
    labels = {"a": True, "b": False, "c": False, "d": True}
    scores, comparison = compare_curves(curves, labels)

    assert scores == {name: summarise(each) for name, each in curves.items()}
    assert comparison.auroc.value == 1.0
    assert comparison.smallest_detectable == smallest_detectable_auroc(2, 2)
    with pytest.raises(UnknownName, match="summary"):
        compare_curves(curves, labels, how="aux")


def test_curves_of_one_name_are_not_loaded_together(tmp_path):
    for folder in ("x", "y"):
        curve([1, 2], [1, 2]).save(tmp_path / folder / "a")
    with pytest.raises(BadValue, match="two folders are named 'a'"):
        load_curves([tmp_path / "x" / "a", tmp_path / "y" / "a"])
    assert list(load_curves([tmp_path / "x" / "a"])) == ["a"]


def test_a_score_that_is_not_finite_is_named():
    labels = {"a": True, "b": True, "c": False, "d": False}
    with pytest.raises(BadInput, match="model b"):
        compare_models({"a": 1.0, "b": np.inf, "c": 0.0, "d": 0.5}, labels)


def test_pair_accuracy_is_the_auroc():
    scores = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 0.5, "e": 2.0}
    bad = {"a": True, "b": True, "c": False, "d": False, "e": False}
    pairs = [(scores[m] > scores[n]) + 0.5 * (scores[m] == scores[n]) for m in "ab" for n in "cde"]
    found = compare_models(scores, bad)

    assert found.auroc.value == pytest.approx(np.mean(pairs))
    assert found.pairs == 6
    assert found.auroc.low <= found.auroc.value <= found.auroc.high


def test_intervals_cover_and_widen_with_kinds():
    rng = np.random.default_rng(0)
    truth, covered, widths = norm.cdf(1 / 2**0.5), 0, []
    for trial in range(100):
        names = [f"{label}{i}" for label in "mn" for i in range(18)]
        scores = {n: rng.normal(1.0 if n[0] == "m" else 0.0) for n in names}
        labels = {n: n[0] == "m" for n in names}
        found = compare_models(scores, labels, seed=trial).auroc
        covered += found.low <= truth <= found.high
    assert covered >= 86
    kinds = {n: n[0] + str(int(n[1:]) // 6) for n in names}
    of_kinds = {"m0": 2.0, "m1": -1.0, "m2": 1.0, "n0": 0.0, "n1": 0.5, "n2": -0.5}
    clustered = {n: of_kinds[kinds[n]] + 0.01 * rng.normal() for n in names}
    for given in (None, kinds):
        told = compare_models(clustered, labels, kinds=given).auroc
        widths.append(told.high - told.low)
    assert widths[1] > 1.3 * widths[0]


def test_what_a_population_can_detect():
    assert smallest_detectable_auroc(9, 9) == pytest.approx(0.86, abs=0.03)
    assert smallest_detectable_auroc(100, 100) < 0.63
    assert smallest_detectable_auroc(2, 2) == 1.0


def test_what_cannot_be_compared():
    good = {"a": True, "b": True, "c": False, "d": False}
    with pytest.raises(Mismatch, match="model d"):
        compare_models({"a": 1, "b": 2, "c": 3}, good)
    with pytest.raises(NotEnoughData):
        compare_models({"a": 1, "b": 2, "c": 3}, {"a": True, "b": True, "c": False})
    with pytest.raises(BadInput, match="finite"):
        compare_models({"a": 1, "b": np.nan, "c": 3, "d": 1}, good)


def test_curves_of_other_settings_are_refused():
    one, two = (
        curve([1, 2], [1, 2], site="resid_post.1"),
        curve([1, 2], [1, 2], site="resid_post.2"),
    )

    check_comparable({"one": one, "again": one})
    with pytest.raises(Mismatch, match="site is 'resid_post.2' for two"):
        check_comparable({"one": one, "two": two})
