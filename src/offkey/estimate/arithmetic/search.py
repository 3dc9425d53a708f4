"""Outcomes and their surprise, and the search for the argument of least total surprise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadInput, BadValue
from offkey.estimate.arithmetic.circuit import GROUP, Circuit, NodeLike, Pair
from offkey.estimate.arithmetic.propagation import Masked, Propagation, closure, propagate
from offkey.estimate.quantities import Argument, Estimate, Surprise, TrackedPairs, log2_binomial

__all__ = [
    "Outcome",
    "Events",
    "Values",
    "account",
    "ArgumentSearch",
    "greedy",
    "guided",
    "exhaustive",
    "relaxed",
    "adjoints",
]

_LEAST_PROBABILITY = 2.0**-53
_LEAST_VARIANCE = 1e-12
_CHUNK = 1 << 15
"""How many arguments are propagated at once."""


class Outcome(ABC):
    """What was observed of one node.

    Attributes:
        node: of which node; ``None`` for the circuit's first output.
        candidates: the language of arguments about it: pairs that can move a mean, or all pairs.
    """

    node: NodeLike | None
    candidates: ClassVar[Literal["mean", "all"]] = "mean"

    @abstractmethod
    def bits(
        self, mean: Float[Tensor, "*batch"], variance: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Surprise of the outcome, given the node's estimated mean and variance."""

    def bits_under(self, done: Propagation) -> float:
        """Surprise of the outcome under one propagation."""
        k = done.circuit.outputs[0] if self.node is None else done.circuit.index(self.node)
        mean, variance = torch.tensor([done.means[k], done.variances[k]], dtype=torch.float64)

        return float(self.bits(mean, variance))


class Events(Outcome):
    r"""A node that is 0 or 1 was 1 in some draws: :math:`-k \log_2 \hat p - (N-k) \log_2
    (1-\hat p)`.

    Args:
        hits: in how many draws it was 1.
        misses: in how many it was 0.
        node: which node; the circuit's first output by default.
    """  # noqa: D205

    def __init__(self, hits: int, misses: int = 0, node: NodeLike | None = None) -> None:
        if hits < 0 or misses < 0:
            raise BadValue(f"{hits} seen and {misses} missed", where="Events")
        self.hits, self.misses, self.node = hits, misses, node

    def bits(
        self, mean: Float[Tensor, "*batch"], variance: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Of the mean alone, kept between 2⁻⁵³ and 1."""
        p = mean.clamp(_LEAST_PROBABILITY, 1.0)
        bits = 0.0 - self.hits * p.log2()
        if self.misses:
            bits = bits - self.misses * (1 - p).clamp(min=_LEAST_PROBABILITY).log2()

        return bits


class Values(Outcome):
    """Observed values of a node; their density under a Gaussian of its mean and variance.

    In bits of density, so only differences between arguments mean anything. A variance below
    1e-12 is taken to be 1e-12.

    Args:
        values: the observed values.
        node: of which node; the circuit's first output by default.
    """

    candidates = "all"

    def __init__(
        self, values: Sequence[float] | Float[np.ndarray, " n"], node: NodeLike | None = None
    ) -> None:
        given = np.asarray(values, dtype=np.float64)
        if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
            raise BadInput("values must be a list of finite numbers", where="Values")
        self.count, self.mean, self.node = len(given), float(given.mean()), node
        self.scatter = float(((given - self.mean) ** 2).sum())

    def bits(
        self, mean: Float[Tensor, "*batch"], variance: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Negative log density of all values together."""
        spread = variance.clamp(min=_LEAST_VARIANCE)
        off = (self.scatter + self.count * (mean - self.mean) ** 2) / (spread * math.log(2))

        return 0.5 * (self.count * (2 * math.pi * spread).log2() + off)


def account(circuit: Circuit, outcome: Outcome, argument: Argument | None = None) -> Surprise:
    """Surprise of an outcome and an argument, next to those of the empty argument.

    Raises:
        Mismatch: the argument is about another circuit.
        BadValue: it tracks a node that does not exist.
    """
    empty = circuit.tracked(candidates=outcome.candidates)
    chosen = empty if argument is None else argument
    done = propagate(circuit, chosen)
    if isinstance(chosen, TrackedPairs):
        empty = replace(chosen, tracked={})

    return Surprise(
        outcome=outcome.bits_under(done),
        argument=chosen.bits,
        empty_outcome=outcome.bits_under(propagate(circuit)),
        empty_argument=empty.bits,
        flops=done.flops,
    )


@dataclass(frozen=True)
class ArgumentSearch:
    """The best argument that a search found.

    Attributes:
        argument: the tracked pairs.
        surprise: of the outcome and the argument, scored exactly.
        estimate: under the argument.
        evaluated: how many arguments were propagated.
        path: the pairs that were added, in order, with the total surprise after each.
    """

    argument: TrackedPairs
    surprise: Surprise
    estimate: Estimate
    evaluated: int
    path: tuple[tuple[frozenset[Pair], float], ...] = ()


def greedy(
    circuit: Circuit, outcome: Outcome, *, close: bool = True, prune: bool = False
) -> ArgumentSearch:
    """Adds the pair, with all that it needs, that lowers total surprise most, until none does.

    Args:
        circuit: the circuit.
        outcome: the observation.
        close: add what a pair needs together with it; otherwise pairs alone.
        prune: before a pair and what it needs are scored, drop the entries that do not pay. This
            also reaches arguments that are better without some entry that they seem to need.
    """
    walk = _Walk(circuit, outcome)
    while True:
        best: tuple[float, frozenset[Pair]] | None = None
        for pair in walk.dependent:
            if pair in walk.pairs:
                continue
            wanted = closure(circuit, [pair]) if close else frozenset([pair])
            added = frozenset(wanted - walk.pairs)
            total = walk.total(walk.pairs | added)
            if prune:
                total, added = walk.pruned(added, total)
            if added and (best is None or total < best[0]):
                best = total, added
        if best is None or not walk.accept(*best):
            return walk.result()


def guided(circuit: Circuit, outcome: Outcome, *, tries: int = 4) -> ArgumentSearch:
    r"""Greedy search that tries only what a first-order guess finds promising.

    Tracking the factors (i, j) of product k moves the output by :math:`g_k \sigma_{ij}` to first
    order, with :func:`adjoints` g and the covariance of full propagation, computed once. Each
    round scores the ``tries`` best guesses exactly, with all that the pairs need.

    Args:
        circuit: the circuit.
        outcome: the observation.
        tries: how many pairs are scored exactly in a round.
    """
    if tries < 1:
        raise BadValue(f"{tries} tries", where="guided")
    walk = _Walk(circuit, outcome)
    full = propagate(circuit, "all")
    while True:
        done = propagate(circuit, walk.argument(walk.pairs))
        ranked = _guesses(walk, done, full)
        moves = [(walk.total(walk.pairs | added), added) for _, added in ranked[:tries]]
        best = min(moves, key=lambda move: move[0], default=None)
        if best is None or not walk.accept(*best):
            return walk.result()


def exhaustive(
    circuit: Circuit, outcome: Outcome, *, at_most: int | None = None, most: int = 1 << 22
) -> ArgumentSearch:
    r"""The best of all arguments, or of all that track few pairs.

    Pairs of independent nodes change no estimate, but how many of them are tracked changes the
    length of an argument, so their best number is chosen for each choice of the others. The
    length :math:`\log_2 \binom{n}{k}` falls again above :math:`k = n/2`, and to track everything
    costs nothing: without ``at_most``, the best argument is often all pairs, or all but a few.

    Args:
        circuit: the circuit.
        outcome: the observation.
        at_most: how many pairs an argument may track; any number by default.
        most: refuse more arguments than this.

    Raises:
        BadValue: there are more.
    """
    walk = _Walk(circuit, outcome)
    count = len(walk.dependent)
    if count >= 63 or 1 << count > most:
        raise BadValue(f"2^{count} arguments, and at most {most} are scored", where="exhaustive")
    masked = Masked(circuit, walk.dependent, outcome.node)
    limit = walk.count if at_most is None else at_most
    prices = torch.tensor([walk.price(k, limit)[0] for k in range(count + 1)], dtype=torch.float64)
    places = torch.arange(count)
    best = (math.inf, 0)
    for start in range(0, 1 << count, _CHUNK):
        numbers = torch.arange(start, min(start + _CHUNK, 1 << count))
        masks = (numbers[:, None] >> places & 1).double()
        totals = outcome.bits(*masked(masks)) + prices[masks.sum(dim=1).long()]
        place = int(totals.argmin())
        best = min(best, (float(totals[place]), int(numbers[place])))
    chosen = [pair for place, pair in enumerate(walk.dependent) if best[1] >> place & 1]
    fill = walk.independent[: walk.price(len(chosen), limit)[1]]
    walk.evaluated += 1 << count

    return walk.result(frozenset([*chosen, *fill]))


def relaxed(
    circuit: Circuit,
    outcome: Outcome,
    *,
    restarts: int = 32,
    steps: int = 150,
    seed: int = 0,
) -> ArgumentSearch:
    r"""Descends total surprise over masks between 0 and 1 that harden, from many random starts.

    A mask is a sigmoid of a logit over a temperature that falls from 1 to 1/10; the argument's
    length is :math:`\log_2 \binom{n}{k}` at :math:`k = \sum z`. All starts run as one batch. The
    hardened mask of every start, and the empty one, are scored exactly.

    Args:
        circuit: the circuit.
        outcome: the observation.
        restarts: how many starts.
        steps: steps of Adam, at rate 0.1.
        seed: of the starts.
    """
    walk = _Walk(circuit, outcome)
    masked = Masked(circuit, walk.dependent, outcome.node)
    generator = torch.Generator().manual_seed(seed)
    shape = (restarts, len(walk.dependent))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(steps):
        masks = torch.sigmoid(logits * 10.0 ** (step / max(steps - 1, 1)))
        totals = outcome.bits(*masked(masks)) + _length(walk.count, masks.sum(dim=1))
        (logits.grad,) = torch.autograd.grad(totals.sum(), logits)
        optimizer.step()
    walk.evaluated += restarts * steps
    rows = {tuple(row) for row in (logits.detach() > 0).tolist()}
    hardened = [
        frozenset(pair for pair, is_on in zip(walk.dependent, row, strict=True) if is_on)
        for row in sorted(rows)
    ]

    return walk.result(min([frozenset[Pair](), *hardened], key=walk.total))


def adjoints(
    circuit: Circuit, done: Propagation, node: NodeLike | None = None
) -> Float[np.ndarray, " nodes"]:
    r""":math:`g_k = \partial \mathbb E[\text{out}] / \partial \mu_k`, covariances held fixed.

    Args:
        circuit: the circuit.
        done: its propagation, at whose means the derivative is taken.
        node: the output; the circuit's first one by default.
    """
    slopes = np.zeros(len(circuit))
    slopes[circuit.outputs[0] if node is None else circuit.index(node)] = 1.0
    for k in range(len(circuit) - 1, -1, -1):
        step = circuit.steps[k]
        if step.kind == "product":
            i, j = step.parents
            slopes[i] += slopes[k] * done.means[j]
            slopes[j] += slopes[k] * done.means[i]
        elif step.kind == "sum":
            for a, i in zip(step.weights, step.parents, strict=True):
                slopes[i] += slopes[k] * a

    return slopes


@dataclass
class _Walk:
    """A search under way: the pairs so far and their total surprise."""

    circuit: Circuit
    outcome: Outcome
    pairs: frozenset[Pair] = frozenset()
    path: list[tuple[frozenset[Pair], float]] = field(default_factory=list)
    evaluated: int = 0

    def __post_init__(self) -> None:
        language = self.outcome.candidates
        self.empty = self.circuit.tracked(candidates=language)
        self.count = self.empty.candidates[GROUP]
        everything = list(self.circuit.candidates(language))
        self.dependent = [p for p in everything if not self.circuit.are_independent(*p)]
        self.independent = [p for p in everything if self.circuit.are_independent(*p)]
        self.least = self.total(self.pairs)

    def argument(self, pairs: Iterable[Pair]) -> TrackedPairs:
        return self.empty.with_pairs(GROUP, pairs)

    def total(self, pairs: frozenset[Pair]) -> float:
        """Outcome and argument together, in bits."""
        self.evaluated += 1
        argument = self.argument(pairs)

        return self.outcome.bits_under(propagate(self.circuit, argument)) + argument.bits

    def price(self, dependent: int, limit: int) -> tuple[float, int]:
        """Shortest argument with so many dependent pairs, and how many others it tracks."""
        if dependent > limit:
            return math.inf, 0
        others = min(len(self.independent), limit - dependent)
        lengths = [log2_binomial(self.count, dependent + more) for more in range(others + 1)]
        least = min(lengths)

        return least + math.log2(self.count + 1), lengths.index(least)

    def pruned(self, added: frozenset[Pair], total: float) -> tuple[float, frozenset[Pair]]:
        """An addition without the single pairs that do not pay."""
        while len(added) > 1:
            options = [(self.total(self.pairs | added - {p}), p) for p in sorted(added)]
            least, pair = min(options)
            if least >= total:
                break
            total, added = least, added - {pair}

        return total, added

    def accept(self, total: float, added: frozenset[Pair]) -> bool:
        """Takes an addition if it lowers the total."""
        if total >= self.least:
            return False
        self.pairs, self.least = self.pairs | added, total
        self.path.append((added, total))

        return True

    def result(self, pairs: frozenset[Pair] | None = None) -> ArgumentSearch:
        argument = self.argument(self.pairs if pairs is None else pairs)
        estimate = propagate(self.circuit, argument).estimate(self.outcome.node)
        surprise = account(self.circuit, self.outcome, argument)

        return ArgumentSearch(argument, surprise, estimate, self.evaluated, tuple(self.path))


def _guesses(
    walk: _Walk, done: Propagation, full: Propagation
) -> Sequence[tuple[float, frozenset[Pair]]]:
    """Additions with the total surprise that a first-order guess gives them, the least first."""
    slopes = adjoints(walk.circuit, done, walk.outcome.node)
    node = walk.outcome.node
    k = walk.circuit.outputs[0] if node is None else walk.circuit.index(node)
    moves: dict[Pair, float] = {}
    possible = set(walk.dependent) - walk.pairs
    for product, step in enumerate(walk.circuit.steps):
        if step.kind == "product":
            pair = walk.circuit.pair(*step.parents)
            if pair in possible:
                moved = float(slopes[product]) * full.covariance(*pair)
                moves[pair] = moves.get(pair, 0.0) + moved
    variance = torch.tensor(float(done.variances[k]), dtype=torch.float64)
    guesses = []
    for pair, moved in moves.items():
        mean = torch.tensor(float(done.means[k]) + moved, dtype=torch.float64)
        added = frozenset(closure(walk.circuit, [pair]) - walk.pairs)
        length = walk.argument(walk.pairs | added).bits
        guesses.append((float(walk.outcome.bits(mean, variance)) + length, added))

    return sorted(guesses, key=lambda guess: guess[0])


def _length(count: int, tracked: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Bits of an argument that tracks so many of ``count`` pairs, which need not be whole."""
    whole = torch.tensor(count + 1.0, dtype=torch.float64)
    logs = torch.lgamma(whole) - torch.lgamma(tracked + 1) - torch.lgamma(whole - tracked)

    return logs / math.log(2) + math.log2(count + 1)
