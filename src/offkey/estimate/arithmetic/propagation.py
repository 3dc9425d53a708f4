"""Means, variances and tracked covariances, carried through a circuit node by node."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch, NonFinite
from offkey.estimate.arithmetic.circuit import Circuit, NodeLike, Pair
from offkey.estimate.quantities import Argument, Estimate

__all__ = ["needs", "closure", "missing", "presumed", "Propagation", "propagate", "Masked"]

_ROUNDING = 1e-9
"""Relative excess of a covariance over its limit that is taken for rounding."""


def needs(circuit: Circuit, pair: Pair) -> list[Pair]:
    """The covariances that one entry follows from, by expanding its later node.

    Variances, covariances within a block and those of nodes without a common leaf are not among
    them: they are always there, known, or exactly 0.
    """
    earlier, later = min(pair), max(pair)
    entries = []
    for i in dict.fromkeys(circuit.steps[later].parents):
        entry = (min(i, earlier), max(i, earlier))
        if i != earlier and entry not in circuit.known and not circuit.are_independent(*entry):
            entries.append(entry)

    return entries


def closure(circuit: Circuit, pairs: Iterable[Pair]) -> frozenset[Pair]:
    """The pairs and all that they need, down to the leaves."""
    waiting = list(pairs)
    closed: set[Pair] = set()
    while waiting:
        pair = waiting.pop()
        if pair not in closed:
            closed.add(pair)
            waiting += needs(circuit, pair)

    return frozenset(closed)


def missing(circuit: Circuit, tracked: Iterable[Pair]) -> frozenset[Pair]:
    """The untracked entries that tracked ones need, which were taken to be 0."""
    there = set(tracked)

    return frozenset(need for pair in there for need in needs(circuit, pair)) - there


def presumed(circuit: Circuit, tracked: Iterable[Pair]) -> tuple[frozenset[Pair], frozenset[Pair]]:
    """The untracked entries that means need, and those that only variances need.

    Returns:
        Pairs of factors presumed to be uncorrelated, and pairs of terms of a sum.
    """
    there = set(tracked) | set(circuit.known)
    factors: set[Pair] = set()
    terms: set[Pair] = set()
    for step in circuit.steps:
        pairs = itertools.combinations(sorted(set(step.parents)), 2)
        untracked = {p for p in pairs if p not in there and not circuit.are_independent(*p)}
        (factors if step.kind == "product" else terms).update(untracked)

    return frozenset(factors), frozenset(terms - factors)


@dataclass(frozen=True, eq=False)
class Propagation:
    """What is estimated of every node.

    Attributes:
        circuit: the circuit.
        means: ``[nodes]``.
        variances: ``[nodes]``.
        covariances: of the tracked pairs; a whole matrix ``[nodes, nodes]`` where all are.
        flops: additions and multiplications spent.
        clamped_variances: nodes whose variance came out negative and was set to 0.
        clamped_covariances: pairs whose covariance exceeded the product of their standard
            deviations and was set to it.
    """

    circuit: Circuit
    means: Float[np.ndarray, " nodes"]
    variances: Float[np.ndarray, " nodes"]
    covariances: Mapping[Pair, float] | Float[np.ndarray, "nodes nodes"]
    flops: int
    clamped_variances: tuple[int, ...] = ()
    clamped_covariances: tuple[Pair, ...] = ()

    def estimate(self, node: NodeLike | None = None) -> Estimate:
        """Estimate of a node's mean; of the first output by default."""
        k = self.circuit.outputs[0] if node is None else self.circuit.index(node)

        return Estimate(float(self.means[k]), flops=self.flops)

    def covariance(self, a: NodeLike, b: NodeLike) -> float:
        """Covariance as it was used: 0 where the pair was neither tracked nor known."""
        i, j = self.circuit.pair(a, b)
        if i == j:
            return float(self.variances[i])
        if isinstance(self.covariances, np.ndarray):
            return float(self.covariances[i, j])

        return self.covariances.get((i, j), self.circuit.known.get((i, j), 0.0))

    @property
    def tracked(self) -> frozenset[Pair]:
        """The pairs that were tracked."""
        if isinstance(self.covariances, np.ndarray):
            return frozenset(self.circuit.candidates("all"))

        return frozenset(self.covariances)

    @cached_property
    def missing(self) -> frozenset[Pair]:
        """Untracked entries that tracked ones were computed from, as if they were 0."""
        return missing(self.circuit, self.tracked)

    @cached_property
    def presumed(self) -> tuple[frozenset[Pair], frozenset[Pair]]:
        """Untracked entries that means needed, and those that only variances needed."""
        return presumed(self.circuit, self.tracked)


def propagate(
    circuit: Circuit,
    argument: Argument | Literal["all"] | None = None,
    *,
    close: bool = False,
    clamp: bool = True,
) -> Propagation:
    r"""Carries means, variances and tracked covariances from the leaves to the outputs.

    A sum is exact. A product of :math:`x_i, x_j` has mean :math:`\mu_i \mu_j + \sigma_{ij}`,
    variance :math:`\mu_i^2 \sigma_j^2 + \mu_j^2 \sigma_i^2 + 2 \mu_i \mu_j \sigma_{ij} +
    \sigma_i^2 \sigma_j^2 + \sigma_{ij}^2` and covariance :math:`\mu_i \sigma_{jl} + \mu_j
    \sigma_{il}` with an earlier node, which is exact for Gaussian factors. Covariances that are
    neither tracked nor known are 0. Only the later node of a pair is expanded. Time grows with the
    nodes and with the tracked pairs times the terms of a sum; with ``"all"``, memory with the
    square of the nodes.

    Args:
        circuit: what to estimate.
        argument: the tracked pairs; none for the naive estimate; ``"all"`` for every pair.
        close: also track what tracked entries need; the result's ``tracked`` lists all.
        clamp: replace impossible variances and covariances by the nearest possible value.

    Raises:
        Mismatch: the argument is about another circuit.
        BadValue: it tracks a node that does not exist, or is a word other than ``"all"``.
        NonFinite: a value overflowed.

    References:
        Christiano, Neyman, Xu, 2022, appendix D. https://arxiv.org/abs/2211.06738
    """
    if isinstance(argument, str):
        if argument != "all":
            raise BadValue(
                f"unknown argument {argument!r}",
                where="propagate",
                mend="Give tracked pairs, or 'all'",
            )
        return _finite(_Full(circuit, clamp).run())
    pairs = circuit.check(argument) if argument is not None else frozenset()
    if close:
        pairs = closure(circuit, pairs)

    return _finite(_Sparse(circuit, pairs - circuit.known.keys(), clamp).run())


def _finite(done: Propagation) -> Propagation:
    bad = ~(np.isfinite(done.means) & np.isfinite(done.variances))
    if bad.any():
        name = done.circuit.label(int(bad.argmax()))
        raise NonFinite(
            "mean or variance is not finite", where=f"node {name}", mend="Scale the leaves"
        )

    return done


@dataclass
class _Sparse:
    """One propagation with a dictionary of covariances."""

    circuit: Circuit
    pairs: frozenset[Pair]
    clamp: bool
    means: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    flops: int = 0

    def run(self) -> Propagation:
        self.held = dict(self.circuit.known)
        self.neighbours: dict[int, set[int]] = {}
        partners: dict[int, list[int]] = {}
        for i, j in [*self.pairs, *self.circuit.known]:
            self.neighbours.setdefault(i, set()).add(j)
            self.neighbours.setdefault(j, set()).add(i)
        for i, j in self.pairs:
            partners.setdefault(j, []).append(i)
        negative, excessive = [], []
        for k, step in enumerate(self.circuit.steps):
            mean, variance = getattr(self, f"_{step.kind}")(k)
            if self.clamp and variance < 0:
                variance = 0.0
                negative.append(k)
            self.means.append(mean)
            self.variances.append(variance)
            for earlier in partners.get(k, ()):
                value = self._covariance(earlier, k)
                limit = math.sqrt(abs(self.variances[earlier] * variance))
                if self.clamp and abs(value) > limit * (1 + _ROUNDING):
                    value = math.copysign(limit, value)
                    excessive.append((earlier, k))
                self.held[earlier, k] = value

        return Propagation(
            self.circuit,
            np.array(self.means),
            np.array(self.variances),
            {pair: self.held[pair] for pair in self.pairs},
            self.flops,
            tuple(negative),
            tuple(sorted(excessive)),
        )

    def _leaf(self, k: int) -> tuple[float, float]:
        leaf = self.circuit.leaf(k)

        return leaf.mean, leaf.variance

    def _sum(self, k: int) -> tuple[float, float]:
        step = self.circuit.steps[k]
        weights = dict(zip(step.parents, step.weights, strict=True))
        mean, variance = step.constant, 0.0
        for i, a in weights.items():
            mean += a * self.means[i]
            variance += a * a * self.variances[i]
            near = self.neighbours.get(i, set())
            both = near & weights.keys() if len(near) < len(weights) else weights.keys() & near
            for j in both:
                if j < i:
                    variance += 2 * a * weights[j] * self.held[j, i]
                    self.flops += 4
        self.flops += 5 * len(weights)

        return mean, variance

    def _product(self, k: int) -> tuple[float, float]:
        i, j = self.circuit.steps[k].parents
        x, y = self.means[i], self.means[j]
        u, v, c = self.variances[i], self.variances[j], self._at(i, j)
        self.flops += 16 if c else 8

        return x * y + c, x * x * v + y * y * u + 2 * x * y * c + u * v + c * c

    def _covariance(self, earlier: int, later: int) -> float:
        step = self.circuit.steps[later]
        self.flops += 2 * len(step.parents)
        if step.kind == "product":
            i, j = step.parents
            return self.means[i] * self._at(j, earlier) + self.means[j] * self._at(i, earlier)

        return sum(
            a * self._at(i, earlier) for a, i in zip(step.weights, step.parents, strict=True)
        )

    def _at(self, i: int, j: int) -> float:
        if i == j:
            return self.variances[i]

        return self.held.get((i, j) if i < j else (j, i), 0.0)


@dataclass
class _Full:
    """One propagation with the whole matrix, a row at a time."""

    circuit: Circuit
    clamp: bool

    def run(self) -> Propagation:
        size = len(self.circuit)
        means, matrix = np.zeros(size), np.zeros((size, size))
        for (i, j), value in self.circuit.known.items():
            matrix[i, j] = matrix[j, i] = value
        negative: list[int] = []
        excessive: list[Pair] = []
        flops = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for k, step in enumerate(self.circuit.steps):
                means[k], matrix[k, k], row = self._row(k, means, matrix)
                flops += 2 * (k + 1) * len(step.parents) + 8 * (step.kind == "product")
                if self.clamp:
                    if matrix[k, k] < 0:
                        matrix[k, k] = 0.0
                        negative.append(k)
                    limit = np.sqrt(np.diagonal(matrix)[:k] * matrix[k, k])
                    if step.kind != "leaf":
                        over = np.flatnonzero(np.abs(row) > limit * (1 + _ROUNDING))
                        row[over] = np.copysign(limit[over], row[over])
                        excessive += [(int(i), k) for i in over]
                matrix[k, :k] = matrix[:k, k] = row

        return Propagation(
            self.circuit,
            means,
            np.diagonal(matrix).copy(),
            matrix,
            flops,
            tuple(negative),
            tuple(sorted(excessive)),
        )

    def _row(
        self, k: int, means: np.ndarray, matrix: np.ndarray
    ) -> tuple[float, float, Float[np.ndarray, " earlier"]]:
        step = self.circuit.steps[k]
        if step.kind == "product":
            i, j = step.parents
            x, y, u, v, c = means[i], means[j], matrix[i, i], matrix[j, j], matrix[i, j]
            variance = x * x * v + y * y * u + 2 * x * y * c + u * v + c * c
            return x * y + c, variance, x * matrix[j, :k] + y * matrix[i, :k]
        if step.kind == "sum":
            rows, weights = list(step.parents), np.array(step.weights)
            row = weights @ matrix[rows, :k] if rows else np.zeros(k)
            return float(weights @ means[rows]) + step.constant, float(weights @ row[rows]), row
        leaf = self.circuit.leaf(k)

        return leaf.mean, leaf.variance, matrix[k, :k].copy()


class Masked:
    r"""Means and variances of a node for many masks :math:`z \in [0, 1]` over pairs at once.

    A covariance is multiplied by its mask when it is computed. Masks of 0 and 1 give what
    :func:`~offkey.estimate.arithmetic.propagate` gives; gradients reach masks in between.
    Impossible values are clamped only where no gradient is needed.

    Args:
        circuit: what to estimate.
        pairs: the maskable pairs, in the order of a mask's columns; others are not tracked.
        node: whose mean and variance; the first output by default.
    """

    def __init__(
        self, circuit: Circuit, pairs: Sequence[Pair], node: NodeLike | None = None
    ) -> None:
        self.circuit, self.pairs = circuit, tuple(pairs)
        self.node = circuit.outputs[0] if node is None else circuit.index(node)
        self._partners: dict[int, list[tuple[int, int]]] = {}
        for column, (i, j) in enumerate(self.pairs):
            self._partners.setdefault(j, []).append((i, column))

    def __call__(
        self, masks: Float[Tensor, "batch pairs"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Mean and variance of the node under each mask.

        Raises:
            Mismatch: a mask has not one column for each pair.
        """
        if masks.ndim != 2 or masks.shape[1] != len(self.pairs):
            raise Mismatch(
                f"masks of shape {tuple(masks.shape)} for {len(self.pairs)} pairs", where="Masked"
            )
        columns = masks.double().T.contiguous()
        blank = columns.new_zeros(masks.shape[0])
        state = _MaskedState(self.circuit, blank, is_clamped=not masks.requires_grad)
        for k in range(self.node + 1):
            state.add(k)
            for earlier, column in self._partners.get(k, ()):
                state.track(earlier, k, columns[column])

        return state.means[self.node], state.variances[self.node]


class _MaskedState:
    """Means, variances and covariances so far, each ``[batch]``."""

    def __init__(
        self, circuit: Circuit, blank: Float[Tensor, " batch"], *, is_clamped: bool
    ) -> None:
        self.circuit, self.blank, self.is_clamped = circuit, blank, is_clamped
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []
        self.held: dict[Pair, Tensor] = {
            pair: blank + value for pair, value in circuit.known.items()
        }

    def add(self, k: int) -> None:
        """Mean and variance of the next node."""
        step = self.circuit.steps[k]
        mean, variance = self.blank, self.blank
        if step.kind == "leaf":
            leaf = self.circuit.leaf(k)
            mean, variance = mean + leaf.mean, variance + leaf.variance
        elif step.kind == "product":
            i, j = step.parents
            x, y, u, v = self.means[i], self.means[j], self.variances[i], self.variances[j]
            mean, variance = x * y, x * x * v + y * y * u + u * v
            c = self._at(i, j)
            if c is not None:
                mean, variance = mean + c, variance + (2 * x * y + c) * c
        else:
            mean = mean + step.constant
            terms = list(zip(step.weights, step.parents, strict=True))
            for place, (a, i) in enumerate(terms):
                mean, variance = mean + a * self.means[i], variance + a * a * self.variances[i]
                for b, j in terms[:place]:
                    c = self._at(i, j)
                    variance = variance if c is None else variance + 2 * a * b * c
        self.means.append(mean)
        self.variances.append(variance.clamp(min=0) if self.is_clamped else variance)

    def track(self, earlier: int, later: int, mask: Float[Tensor, " batch"]) -> None:
        """Their covariance, times the mask."""
        step = self.circuit.steps[later]
        value = self.blank
        factors: list[tuple[Tensor | float, int]]
        if step.kind == "product":
            i, j = step.parents
            factors = [(self.means[i], j), (self.means[j], i)]
        else:
            factors = list(zip(step.weights, step.parents, strict=True))
        for weight, i in factors:
            c = self._at(i, earlier)
            value = value if c is None else value + weight * c
        value = value * mask
        if self.is_clamped:
            limit = (self.variances[earlier] * self.variances[later]).sqrt()
            value = torch.where(
                value.abs() > limit * (1 + _ROUNDING), torch.copysign(limit, value), value
            )
        self.held[earlier, later] = value

    def _at(self, i: int, j: int) -> Tensor | None:
        if i == j:
            return self.variances[i]

        return self.held.get((i, j) if i < j else (j, i))
