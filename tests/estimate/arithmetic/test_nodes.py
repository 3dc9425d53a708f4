"""The language: what is written, what circuit it makes, and what is refused."""

import math

import numpy as np
import pytest

from offkey.errors import BadInput, BadValue, Mismatch, UnknownName
from offkey.estimate import TrackedPairs
from offkey.estimate.arithmetic import Circuit, bernoulli, block, leaf
from offkey.estimate.arithmetic.nodes import linear


def test_a_sum_of_sums_is_one_node_until_it_is_named():
    u, v = leaf(1.0, name="u"), leaf(2.0, name="v")
    assert len(Circuit(2 * u + 1 - v - u / 2)) == 3
    inner = (u + v).named("s")
    circuit = Circuit(inner + u)
    assert [circuit.label(k) for k in range(4)] == ["u", "v", "s", "#3"]
    assert circuit.steps[3].parents == (2, 0)


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (lambda x, y: 2 * x + 1 - y, 2 * 3 + 1 - 5),
        (lambda x, y: 1 - x * y, -14),
        (lambda x, y: -x / 2 + y * 3, 13.5),
        (lambda x, y: x**3 - y, 22),
        (lambda x, y: np.float64(2) * x + np.int64(4), 10),
        (lambda x, y: x - x + y, 5),
        (lambda x, y: linear([2, -1], [x, y], 7), 8),
    ],
)
def test_values_are_what_is_written(write, value):
    x, y = leaf(3.0, name="x"), leaf(5.0, name="y")
    circuit = Circuit(write(x, y), x, y)
    assert circuit.evaluate({"x": 3.0, "y": 5.0})[0, circuit.outputs[0]] == value


def test_nodes_come_in_the_order_in_which_they_were_made():
    u, v = leaf(0.5, name="u"), leaf(0.5, name="v")
    later = (u * v).named("w")
    circuit = Circuit(later * (1 - u).named("nu"))
    assert [node.name for node in circuit.nodes] == ["u", "v", "w", "nu", ""]


def test_fingerprint_is_of_the_structure_and_not_of_names():
    def made(p, first="u", coefficient=1.0):
        u, v = bernoulli(p, name=first), bernoulli(0.75, name="v")
        return Circuit(u * v - coefficient * u).fingerprint

    assert made(0.5) == made(0.5, first="other")
    assert len({made(0.5), made(0.25), made(0.5, coefficient=2.0)}) == 3
    assert len(made(0.5)) == 64


def test_fingerprint_tells_blocks_apart():
    def made(covariance):
        x, y = block([0, 0], [[1, covariance], [covariance, 1]])
        return Circuit(x * y).fingerprint

    assert made(0.1) != made(0.2)


def test_bernoulli_cumulants_are_those_of_its_moments():
    p = 0.3
    u = bernoulli(p).operation
    third = p * (1 - p) * (1 - 2 * p)
    fourth = p * (1 - p) * (1 - 6 * p * (1 - p))
    assert [u.mean, u.variance, *u.cumulants[:2]] == pytest.approx([p, 0.21, third, fourth])


def test_candidates_are_the_factors_and_what_is_beneath_them(toy):
    names = {toy.label(k) for k in toy.candidate_nodes}
    assert names == {"u", "v", "w", "nu", "nv", "a", "o"}
    assert len(list(toy.candidates())) == toy.tracked().candidates["circuit"] == 21
    assert len(list(toy.candidates("all"))) == 36


def test_pairs_within_a_block_are_no_candidates():
    x, y = block([0, 0], [[1, 0.5], [0.5, 1]], names=["x", "y"])
    z = leaf(0.0, 1.0, name="z")
    circuit = Circuit((x * y) * z)
    assert circuit.pair("x", "y") not in set(circuit.candidates("all"))
    assert circuit.tracked().candidates["circuit"] == 5
    with pytest.raises(BadValue, match="no candidate"):
        circuit.tracked([("x", "y")])


def test_pairs_are_found_by_node_name_and_index(toy):
    u, w = toy.nodes[toy.index("u")], toy.index("w")
    assert toy.tracked([(w, u)]) == toy.tracked([("u", "w")])


def test_an_exactly_known_part_becomes_a_leaf(toy):
    condensed = toy.with_leaves({"w": bernoulli(0.375)})
    assert condensed.label(condensed.index("w")) == "w"
    assert condensed.steps[condensed.index("w")].kind == "leaf"
    assert condensed.fingerprint != toy.fingerprint
    with pytest.raises(BadInput, match="not a leaf"):
        toy.with_leaves({"w": toy.nodes[-1]})


@pytest.mark.parametrize(
    ("refused", "error", "told"),
    [
        (lambda: leaf(math.nan), BadInput, "not finite"),
        (lambda: leaf(0.0, math.inf), BadInput, "not finite"),
        (lambda: leaf(0.0, -1.0, name="x"), BadInput, "leaf x: variance -1 is negative"),
        (lambda: leaf(2.0, span=(0, 1)), BadInput, "impossible"),
        (lambda: leaf(0.5, 0.3, span=(0, 1)), BadInput, "impossible"),
        (lambda: bernoulli(1.1, name="u"), BadInput, "leaf u: probability"),
        (lambda: block([0, 0], [[1, 2], [2, 1]]), BadInput, "not positive semi-definite"),
        (lambda: block([0, 0], [[1, 0.5], [0.4, 1]]), BadInput, "not symmetric"),
        (lambda: block([0, math.nan], np.eye(2)), BadInput, "not finite"),
        (lambda: block([0], np.eye(2)), Mismatch, "1 means"),
        (lambda: Circuit(), BadInput, "needs an output"),
        (lambda: Circuit(leaf(0, name="x") * leaf(0, name="x")), BadInput, "two nodes are named"),
        (lambda: leaf(0.0) / 0, BadValue, "division by zero"),
        (lambda: leaf(0.0) ** 0, BadValue, "power 0"),
        (lambda: leaf(0.0) * math.inf, BadInput, "not finite"),
        (lambda: linear([1.0], []), Mismatch, "1 coefficients for 0 nodes"),
    ],
)
def test_bad_leaves_and_sums_are_refused(refused, error, told):
    with pytest.raises(error, match=told):
        refused()


def test_bad_pairs_are_refused(toy):
    for pair, error, result in (
        (("u", "ww"), UnknownName, "unknown node 'ww'"),
        (("u", 99), BadValue, "there is no node 99"),
        (("u", leaf(0.0)), Mismatch, "not in this circuit"),
        (("b", "y"), BadValue, "candidates='all'"),
        (("u", "u"), BadValue, "always tracked"),
    ):
        with pytest.raises(error, match=result):
            toy.tracked([pair])


def test_an_argument_of_another_circuit_is_refused(toy):
    other = Circuit(bernoulli(0.5) * bernoulli(0.5))
    with pytest.raises(Mismatch, match="the argument is about"):
        toy.check(other.tracked())
    with pytest.raises(Mismatch, match="one group"):
        toy.check(TrackedPairs(toy.fingerprint, {"layer": frozenset()}, {"layer": 1}))
    with pytest.raises(BadValue, match="nodes 0 to 8"):
        toy.check(TrackedPairs(toy.fingerprint, {"circuit": frozenset({(0, 9)})}, {"circuit": 21}))


def test_values_must_be_of_the_leaves(toy):
    with pytest.raises(Mismatch, match="v: a leaf without a value"):
        toy.evaluate({"u": 1.0})
