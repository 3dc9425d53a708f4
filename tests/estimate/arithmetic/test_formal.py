"""Permanents, random clauses, and accuracy over a distribution of expressions."""

import itertools
import math

import numpy as np
import pytest

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData
from offkey.estimate.arithmetic import (
    Circuit,
    accuracy,
    block,
    clause_solutions,
    permanent,
    permanent_estimates,
    propagate,
)


@pytest.mark.parametrize("size", range(1, 6))
def test_permanent_is_the_sum_over_permutations(size):
    matrix = np.random.default_rng(size).normal(size=(size, size))
    expected = sum(
        math.prod(matrix[i, p[i]] for i in range(size))
        for p in itertools.permutations(range(size))
    )
    assert permanent(matrix) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_three_estimates_of_a_permanent():
    matrix = np.arange(1.0, 10.0).reshape(3, 3)
    result = [float(estimate) for estimate in permanent_estimates(matrix)]
    assert [permanent(matrix), *result] == pytest.approx([450, 480, 720, 750], rel=1e-10)


@pytest.mark.parametrize("size", range(1, 7))
def test_estimates_are_exact_on_constant_matrices(size):
    matrix = np.full((size, size), 1.7)
    for estimate in permanent_estimates(matrix):
        assert float(estimate) == pytest.approx(permanent(matrix), rel=1e-10)


def test_mean_number_of_solutions():
    assert float(clause_solutions(10, 20)) == pytest.approx(2**10 * (7 / 8) ** 20, rel=1e-10)
    assert float(clause_solutions(10, 0)) == pytest.approx(1024)


def test_permanents_on_their_estimates_have_slope_one():
    drawn = np.random.default_rng(0).exponential(size=(2000, 4, 4))
    truths = np.array([permanent(matrix) for matrix in drawn])
    rows = np.array([float(permanent_estimates(matrix).rows) for matrix in drawn])
    result = accuracy(truths, rows)
    assert abs(result.slope - 1) < 5 * result.slope_error < 0.5
    assert abs(result.bias) < 5 * result.bias_error


def expressions(seed=0, count=3000):
    """xy + zw of leaves whose covariances have random signs: truth, no pairs, one pair."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        mean, signs = rng.normal(size=4), rng.choice([-1, 1], size=2)
        x, y, z, w = block(
            mean, np.eye(4) + np.kron(np.diag(signs), [[0, 0.6], [0.6, 0]]), names="xyzw"
        )
        circuit = Circuit(x * y + z * w)
        exact = float(propagate(circuit).estimate())
        naive = mean[0] * mean[1] + mean[2] * mean[3]
        result.append((exact, naive, naive + 0.6 * signs[0]))

    return np.array(result).T


def test_more_of_an_argument_is_as_accurate_and_nearer():
    exact, naive, partial = expressions()
    for estimates in (naive, partial):
        result = accuracy(exact, estimates)
        assert abs(result.slope - 1) < 5 * result.slope_error
        assert abs(result.bias) < 5 * result.bias_error
    assert np.var(exact - partial) < np.var(exact - naive)
    # The later error is orthogonal to the earlier estimate.
    product = (exact - partial) * naive
    assert abs(product.mean()) < 5 * product.std() / len(product) ** 0.5


def test_a_shrunk_estimate_is_detected():
    exact, naive, _ = expressions()
    result = accuracy(exact, 0.5 * naive)
    assert result.slope == pytest.approx(2, abs=5 * result.slope_error)
    assert result.slope - 5 * result.slope_error > 1


def test_slope_is_least_squares():
    rng = np.random.default_rng(1)
    x = rng.normal(size=50)
    y = 2 * x + 1 + rng.normal(size=50)
    result = accuracy(y, x)
    assert [result.slope, result.intercept] == pytest.approx(
        np.polyfit(x, y, 1).tolist(), rel=1e-10
    )


def test_bad_input_is_refused():
    for refused, error, result in (
        (lambda: permanent(np.ones((2, 3))), BadInput, "not a square"),
        (lambda: permanent_estimates(np.full((2, 2), np.nan)), BadInput, "finite"),
        (lambda: permanent(np.ones((23, 23))), BadValue, "at most 22"),
        (lambda: clause_solutions(2, 5), BadValue, "clauses of 3"),
        (lambda: accuracy(np.ones(3), np.ones(4)), Mismatch, "estimates of"),
        (lambda: accuracy(np.ones(3), np.ones(3)), NotEnoughData, "without a spread"),
        (lambda: accuracy(np.array([1, 2, np.inf]), np.arange(3.0)), BadInput, "not finite"),
    ):
        with pytest.raises(error, match=result):
            refused()
