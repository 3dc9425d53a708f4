"""Nodes of an arithmetic circuit: leaves with known moments, sums, products and Boolean gates."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from offkey.errors import BadInput, BadValue, Mismatch

__all__ = [
    "Leaf",
    "LeafBlock",
    "Node",
    "Product",
    "Sum",
    "bernoulli",
    "block",
    "both",
    "differ",
    "either",
    "leaf",
    "linear",
    "negation",
]


_CUMULANTS = 12
"""Up to which order the cumulants of a Bernoulli leaf are given."""


_serials = itertools.count()


@dataclass(frozen=True, eq=False)
class LeafBlock:
    """Leaves that are jointly known: their covariance, with which they are exactly Gaussian.

    Attributes:
        covariance: ``[n, n]``, positive semi-definite.
    """

    covariance: Float[np.ndarray, "n n"]


@dataclass(frozen=True)
class Leaf:
    """What is known of a leaf.

    Attributes:
        mean: its mean.
        variance: its variance.
        cumulants: third and higher cumulants; those not given are 0, as for a Gaussian.
        low: least value it can take.
        high: greatest value it can take.
        block: the block it belongs to, where it is not independent of the other leaves.
        place: which row of the block's covariance is its own.
        order: up to which order its cumulants are known; ``None`` where all are.
    """

    mean: float
    variance: float
    cumulants: tuple[float, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    block: LeafBlock | None = None
    place: int = 0
    order: int | None = None


class Sum(NamedTuple):
    r""":math:`\sum_i a_i x_i + c`."""

    terms: "tuple[tuple[float, Node], ...]"
    constant: float


class Product(NamedTuple):
    """The product of two nodes, which may be the same."""

    left: "Node"
    right: "Node"


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One value of a circuit; ``+``, ``-``, ``*``, ``/`` and ``**`` make new ones.

    A sum of sums is one node with many terms, unless the inner sum was :meth:`named`. Nodes are
    ordered as they were made, which is the order in which covariances are expanded.

    Attributes:
        operation: that makes it.
        name: for messages and look-up; may be empty.
        is_whole: whether later sums keep it as one of their terms, where it is a sum itself.
        serial: its place in the order.
    """

    operation: Leaf | Sum | Product
    name: str = ""
    is_whole: bool = False
    serial: int = field(default_factory=lambda: next(_serials))

    __array_ufunc__ = None  # a NumPy number on the left leaves the operation to the node

    def named(self, name: str) -> "Node":
        """The same value as a new node of its own, which later sums do not expand."""
        return Node(self.operation, name, is_whole=True)

    def __repr__(self) -> str:
        return f"Node({self.name or type(self.operation).__name__.lower()})"

    def __add__(self, other: "Node | float") -> "Node":
        if isinstance(other, Node):
            return _sum([(1.0, self), (1.0, other)], 0.0)
        return _sum([(1.0, self)], other) if _is_number(other) else NotImplemented

    def __sub__(self, other: "Node | float") -> "Node":
        if isinstance(other, Node):
            return _sum([(1.0, self), (-1.0, other)], 0.0)
        return _sum([(1.0, self)], -other) if _is_number(other) else NotImplemented

    def __rsub__(self, other: float) -> "Node":
        return _sum([(-1.0, self)], other) if _is_number(other) else NotImplemented

    def __mul__(self, other: "Node | float") -> "Node":
        if isinstance(other, Node):
            return Node(Product(self, other))
        return _sum([(other, self)], 0.0) if _is_number(other) else NotImplemented

    def __truediv__(self, other: float) -> "Node":
        if not _is_number(other):
            return NotImplemented
        if other == 0:
            raise BadValue("division by zero", where=repr(self))
        return _sum([(1.0 / other, self)], 0.0)

    def __pow__(self, power: int) -> "Node":
        if not isinstance(power, int) or power < 1:
            raise BadValue(f"power {power!r} is not a whole number above 0", where=repr(self))
        made = self
        for _ in range(power - 1):
            made = made * self

        return made

    def __neg__(self) -> "Node":
        return _sum([(-1.0, self)], 0.0)

    __radd__ = __add__
    __rmul__ = __mul__


def leaf(
    mean: float,
    variance: float = 0.0,
    *,
    name: str = "",
    cumulants: Sequence[float] = (),
    span: tuple[float, float] = (-math.inf, math.inf),
) -> Node:
    """A leaf that is independent of all other leaves; also an exactly known part of a circuit.

    Args:
        mean: its mean.
        variance: its variance.
        name: for messages and look-up.
        cumulants: the third, fourth, … cumulant; 0 where not given, as for a Gaussian.
        span: least and greatest value that it can take, for bounds.

    Raises:
        BadInput: a value is not finite, the variance negative, or the moments outside the span.
    """
    where = f"leaf {name}".rstrip()
    low, high = span
    if not all(map(math.isfinite, (mean, variance, *cumulants))):
        raise BadInput("mean, variance or a cumulant is not finite", where=where)
    if variance < 0:
        raise BadInput(f"variance {variance:.3g} is negative", where=where)
    if not low <= mean <= high or variance > (mean - low) * (high - mean) * (1 + 1e-9) + 1e-300:
        raise BadInput(
            f"mean {mean} and variance {variance} are impossible between {low} and {high}",
            where=where,
        )

    return Node(Leaf(float(mean), float(variance), tuple(map(float, cumulants)), low, high), name)


def bernoulli(p: float, *, name: str = "") -> Node:
    """A leaf that is 1 with probability p and else 0, with its cumulants up to order 12.

    Raises:
        BadInput: p is not between 0 and 1.
    """
    if not 0 <= p <= 1:
        raise BadInput(f"probability {p} is not between 0 and 1", where=f"leaf {name}".rstrip())
    cumulant = np.polynomial.Polynomial([0.0, 1.0])
    spread = np.polynomial.Polynomial([0.0, 1.0, -1.0])
    cumulants = []
    for _ in range(_CUMULANTS):
        cumulants.append(float(cumulant(p)))
        cumulant = spread * cumulant.deriv()

    operation = Leaf(
        cumulants[0], max(cumulants[1], 0.0), tuple(cumulants[2:]), 0.0, 1.0, order=_CUMULANTS
    )

    return Node(operation, name)


def block(
    means: Sequence[float],
    covariance: Float[np.ndarray, "n n"] | Sequence[Sequence[float]],
    *,
    names: Sequence[str] = (),
    spans: Sequence[tuple[float, float]] = (),
) -> tuple[Node, ...]:
    """Leaves that are jointly known; their covariances are always used and never argued for.

    Args:
        means: ``[n]``.
        covariance: ``[n, n]``.
        names: of the leaves; none by default.
        spans: least and greatest value of each; unknown by default.

    Raises:
        Mismatch: the shapes do not match.
        BadInput: not finite, not symmetric, or not positive semi-definite.
    """
    matrix = np.array(covariance, dtype=np.float64)
    count = len(means)
    if matrix.shape != (count, count) or any(len(x) not in (0, count) for x in (names, spans)):
        raise Mismatch(
            f"{count} means, a covariance of shape {matrix.shape}, {len(names)} names "
            f"and {len(spans)} spans",
            where="block",
        )
    if not (np.isfinite(matrix).all() and np.isfinite(means).all()):
        raise BadInput("a mean or covariance is not finite", where="block")
    size = float(np.abs(matrix).max(initial=0.0))
    if np.abs(matrix - matrix.T).max(initial=0.0) > 1e-9 * size:
        raise BadInput("the covariance is not symmetric", where="block")
    least = float(np.linalg.eigvalsh(matrix).min(initial=0.0))
    if least < -1e-9 * size:
        raise BadInput(
            f"the covariance is not positive semi-definite (eigenvalue {least:.3g})", where="block"
        )
    matrix.setflags(write=False)
    known = LeafBlock(matrix)
    nodes = []
    for place, mean in enumerate(means):
        low, high = spans[place] if spans else (-math.inf, math.inf)
        operation = Leaf(
            float(mean), max(float(matrix[place, place]), 0.0), (), low, high, known, place
        )
        nodes.append(Node(operation, names[place] if names else ""))

    return tuple(nodes)


def linear(
    coefficients: Sequence[float], nodes: Sequence[Node], constant: float = 0.0, *, name: str = ""
) -> Node:
    r"""The node :math:`\sum_i a_i x_i + c`, which later sums do not expand if it is named.

    Raises:
        Mismatch: as many coefficients as nodes are needed.
        BadInput: a coefficient is not finite.
    """
    if len(coefficients) != len(nodes):
        raise Mismatch(f"{len(coefficients)} coefficients for {len(nodes)} nodes", where="linear")
    made = _sum(list(zip(coefficients, nodes, strict=True)), constant)

    return made.named(name) if name else made


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _sum(parts: Sequence[tuple[float, Node]], constant: float) -> Node:
    """One sum; parts that are sums and not whole are expanded."""
    terms: dict[Node, float] = {}
    total = float(constant)
    for weight, node in parts:
        inner = node.operation
        if isinstance(inner, Sum) and not node.is_whole:
            total += weight * inner.constant
            for a, x in inner.terms:
                terms[x] = terms.get(x, 0.0) + weight * a
        else:
            terms[node] = terms.get(node, 0.0) + weight
    if not all(map(math.isfinite, (total, *terms.values()))):
        raise BadInput("a coefficient or constant is not finite", where="sum")

    return Node(Sum(tuple((float(a), x) for x, a in terms.items() if a != 0), total))


def negation(x: Node, *, name: str = "") -> Node:
    r""":math:`\lnot x = 1 - x`."""
    return (1 - x).named(name)


def both(x: Node, y: Node, *, name: str = "") -> Node:
    r""":math:`x \land y = x y`."""
    return (x * y).named(name)


def either(x: Node, y: Node, *, name: str = "") -> Node:
    r""":math:`x \lor y = x + y - x y`; the product is a node of its own before it."""
    return (x + y - x * y).named(name)


def differ(x: Node, y: Node, *, name: str = "") -> Node:
    r""":math:`x \oplus y = x + y - 2 x y`; the product is a node of its own before it."""
    return (x + y - 2 * (x * y)).named(name)
