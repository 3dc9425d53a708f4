"""Higher cumulants and Gaussian moments against matchings, moments and enumeration."""

import itertools
import math

import numpy as np
import pytest

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.arithmetic import (
    Circuit,
    Cumulants,
    bernoulli,
    block,
    cumulant_terms,
    exact_mean,
    hafnian,
    leaf,
    propagate,
)
from offkey.estimate.arithmetic.cumulants import gaussian_moment


def matchings(indices):
    """Every way to pair the indices up."""
    if not indices:
        yield []
        return
    first, *rest = indices
    for other in rest:
        left = [i for i in rest if i != other]
        for more in matchings(left):
            yield [(first, other), *more]


def covariance_of(size, seed=0):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T


@pytest.mark.parametrize("size", range(7))
def test_hafnian_is_the_sum_over_matchings(size):
    matrix = covariance_of(size)
    expected = sum(
        math.prod(matrix[pair] for pair in pairs) for pairs in matchings(list(range(size)))
    )
    assert hafnian(matrix) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_all_orders_of_a_product_of_gaussians_are_the_hafnian(size):
    matrix = covariance_of(size)
    product = math.prod(block(np.zeros(size), matrix))
    assert Cumulants(Circuit(product)).joint(product) == pytest.approx(hafnian(matrix), rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_all_orders_are_exact_with_means_and_repeats(seed):
    rng = np.random.default_rng(seed)
    mean, matrix = rng.normal(size=3), covariance_of(3, seed)
    x, y, z = block(mean, matrix)
    total = (2 * x - y + 1).named("")
    node = (total * z) * (x * y)
    terms = ((2, [0, 2, 0, 1]), (-1, [1, 2, 0, 1]), (1, [2, 0, 1]))
    expected = sum(a * gaussian_moment(mean, matrix, indices) for a, indices in terms)
    assert Cumulants(Circuit(node)).joint(node) == pytest.approx(expected, rel=1e-10)


def test_powers_of_one_gaussian():
    x = leaf(0.0, 2.0)
    for power in range(1, 9):
        node = x**power
        expected = 0.0 if power % 2 else 2 ** (power / 2) * math.prod(range(1, power, 2))
        assert Cumulants(Circuit(node)).joint(node) == pytest.approx(expected, rel=1e-12)
        assert gaussian_moment([0.0], [[2.0]], [0] * power) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_second_order_is_propagation_with_all_pairs(make_circuit, seed):
    circuit = make_circuit(seed, size=7)
    full, second = propagate(circuit, "all", clamp=False), Cumulants(circuit, 2)
    means = [second.joint(k) for k in range(len(circuit))]
    assert full.means == pytest.approx(np.array(means), rel=1e-10, abs=1e-12)
    for i, j in itertools.combinations_with_replacement(range(len(circuit)), 2):
        expected = full.covariance(i, j)
        assert second.joint(i, j) == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_first_order_is_means_alone():
    x = leaf(2.0, 5.0)
    square = x * x
    first = Cumulants(Circuit(square), 1)
    assert first.joint(square) == 4
    assert first.joint(square, x) == 0


def test_the_chain_of_squares_to_each_order():
    x = leaf(0.0, 1.0)
    a = x * x
    b = a * a
    d = a * b
    circuit = Circuit(d)
    means = [Cumulants(circuit, order).joint(d) for order in (1, 2, 3, 4, None)]
    assert means == [0, 7, 15, 15, 15]
    assert Cumulants(circuit, 3).joint(a, a, a) == 8
    assert float(Cumulants(circuit, 2).estimate()) == 7
    assert Cumulants(circuit, 3).estimate().flops > 0


def test_orders_of_the_toy_close_in_on_the_truth(toy):
    assert exact_mean(toy) == 1
    means = [Cumulants(toy, order).joint("y") for order in (1, 2, 3, None)]
    assert means == pytest.approx([49 / 64, 61 / 64, 1, 1], rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_all_orders_are_exact_on_boolean_leaves(seed):
    rng = np.random.default_rng(seed)
    nodes = [bernoulli(float(p)) for p in rng.random(3)]
    for _ in range(3):
        i, j = rng.choice(len(nodes), 2, replace=False)
        nodes.append(nodes[i] * nodes[j] if rng.random() < 0.5 else 1 - nodes[i] * nodes[j])
    circuit = Circuit(nodes[-1])
    assert Cumulants(circuit).joint(nodes[-1]) == pytest.approx(exact_mean(circuit), abs=1e-10)


def test_third_cumulant_is_that_of_drawn_values():
    rng = np.random.default_rng(0)
    matrix = covariance_of(2) / 2
    x, y = block([0.5, -0.3], matrix)
    node = x * y
    expected = Cumulants(Circuit(node)).joint(node, node, x)
    draws = rng.multivariate_normal([0.5, -0.3], matrix, size=300_000).T
    seen = draws[0] * draws[1]
    values = (seen - seen.mean()) ** 2 * (draws[0] - 0.5)
    assert values.mean() == pytest.approx(expected, abs=5 * values.std() / len(values) ** 0.5)


def test_cumulants_of_leaves_are_used():
    x = leaf(0.0, 1.0, cumulants=[0.5, 2.0])
    node = x**4
    # Fourth moment about 0 of mean 0: fourth cumulant and three squared variances.
    assert Cumulants(Circuit(node)).joint(node) == pytest.approx(2 + 3)
    assert Cumulants(Circuit(x**3)).joint(0, 0, 0) == 0.5


def test_term_counts():
    assert [cumulant_terms(n) for n in (1, 2, 3, 4)] == [2, 11, 129, 2465]


def test_a_deep_circuit_needs_no_recursion():
    node = leaf(1.0, 0.0, name="x")
    for _ in range(3000):
        node = (1.0 * node + 0.0).named("")
    assert Cumulants(Circuit(node), 2).joint(node) == 1


def test_only_what_is_asked_for_is_computed():
    x = leaf(0.0, 1.0)
    square = x * x
    cumulants = Cumulants(Circuit(square))
    cumulants.joint(square)
    assert set(cumulants._found) == {(0,), (0, 0), (1,)}


def test_bad_requests_are_refused(toy):
    for refused, error, result in (
        (lambda: Cumulants(toy, 0), BadValue, "order 0"),
        (lambda: Cumulants(toy).joint(), BadValue, "no node"),
        (lambda: Cumulants(toy).joint(*["u"] * 13), BadValue, "order 13 is not known"),
        (lambda: cumulant_terms(0), BadValue, "0 products"),
        (lambda: hafnian(np.ones((2, 3))), BadInput, "not square"),
        (lambda: hafnian(np.array([[1.0, 2], [0, 1]])), BadInput, "not symmetric"),
        (lambda: gaussian_moment([0.0], [[np.nan]], [0]), BadInput, "not finite"),
        (lambda: gaussian_moment([0.0], np.eye(2), [0]), Mismatch, "1 means"),
        (lambda: gaussian_moment([0.0], [[1.0]], [1]), BadValue, "each below 1"),
        (lambda: gaussian_moment([0.0], [[1.0]], [0] * 23), BadValue, "at most 22"),
    ):
        with pytest.raises(error, match=result):
            refused()
