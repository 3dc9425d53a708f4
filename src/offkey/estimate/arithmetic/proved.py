"""Certainties of a circuit: proved intervals of every node, and means by enumeration."""

import itertools
import math
from fractions import Fraction

import numpy as np

from offkey.errors import BadInput, BadValue
from offkey.estimate.arithmetic.circuit import Circuit, CircuitStep, NodeLike
from offkey.estimate.quantities import Bound

__all__ = ["bounds", "exact_mean"]

_MOST_LEAVES = 20
"""Most leaves that are enumerated."""


def bounds(circuit: Circuit) -> tuple[Bound, ...]:
    """An interval for each node that its value never leaves, whatever the leaves' distribution.

    Leaves keep to their spans; a leaf without one gives intervals without an end. Computed in
    exact arithmetic and rounded outwards. A square is not below 0; other dependences between the
    terms of a sum or product are not used, so intervals can be much too wide.

    Raises:
        BadInput: a span is not a number.
    """
    intervals: list[Bound] = []
    for k, step in enumerate(circuit.steps):
        if step.kind == "leaf":
            leaf = circuit.leaf(k)
            if math.isnan(leaf.low) or math.isnan(leaf.high):
                raise BadInput("its span is not a number", where=f"leaf {circuit.label(k)}")
            intervals.append(Bound(leaf.low, leaf.high))
        elif step.kind == "sum":
            intervals.append(_sum_bound(step, intervals))
        else:
            i, j = step.parents
            intervals.append(_product_bound(intervals[i], intervals[j], is_square=i == j))

    return tuple(intervals)


def _sum_bound(step: CircuitStep, earlier: list[Bound]) -> Bound:
    ends: list[float] = []
    for upper in (False, True):
        total, endless = Fraction(step.constant), False
        for a, i in zip(step.weights, step.parents, strict=True):
            end = earlier[i].high if (a > 0) == upper else earlier[i].low
            if math.isinf(end):
                endless = True
            else:
                total += Fraction(a) * Fraction(end)
        infinity = math.inf if upper else -math.inf
        ends.append(infinity if endless else _outwards(total, upper))

    return Bound(ends[0], ends[1])


def _product_bound(x: Bound, y: Bound, *, is_square: bool) -> Bound:
    if is_square:
        sizes = sorted((abs(x.low), abs(x.high)))
        low = 0.0 if 0 in x else _times(sizes[0], sizes[0], upper=False)
        return Bound(low, _times(sizes[1], sizes[1], upper=True))
    corners = [(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]

    return Bound(
        min(_times(a, b, upper=False) for a, b in corners),
        max(_times(a, b, upper=True) for a, b in corners),
    )


def _times(a: float, b: float, *, upper: bool) -> float:
    if a == 0 or b == 0:
        return 0.0
    if math.isinf(a) or math.isinf(b):
        return a * b

    return _outwards(Fraction(a) * Fraction(b), upper)


def _outwards(exact: Fraction, upper: bool) -> float:
    """The nearest float on the safe side of an exact number."""
    try:
        near = float(exact)
    except OverflowError:
        near = math.inf if exact > 0 else -math.inf
    if math.isinf(near):
        largest = math.nextafter(math.inf, 0)
        return near if (near > 0) == upper else math.copysign(largest, near)
    if upper:
        return near if Fraction(near) >= exact else math.nextafter(near, math.inf)

    return near if Fraction(near) <= exact else math.nextafter(near, -math.inf)


def exact_mean(circuit: Circuit, node: NodeLike | None = None) -> float:
    """The true mean of a node over independent leaves that are 0 or 1, by enumeration.

    Raises:
        BadInput: a leaf is not 0 or 1, or is not independent of the others.
        BadValue: more than 20 leaves.
    """
    if len(circuit.leaves) > _MOST_LEAVES:
        raise BadValue(
            f"{len(circuit.leaves)} leaves, and at most {_MOST_LEAVES} are enumerated",
            where="exact_mean",
        )
    for k in circuit.leaves:
        leaf = circuit.leaf(k)
        spread = leaf.mean * (1 - leaf.mean)
        if leaf.block or (leaf.low, leaf.high) != (0, 1) or abs(leaf.variance - spread) > 1e-12:
            raise BadInput(
                "it is not an independent leaf that is 0 or 1", where=f"leaf {circuit.label(k)}"
            )
    rows = np.array(list(itertools.product((0.0, 1.0), repeat=len(circuit.leaves))))
    p = np.array([circuit.leaf(k).mean for k in circuit.leaves])
    weights = np.where(rows == 1, p, 1 - p).prod(axis=1)
    values = circuit.evaluate({k: rows[:, place] for place, k in enumerate(circuit.leaves)})
    k = circuit.outputs[0] if node is None else circuit.index(node)

    return float(weights @ values[:, k])
