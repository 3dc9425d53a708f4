"""Arithmetic circuits: nodes in order, and what can be tracked between them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from offkey.errors import BadInput, BadValue, Mismatch, UnknownName
from offkey.estimate.arithmetic.nodes import Leaf, Node, Product, Sum
from offkey.estimate.quantities import Argument, TrackedPairs
from offkey.storage import sha256_json

__all__ = ["Circuit", "CircuitStep", "GROUP", "NodeLike", "Pair"]
GROUP = "circuit"
"""Name of a circuit's one group of tracked pairs."""
Pair = tuple[int, int]


NodeLike = Node | str | int


class CircuitStep(NamedTuple):
    """How one node follows from earlier ones, by their indices.

    Attributes:
        kind: leaf, sum or product.
        parents: indices of the nodes it is made from; the two factors of a product.
        weights: coefficients of a sum.
        constant: of a sum.
    """

    kind: Literal["leaf", "sum", "product"]
    parents: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    constant: float = 0.0


class Circuit:
    """The nodes that some outputs need, in the order in which they were made.

    Args:
        outputs: one node or several; the first one is what estimates are about by default.

    Attributes:
        nodes: all nodes; a node's index is its place here.
        steps: how each of them is made.
        outputs: indices of the outputs.
        leaves: indices of the leaves.
        known: covariances that the blocks of leaves state, by pair of indices.

    Raises:
        BadInput: no output, or two nodes of one name.
    """

    def __init__(self, *outputs: Node) -> None:
        if not outputs:
            raise BadInput("a circuit needs an output", where="Circuit")
        self.nodes = tuple(sorted(_cone(outputs), key=lambda node: node.serial))
        self._index = {node: k for k, node in enumerate(self.nodes)}
        self._names = {node.name: k for k, node in enumerate(self.nodes) if node.name}
        if len(self._names) != sum(bool(node.name) for node in self.nodes):
            names = sorted(node.name for node in self.nodes if node.name)
            twice = next(a for a, b in itertools.pairwise(names) if a == b)
            raise BadInput(f"two nodes are named {twice!r}", where="Circuit")
        self.steps = tuple(map(self._step, self.nodes))
        self.outputs = tuple(self._index[node] for node in outputs)
        self.leaves = tuple(k for k, step in enumerate(self.steps) if step.kind == "leaf")
        self.known = self._known()

    def __len__(self) -> int:
        return len(self.nodes)

    def index(self, node: NodeLike) -> int:
        """Index of a node, given itself, its name or its index.

        Raises:
            UnknownName: no node of that name.
            Mismatch: the node is of another circuit.
            BadValue: the index does not exist.
        """
        if isinstance(node, str):
            if node not in self._names:
                raise UnknownName("node", node, self._names, where="circuit")
            return self._names[node]
        if isinstance(node, Node):
            if node not in self._index:
                raise Mismatch(
                    f"{node!r} is not in this circuit",
                    where="circuit",
                    mend="Give a node that its outputs are made from",
                )
            return self._index[node]
        if not 0 <= node < len(self):
            raise BadValue(f"there is no node {node}", where=f"circuit of {len(self)} nodes")

        return int(node)

    def label(self, index: int) -> str:
        """Name of a node, or its number."""
        return self.nodes[index].name or f"#{index}"

    def leaf(self, index: int) -> Leaf:
        """The moments and span of a leaf."""
        operation = self.nodes[index].operation
        if not isinstance(operation, Leaf):
            raise BadValue(f"{self.label(index)} is not a leaf", where="circuit")

        return operation

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the structure and the leaves' moments; names do not count."""
        steps = [
            [step.kind, step.parents, [a.hex() for a in step.weights], step.constant.hex()]
            for step in self.steps
        ]
        moments = [
            [
                x.mean.hex(),
                x.variance.hex(),
                [c.hex() for c in x.cumulants],
                float(x.low).hex(),
                float(x.high).hex(),
            ]
            for x in map(self.leaf, self.leaves)
        ]
        known = [[i, j, value.hex()] for (i, j), value in sorted(self.known.items())]

        return sha256_json([steps, moments, known, self.outputs])

    @cached_property
    def candidate_nodes(self) -> tuple[int, ...]:
        """Nodes whose covariances can move a mean: factors of products, and their ancestors."""
        wanted = {i for step in self.steps if step.kind == "product" for i in step.parents}
        for k in range(len(self) - 1, -1, -1):
            if k in wanted:
                wanted.update(self.steps[k].parents)

        return tuple(sorted(wanted))

    def candidates(self, which: Literal["mean", "all"] = "mean") -> Iterator[Pair]:
        """The pairs that an argument can choose from, in order; pairs within a block are known.

        Args:
            which: those that can move a mean, or all (which also move variances).
        """
        nodes = self.candidate_nodes if which == "mean" else range(len(self))

        return (pair for pair in itertools.combinations(nodes, 2) if pair not in self.known)

    def tracked(
        self,
        pairs: Iterable[tuple[NodeLike, NodeLike]] = (),
        *,
        candidates: Literal["mean", "all"] = "mean",
    ) -> TrackedPairs:
        """The argument that tracks some pairs of nodes.

        Args:
            pairs: nodes, names or indices.
            candidates: the language it is stated in, which sets its length: the pairs that can
                move a mean, or all pairs.

        Raises:
            BadValue: a pair of a node with itself, or one that is not among the candidates.
        """
        chosen = [self.pair(a, b) for a, b in pairs]
        nodes = set(self.candidate_nodes) if candidates == "mean" else set(range(len(self)))
        for i, j in chosen:
            if i not in nodes or j not in nodes or (i, j) in self.known:
                raise BadValue(
                    f"pair ({self.label(i)}, {self.label(j)}) is no candidate",
                    where="tracked pairs",
                    mend="Leave it out: its covariance is known"
                    if (i, j) in self.known
                    else "Use candidates='all': it can move variances only",
                )
        known = sum(i in nodes and j in nodes for i, j in self.known)
        count = len(nodes) * (len(nodes) - 1) // 2 - known

        return TrackedPairs(self.fingerprint, {GROUP: frozenset(chosen)}, {GROUP: count})

    def pair(self, a: NodeLike, b: NodeLike) -> Pair:
        """Indices of two nodes, the earlier one first."""
        i, j = self.index(a), self.index(b)

        return (i, j) if i < j else (j, i)

    def check(self, argument: Argument) -> frozenset[Pair]:
        """The pairs that an argument tracks here.

        Raises:
            Mismatch: it is about another circuit, or not about pairs.
            BadValue: it tracks a node that does not exist.
        """
        argument.check(self.fingerprint)
        if not isinstance(argument, TrackedPairs) or set(argument.tracked) - {GROUP}:
            raise Mismatch(
                "a circuit needs tracked pairs, in the one group 'circuit'",
                where=type(argument).__name__,
            )
        pairs = frozenset(argument.tracked.get(GROUP, ()))
        for i, j in pairs:
            if i < 0 or j >= len(self):
                raise BadValue(
                    f"pair ({i}, {j}): this circuit has nodes 0 to {len(self) - 1}",
                    where="tracked pairs",
                )

        return pairs

    def are_independent(self, i: int, j: int) -> bool:
        """Whether two nodes share no leaf and no block of leaves, so are independent."""
        return not self._supports[i] & self._supports[j]

    def evaluate(
        self, values: Mapping[NodeLike, Float[np.ndarray, " n"] | float]
    ) -> Float[np.ndarray, "n nodes"]:
        """Values of all nodes, given those of the leaves.

        Raises:
            Mismatch: a leaf has no value, or a node that is no leaf has one.
        """
        given = {self.index(node): np.asarray(x, dtype=np.float64) for node, x in values.items()}
        if set(given) != set(self.leaves):
            odd = min(set(given) ^ set(self.leaves))
            raise Mismatch(
                f"{self.label(odd)}: a leaf without a value, or no leaf", where="evaluate"
            )
        rows = np.broadcast_shapes(*(x.shape for x in given.values()), (1,))
        out = np.empty((len(self), *rows))
        for k, step in enumerate(self.steps):
            if step.kind == "leaf":
                out[k] = given[k]
            elif step.kind == "product":
                out[k] = out[step.parents[0]] * out[step.parents[1]]
            else:
                out[k] = step.constant
                for a, i in zip(step.weights, step.parents, strict=True):
                    out[k] += a * out[i]

        return out.T

    def with_leaves(self, known: "Mapping[NodeLike, Node]") -> "Circuit":
        """The circuit with some nodes replaced by leaves, where their moments are known exactly.

        A leaf is independent of all others, so this fits parts that share no leaf with the rest.

        Args:
            known: the leaf that replaces each node, which keeps its place and name.

        Raises:
            BadInput: a replacement is not a leaf.
        """
        given = {self.index(node): made for node, made in known.items()}
        made: dict[Node, Node] = {}
        for k, node in enumerate(self.nodes):
            operation = node.operation
            if k in given:
                operation = given[k].operation
                if not isinstance(operation, Leaf):
                    raise BadInput(f"{given[k]!r} is not a leaf", where=f"node {self.label(k)}")
            elif isinstance(operation, Product):
                operation = Product(made[operation.left], made[operation.right])
            elif isinstance(operation, Sum):
                operation = Sum(
                    tuple((a, made[x]) for a, x in operation.terms), operation.constant
                )
            made[node] = replace(node, operation=operation)

        return Circuit(*(made[self.nodes[k]] for k in self.outputs))

    @cached_property
    def _supports(self) -> list[int]:
        sources: dict[object, int] = {}
        supports = []
        for k, step in enumerate(self.steps):
            if step.kind == "leaf":
                source = self.leaf(k).block or k
                supports.append(1 << sources.setdefault(source, len(sources)))
            else:
                support = 0
                for i in step.parents:
                    support |= supports[i]
                supports.append(support)

        return supports

    def _known(self) -> dict[Pair, float]:
        blocks: dict[int, list[int]] = {}
        for k in self.leaves:
            owner = self.leaf(k).block
            if owner is not None:
                blocks.setdefault(id(owner), []).append(k)
        known = {}
        for members in blocks.values():
            for i, j in itertools.combinations(members, 2):
                first, second = self.leaf(i), self.leaf(j)
                if first.block is not None:
                    known[i, j] = float(first.block.covariance[first.place, second.place])

        return known

    def _step(self, node: Node) -> CircuitStep:
        operation = node.operation
        if isinstance(operation, Product):
            return CircuitStep(
                "product", (self._index[operation.left], self._index[operation.right])
            )
        if isinstance(operation, Sum):
            return CircuitStep(
                "sum",
                tuple(self._index[x] for _, x in operation.terms),
                tuple(a for a, _ in operation.terms),
                operation.constant,
            )

        return CircuitStep("leaf")


def _cone(outputs: Iterable[Node]) -> set[Node]:
    """All nodes that the outputs are made from, and they themselves."""
    cone: set[Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in cone:
            continue
        cone.add(node)
        operation = node.operation
        if isinstance(operation, Product):
            waiting += operation
        elif isinstance(operation, Sum):
            waiting += [x for _, x in operation.terms]

    return cone
