"""Covariance propagation against a slow reference, enumeration and sampling."""

import itertools

import numpy as np
import pytest

from offkey.errors import BadValue, NonFinite
from offkey.estimate.arithmetic import (
    Circuit,
    bernoulli,
    block,
    both,
    differ,
    either,
    exact_mean,
    leaf,
    negation,
    propagate,
)
from offkey.estimate.arithmetic.nodes import linear
from offkey.estimate.arithmetic.propagation import closure, missing, needs


def reference(circuit, pairs):
    """Means, variances and covariances by recursion from the definition, without clamps."""

    def mean(k):
        step = circuit.steps[k]
        if step.kind == "leaf":
            return circuit.leaf(k).mean
        if step.kind == "product":
            i, j = step.parents
            return mean(i) * mean(j) + covariance(i, j)
        return step.constant + sum(
            a * mean(i) for a, i in zip(step.weights, step.parents, strict=True)
        )

    def variance(k):
        step = circuit.steps[k]
        if step.kind == "leaf":
            return circuit.leaf(k).variance
        if step.kind == "product":
            i, j = step.parents
            x, y, c = mean(i), mean(j), covariance(i, j)
            u, v = variance(i), variance(j)
            return x**2 * v + y**2 * u + 2 * x * y * c + u * v + c**2
        terms = list(zip(step.weights, step.parents, strict=True))
        return sum(a * b * covariance(i, j) for a, i in terms for b, j in terms)

    def covariance(i, j):
        i, j = min(i, j), max(i, j)
        if i == j:
            return variance(i)
        if (i, j) in circuit.known:
            return circuit.known[i, j]
        if (i, j) not in pairs:
            return 0.0
        step = circuit.steps[j]
        if step.kind == "product":
            a, b = step.parents
            return mean(a) * covariance(b, i) + mean(b) * covariance(a, i)
        return sum(a * covariance(x, i) for a, x in zip(step.weights, step.parents, strict=True))

    nodes = range(len(circuit))

    return (
        [mean(k) for k in nodes],
        [variance(k) for k in nodes],
        {pair: covariance(*pair) for pair in pairs},
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_sparse_propagation_is_the_definition(make_circuit, seed, share):
    circuit = make_circuit(seed)
    rng = np.random.default_rng(seed)
    pairs = [pair for pair in circuit.candidates("all") if rng.random() < share]
    argument = circuit.tracked(pairs, candidates="all")
    done = propagate(circuit, argument, clamp=False)
    means, variances, covariances = reference(circuit, set(pairs))
    assert done.means == pytest.approx(np.array(means), rel=1e-10, abs=1e-12)
    assert done.variances == pytest.approx(np.array(variances), rel=1e-10, abs=1e-12)
    assert done.covariances == pytest.approx(covariances, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_all_pairs_by_matrix_or_by_dictionary(make_circuit, seed, clamp):
    circuit = make_circuit(seed)
    every = circuit.tracked(circuit.candidates("all"), candidates="all")
    sparse, full = propagate(circuit, every, clamp=clamp), propagate(circuit, "all", clamp=clamp)
    assert full.means == pytest.approx(sparse.means, rel=1e-10, abs=1e-12)
    assert full.variances == pytest.approx(sparse.variances, rel=1e-10, abs=1e-12)
    assert full.tracked == sparse.tracked
    for i, j in full.tracked:
        expected = sparse.covariance(i, j)
        assert full.covariance(i, j) == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert full.clamped_covariances == sparse.clamped_covariances


def test_moments_of_gaussian_leaves_are_exact(make_circuit):
    rng = np.random.default_rng(3)
    mean, root = rng.normal(size=4), rng.normal(size=(4, 4))
    x, y, z, w = block(mean, root @ root.T / 4)
    product, total = x * y, 2 * x - y + 0.5 * z * 1.0 + w + 1
    circuit = Circuit(product, total)
    done = propagate(circuit, "all")
    draws = rng.multivariate_normal(mean, root @ root.T / 4, size=200_000)
    values = circuit.evaluate(dict(zip((x, y, z, w), draws.T, strict=True)))
    for node in (product, total):
        seen = values[:, circuit.index(node)]
        error = seen.std() / len(seen) ** 0.5
        assert float(done.estimate(node)) == pytest.approx(seen.mean(), abs=5 * error)
        square = (seen - seen.mean()) ** 2
        error = square.std() / len(seen) ** 0.5
        assert done.covariance(node, node) == pytest.approx(square.mean(), abs=5 * error)
    both_seen = values[:, circuit.index(z)], values[:, circuit.index(product)]
    cross = (both_seen[0] - both_seen[0].mean()) * (both_seen[1] - both_seen[1].mean())
    error = cross.std() / len(cross) ** 0.5
    assert done.covariance(z, product) == pytest.approx(cross.mean(), abs=5 * error)


def test_chain_of_squares():
    x = leaf(0.0, 1.0)
    a = x * x
    b = a * a
    d = a * b
    circuit = Circuit(d)
    full, naive = propagate(circuit, "all"), propagate(circuit)
    assert full.means.tolist() == [0, 1, 3, 7]
    assert full.covariance(a, b) == 4
    assert float(naive.estimate(d)) == 3


def test_exclusive_or_needs_its_own_pairs_for_its_variance():
    x, y = bernoulli(0.5), bernoulli(0.5)
    circuit = Circuit(differ(x, y))
    naive, full = propagate(circuit), propagate(circuit, "all")
    assert naive.variances[-1] == 1.25
    assert full.variances[-1] == 0.25
    assert naive.presumed == (frozenset(), frozenset({(0, 2), (1, 2)}))


def test_one_leaf_in_the_place_of_an_exactly_known_part():
    x, y, z = (bernoulli(0.5) for _ in range(3))
    odd = differ(x, y, name="odd")
    circuit = Circuit(odd * z)
    known = circuit.with_leaves({"odd": bernoulli(exact_mean(circuit, "odd"))})
    assert propagate(circuit).variances[circuit.index("odd")] == 1.25
    assert propagate(known).variances[known.index("odd")] == 0.25
    assert float(propagate(known).estimate()) == 0.25


def test_the_truth_tables():
    x, y = bernoulli(0.5, name="x"), bernoulli(0.25, name="y")
    nodes = (negation(x), both(x, y), either(x, y), differ(x, y))
    circuit = Circuit(*nodes)
    for a, b in itertools.product((0, 1), repeat=2):
        row = circuit.evaluate({"x": a, "y": b})[0]
        seen = [row[circuit.index(node)] for node in nodes]
        assert seen == [1 - a, a & b, a | b, a ^ b]
    assert [exact_mean(circuit, node) for node in nodes] == [0.5, 0.125, 0.625, 0.5]


def test_the_toy_and_its_closures(toy):
    w_nu = toy.pair("w", "nu")
    assert needs(toy, w_nu) == [toy.pair("u", "w")]
    assert closure(toy, [w_nu]) == {w_nu, toy.pair("u", "w")}
    lone = propagate(toy, toy.tracked([("w", "nu")]))
    assert lone.missing == {toy.pair("u", "w")}
    assert lone.covariance("w", "nu") == 0
    closed = propagate(toy, toy.tracked([("w", "nu")]), close=True)
    assert closed.tracked == closure(toy, [w_nu])
    assert closed.missing == frozenset()
    assert float(closed.estimate()) == 58 / 64


def test_what_an_entry_needs_depends_on_the_order():
    def made(swapped):
        u, v = bernoulli(0.5, name="u"), bernoulli(0.75, name="v")
        if swapped:
            nu = negation(u, name="nu")
            w = both(u, v, name="w")
        else:
            w = both(u, v, name="w")
            nu = negation(u, name="nu")
        circuit = Circuit(w * nu)
        return {
            frozenset(map(circuit.label, pair))
            for pair in missing(circuit, [circuit.pair("w", "nu")])
        }

    assert made(swapped=False) == {frozenset({"u", "w"})}
    assert made(swapped=True) == {frozenset({"u", "nu"})}


def test_naive_estimates_presume_what_is_not_independent(toy):
    factors, _ = propagate(toy).presumed
    assert factors == {toy.pair("w", "nu"), toy.pair("o", "nv")}


def test_independent_nodes_need_no_tracking():
    u, v = bernoulli(0.5, name="u"), bernoulli(0.5, name="v")
    circuit = Circuit((1 - u).named("nu") * (1 - v).named("nv"))
    assert propagate(circuit, circuit.tracked([("nu", "nv")])).missing == frozenset()
    assert propagate(circuit).presumed == (frozenset(), frozenset())


def test_a_negative_variance_becomes_zero_and_is_named():
    x, y, z = block([0, 0, 0], np.full((3, 3), 0.9) + 0.1 * np.eye(3), names=list("xyz"))
    s, t = (x + y).named("s"), (y + z).named("t")
    gap = linear([1.0, -1.0], [s, t], name="gap")
    again = linear([1.0, 1.0, -2.0], [s, t, y], name="again")
    circuit = Circuit(gap * again)
    # Of the four pairs that the variance of `again` needs, those with y pull it down.
    argument = circuit.tracked([("s", "y"), ("t", "y")])
    loose = propagate(circuit, argument, clamp=False)
    done = propagate(circuit, argument)
    place = circuit.index("again")
    assert loose.variances[place] == pytest.approx(3.8 + 3.8 + 4 - 4 * 1.9 * 2)
    assert loose.variances[place] < 0
    assert done.variances[place] == 0
    assert done.clamped_variances == (place,)


def test_a_covariance_beyond_its_limit_is_clamped_and_named():
    x, y, z = block([0, 0, 0], np.full((3, 3), 0.9) + 0.1 * np.eye(3), names=list("xyz"))
    s, t = (x + y).named("s"), (z + y).named("t")
    again = linear([1.0, -1.0], [s, t], name="again")
    near = linear([2.0, 2.0], [s, t], name="near")
    circuit = Circuit(near * y, again)
    pair = circuit.pair("y", "near")
    argument = circuit.tracked([("y", "s"), ("y", "t"), ("y", "near")])
    loose = propagate(circuit, argument, clamp=False)
    done = propagate(circuit, argument)
    limit = float(np.sqrt(done.variances[pair[0]] * done.variances[pair[1]]))
    assert loose.covariance(*pair) == pytest.approx(2 * 1.9 * 2)
    assert loose.covariance(*pair) > limit
    assert done.covariance(*pair) == pytest.approx(limit)
    assert done.clamped_covariances == (pair,)


def test_overflow_names_the_node():
    x = leaf(1e200, 1.0, name="x")
    circuit = Circuit((x * x).named("huge"))
    for argument in (None, "all"):
        with pytest.raises(NonFinite, match="node huge"):
            propagate(circuit, argument)


def test_work_grows_with_the_tracked_pairs_and_not_with_all():
    def flops(size):
        nodes = [leaf(0.5, 0.1) for _ in range(4)]
        for k in range(size):
            nodes.append((0.5 * nodes[-1] + 0.3 * nodes[-2] * nodes[k % 4]).named(""))
        circuit = Circuit(nodes[-1])
        near = [(k, k + 1) for k in range(len(circuit) - 1)]
        return propagate(circuit, circuit.tracked(near, candidates="all")).flops

    assert flops(2000) / flops(200) == pytest.approx(10, rel=0.05)


def test_an_unknown_word_is_refused(toy):
    with pytest.raises(BadValue, match="unknown argument 'full'"):
        propagate(toy, "full")
