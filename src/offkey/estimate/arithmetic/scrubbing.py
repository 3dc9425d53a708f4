"""Arguments about paths, and scrubbing on functions that can be tabulated."""

import hashlib
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.quantities import Argument, Estimate, Surprise, log2_binomial

__all__ = ["bell", "PathPartition", "path_partitions", "Scrubbing"]

_MOST = 1 << 22
"""Most entries of a table."""
_LEAST = 2.0**-53


def bell(n: int) -> int:
    """How many partitions a set of n has: 1, 1, 2, 5, 15, 52, ….

    Raises:
        BadValue: n is negative.
    """
    if n < 0:
        raise BadValue(f"a set of {n}", where="bell")
    row = [1]
    for _ in range(n):
        following = [row[-1]]
        for value in row:
            following.append(following[-1] + value)
        row = following

    return row[0]


@dataclass(frozen=True)
class PathPartition(Argument):
    r"""An important set of paths, and a partition of the others.

    Important paths keep their input; the paths of one block share one resampled input. The empty
    argument resamples every path alone. There are :math:`B_{m+1}` such arguments over m paths.

    Args:
        subject: fingerprint of the computation.
        paths: m, how many paths it has.
        important: paths that keep their input.
        blocks: of the others; a path that is in none is a block of its own.
        code: how it is described. ``"uniform"`` costs :math:`\log_2 B_{m+1}`; ``"prefix"`` costs
            :math:`\log_2 (m+1) + \log_2 \binom{m}{k} + \log_2 B_{m-k}` with k important paths.

    Raises:
        BadValue: a path that does not exist, or that is in two places.
    """

    subject: str
    paths: int
    important: frozenset[int] = frozenset()
    blocks: tuple[frozenset[int], ...] = ()
    code: Literal["uniform", "prefix"] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        if self.code not in ("uniform", "prefix"):
            raise BadValue(
                f"unknown code {self.code!r}",
                where="PathPartition",
                mend="Use 'uniform' or 'prefix'",
            )
        placed = [path for part in (self.important, *self.blocks) for path in part]
        if len(placed) != len(set(placed)):
            raise BadValue("a path is in two places", where="PathPartition")
        if any(not 0 <= path < self.paths for path in placed):
            raise BadValue(
                f"path {max(placed)}: there are paths 0 to {self.paths - 1}", where="PathPartition"
            )
        rest = set(range(self.paths)) - set(placed)
        parts = [*(frozenset(b) for b in self.blocks if b), *(frozenset([p]) for p in rest)]
        object.__setattr__(self, "important", frozenset(self.important))
        object.__setattr__(self, "blocks", tuple(sorted(parts, key=min)))

    @property
    def bits(self) -> float:
        r""":math:`S(\pi)` in bits, under its code."""
        if self.code == "uniform":
            return math.log2(bell(self.paths + 1))
        kept = len(self.important)

        return (
            math.log2(self.paths + 1)
            + log2_binomial(self.paths, kept)
            + math.log2(bell(self.paths - kept))
        )


def path_partitions(
    subject: str, paths: int, *, code: Literal["uniform", "prefix"] = "uniform"
) -> Iterator[PathPartition]:
    """All arguments over some paths, the one that keeps every path first."""
    for parts in _partitions(paths):
        yield PathPartition(subject, paths, parts[0], tuple(parts[1:]), code=code)


def _partitions(paths: int) -> Iterator[list[frozenset[int]]]:
    """Partitions of the paths and the data point, whose part comes first, without it."""
    parts: list[list[int]] = [[]]

    def place(path: int) -> Iterator[list[frozenset[int]]]:
        if path == paths:
            yield [frozenset(part) for part in parts]
            return
        for part in list(parts):
            part.append(path)
            yield from place(path + 1)
            part.pop()
        parts.append([path])
        yield from place(path + 1)
        parts.pop()

    yield from place(0)


class Scrubbing:
    r"""Losses of a treeified function when the inputs of some paths are resampled.

    Every path has a copy of the input. An argument keeps the data point on the important paths
    and draws one other input for each block of the rest; the estimate is the expectation over the
    draws, summed without sampling. Losses are in bits an input.

    Args:
        probability: the probability that the function gives to the true label of a data point,
            called with the inputs of all paths and the data point.
        inputs: every input there is.
        paths: how many paths the function has.
        weights: probabilities of the inputs; equal by default.
        features: of a path and an input; inputs are then resampled only among those that agree
            with the data point in the features of every path of the block.
        average: ``"loss"`` for the mean of losses, ``"probability"`` for the loss of the mean.

    Raises:
        BadValue: a table of more than four million entries.
        BadInput: a probability outside 0 to 1, or weights that are not probabilities.

    References:
        Chan et al., 2022. Causal scrubbing: a method for rigorously testing interpretability
        hypotheses.
    """

    def __init__(
        self,
        probability: Callable[[tuple[Any, ...], Any], float],
        inputs: Sequence[Any],
        paths: int,
        *,
        weights: Sequence[float] | None = None,
        features: Callable[[int, Any], Hashable] | None = None,
        average: Literal["loss", "probability"] = "loss",
    ) -> None:
        count = len(inputs)
        if paths < 1 or count < 1 or count ** (paths + 1) > _MOST or paths > 20:
            raise BadValue(
                f"{count} inputs on {paths} paths make a table of more than {_MOST} "
                "entries, or of none",
                where="Scrubbing",
            )
        if average not in ("loss", "probability"):
            raise BadValue(
                f"unknown average {average!r}",
                where="Scrubbing",
                mend="Use 'loss' or 'probability'",
            )
        self.paths, self.average = paths, average
        self.weights = _weights(weights, count)
        table = np.array(
            [
                probability(tuple(inputs[i] for i in copies), inputs[x])
                for x, *copies in itertools.product(range(count), repeat=paths + 1)
            ],
            dtype=np.float64,
        )
        if not ((table >= 0) & (table <= 1)).all():
            raise BadInput("a probability is not between 0 and 1", where="Scrubbing")
        self._table = table.reshape((count,) * (paths + 1))
        self._agrees = np.ones((paths, count, count), dtype=bool)
        if features is not None:
            for path in range(paths):
                values = [features(path, x) for x in inputs]
                self._agrees[path] = [[a == b for b in values] for a in values]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tabulated function, the inputs' weights and the features."""
        digest = hashlib.sha256()
        for part in (self._table, self.weights, self._agrees):
            digest.update(str(part.shape).encode() + part.tobytes())

        return digest.hexdigest()

    def argument(
        self,
        important: Sequence[int] = (),
        blocks: Sequence[Sequence[int]] = (),
        *,
        code: Literal["uniform", "prefix"] = "uniform",
    ) -> PathPartition:
        """An argument about this function; the empty one by default."""
        return PathPartition(
            self.fingerprint,
            self.paths,
            frozenset(important),
            tuple(map(frozenset, blocks)),
            code=code,
        )

    def losses(self, argument: Argument) -> Float[np.ndarray, " inputs"]:
        """Scrubbed loss of each input as a data point, in bits; an anomaly score of it.

        Raises:
            Mismatch: the argument is about another function, or not about paths.
        """
        argument.check(self.fingerprint)
        if not isinstance(argument, PathPartition) or argument.paths != self.paths:
            raise Mismatch(
                f"scrubbing needs a partition of {self.paths} paths", where=type(argument).__name__
            )
        letters = ["a"] * self.paths
        operands, subscripts = [], []
        for place, part in enumerate(argument.blocks):
            letter = chr(ord("b") + place)
            for path in part:
                letters[path] = letter
            draws = self.weights * self._agrees[list(part)].all(axis=0)
            operands.append(draws / draws.sum(axis=1, keepdims=True))
            subscripts.append("a" + letter)
        table = self._table if self.average == "probability" else self._bits(self._table)
        equation = ",".join(["a" + "".join(letters), *subscripts]) + "->a"
        mean: Float[np.ndarray, " inputs"] = np.einsum(
            equation, table, *operands, optimize="greedy"
        )

        return self._bits(mean) if self.average == "probability" else mean

    def estimate(self, argument: Argument) -> Estimate:
        """Mean scrubbed loss over the inputs, in bits an input."""
        return Estimate(float(self.weights @ self.losses(argument)))

    def surprise(
        self, argument: Argument, draws: int, *, drawn: Sequence[int] | None = None
    ) -> Surprise:
        r""":math:`\sum_n -\log_2 p(y_n)` over data points, and what the argument costs.

        Args:
            argument: the partition.
            draws: how many data points, as the inputs' weights have it on average.
            drawn: how often each input was drawn, where that is known; ``draws`` is not used then.
        """
        counts = draws * self.weights if drawn is None else np.asarray(drawn, dtype=np.float64)
        if counts.shape != self.weights.shape or (counts < 0).any():
            raise Mismatch(
                f"counts of shape {counts.shape} for {len(self.weights)} inputs", where="surprise"
            )
        losses = self.losses(argument)
        code = argument.code if isinstance(argument, PathPartition) else "uniform"
        empty = self.argument(code=code)

        return Surprise(
            outcome=float(counts @ losses),
            argument=argument.bits,
            empty_outcome=float(counts @ self.losses(empty)),
            empty_argument=empty.bits,
        )

    def recovered(self, argument: Argument) -> float:
        """Share that an argument recovers of the loss from the empty one to the whole function.

        Raises:
            BadInput: the empty argument loses nothing.
        """
        empty = float(self.estimate(self.argument()))
        whole = float(self.estimate(self.argument(range(self.paths))))
        if empty == whole:
            raise BadInput("resampling every path loses nothing", where="recovered")

        return (empty - float(self.estimate(argument))) / (empty - whole)

    def best(
        self, draws: int, *, code: Literal["uniform", "prefix"] = "uniform"
    ) -> tuple[PathPartition, Surprise]:
        """The argument of least total surprise among all; the first of equal ones."""
        scored = [
            (self.surprise(argument, draws), argument)
            for argument in path_partitions(self.fingerprint, self.paths, code=code)
        ]
        surprise, argument = min(scored, key=lambda entry: round(entry[0].total, 9))

        return argument, surprise

    @staticmethod
    def _bits(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        bits: Float[np.ndarray, "*shape"] = -np.log2(np.clip(p, _LEAST, 1.0))

        return bits


def _weights(weights: Sequence[float] | None, count: int) -> Float[np.ndarray, " inputs"]:
    if weights is None:
        return np.full(count, 1 / count)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (count,) or (given <= 0).any() or not math.isclose(given.sum(), 1.0):
        raise BadInput("weights must be positive, one an input, and sum to 1", where="Scrubbing")

    return given
