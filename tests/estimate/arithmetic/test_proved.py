"""Intervals hold every value, and are bounds, not estimates."""

import math
from fractions import Fraction

import numpy as np
import pytest

from offkey.errors import BadInput
from offkey.estimate import Bound, Estimate
from offkey.estimate.arithmetic import Circuit, bernoulli, bounds, exact_mean, leaf, propagate
from offkey.estimate.arithmetic.nodes import Leaf, Node


def test_sums_products_and_squares():
    x, y = leaf(0.5, span=(-1, 2), name="x"), leaf(4.0, span=(3, 5), name="y")
    result = {
        "product": x * y,
        "difference": 1 + 2 * x - y,
        "square": x * x,
        "positive square": y * y,
    }
    circuit = Circuit(*result.values())
    estimate = bounds(circuit)
    seen = [estimate[circuit.index(node)] for node in result.values()]
    assert seen == [Bound(-5, 10), Bound(-6, 2), Bound(0, 4), Bound(9, 25)]


def test_leaves_without_a_span_have_no_end():
    x, y = leaf(0.0, 1.0), leaf(0.5, span=(0, 1))
    nodes = (x * y, x * x, x - y, 0.0 * x + y)
    circuit = Circuit(*nodes)
    result = bounds(circuit)
    seen = [result[circuit.index(node)] for node in nodes]
    infinite = Bound(-math.inf, math.inf)
    assert seen == [infinite, Bound(0, math.inf), infinite, Bound(0, 1)]


def test_rounding_is_outwards():
    x = leaf(0.1, span=(0.1, 0.1))
    node = 3 * x
    low, high = Fraction(bounds(Circuit(node))[-1].low), Fraction(bounds(Circuit(node))[-1].high)
    assert low <= 3 * Fraction(0.1) <= high
    assert low < high


def test_overflow_is_no_false_bound():
    x = leaf(1e200, span=(1e200, 1e200))
    result = bounds(Circuit(x * x))[-1]
    assert result.high == math.inf
    assert math.isfinite(result.low)


@pytest.mark.parametrize("seed", range(5))
def test_no_value_leaves_its_interval(seed):
    rng = np.random.default_rng(seed)
    nodes = [leaf(0.0, span=(-1.0, float(rng.random()) + 0.1)) for _ in range(3)]
    for _ in range(8):
        i, j = rng.integers(0, len(nodes), size=2)
        a, b = rng.normal(size=2)
        nodes.append(nodes[i] * nodes[j] if rng.random() < 0.5 else a * nodes[i] + b * nodes[j])
    circuit = Circuit(*nodes)
    spans = [circuit.leaf(k) for k in circuit.leaves]
    values = circuit.evaluate(
        {k: rng.uniform(s.low, s.high, 5000) for k, s in zip(circuit.leaves, spans, strict=True)}
    )
    slack = 1e-12 * (1 + np.abs(values).max(axis=0))
    result = bounds(circuit)
    assert (values.min(axis=0) >= np.array([b.low for b in result]) - slack).all()
    assert (values.max(axis=0) <= np.array([b.high for b in result]) + slack).all()


def test_a_bound_holds_where_an_estimate_may_not():
    p = bernoulli(0.5)
    circuit = Circuit(p * (1 - p))
    estimate, bound = propagate(circuit).estimate(), bounds(circuit)[circuit.outputs[0]]
    assert isinstance(estimate, Estimate)
    assert isinstance(bound, Bound)
    assert float(estimate) == 0.25
    assert exact_mean(circuit) == 0
    assert 0 in bound


def test_a_span_that_is_no_number_is_refused():
    with pytest.raises(BadInput, match="not a number"):
        bounds(Circuit(Node(Leaf(0.0, 0.0, low=math.nan), "x")))
