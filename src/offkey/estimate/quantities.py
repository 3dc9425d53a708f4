"""What an estimator is given and what it returns: arguments, estimates, bounds, surprise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from offkey.errors import BadValue, Mismatch

__all__ = [
    "Pair",
    "Estimate",
    "Bound",
    "Argument",
    "TrackedPairs",
    "Surprise",
    "log2_binomial",
    "surprise_of_events",
]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Estimate:
    """A best guess of a quantity. It may be wrong, and another argument may change it.

    Attributes:
        value: the guess; ``None`` where there is none (then ``status`` and ``reason`` say why).
        error: standard error of sampling, where the estimate was sampled.
        effective_samples: how many equally weighted samples it is worth, where it was sampled.
        resolution: the smallest value that the method can distinguish from 0, where it has one.
        flops: floating-point operations spent, where they were counted.
        status: ``ok``, ``below_resolution`` (nothing was seen: the quantity is probably less than
            ``resolution``, which is not zero), ``not_applicable`` or ``failed``.
        reason: why the status is not ``ok``.
    """

    value: float | None
    error: float | None = None
    effective_samples: float | None = None
    resolution: float | None = None
    flops: int | None = None
    status: Literal["ok", "below_resolution", "not_applicable", "failed"] = "ok"
    reason: str = ""

    def __float__(self) -> float:
        if self.value is None:
            raise BadValue(
                f"there is no estimate ({self.status}: {self.reason})", where="Estimate"
            )

        return self.value


@dataclass(frozen=True)
class Bound:
    """Two numbers that the quantity was proved to lie between; never mixed with an estimate."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise BadValue(f"low {self.low} is above high {self.high}", where="Bound")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


class Argument(ABC):
    """What an estimator is given besides the definition of the quantity.

    Attributes:
        subject: fingerprint of the circuit, model or computation it is about.
    """

    subject: str

    @property
    @abstractmethod
    def bits(self) -> float:
        r""":math:`S(\pi)`, length of the argument's description, in bits."""

    def check(self, subject: str) -> None:
        """Refuses any subject but the one the argument is about.

        Raises:
            Mismatch: it is about another one.
        """
        if subject != self.subject:
            raise Mismatch(
                f"the argument is about {self.subject}, and this is {subject}",
                where=type(self).__name__,
                mend="Make the argument from the same circuit or model",
            )


@dataclass(frozen=True)
class TrackedPairs(Argument):
    r"""Which covariances are tracked: pairs of variables, in one group or in several.

    A group is a circuit, or a layer. Its description costs
    :math:`\log_2(n + 1) + \log_2 \binom{n}{k}` bits for k of n candidates, and
    ``value_bits`` for each tracked value that does not follow from the subject.

    Args:
        subject: fingerprint of its subject.
        tracked: the pairs (i, j) of each group; stored with i < j.
        candidates: how many pairs each group has to choose from.
        value_bits: bits to state the value of one tracked covariance.

    Raises:
        BadValue: a pair of a variable with itself (always tracked), or more pairs than candidates.
    """

    subject: str
    tracked: Mapping[str, frozenset[Pair]]
    candidates: Mapping[str, int]
    value_bits: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        ordered = {
            group: frozenset((min(pair), max(pair)) for pair in pairs)
            for group, pairs in self.tracked.items()
        }
        object.__setattr__(self, "tracked", ordered)
        for group, pairs in ordered.items():
            same = [i for i, j in pairs if i == j]
            if same:
                raise BadValue(
                    f"pair ({same[0]}, {same[0]}): a variance is always tracked",
                    where=f"group {group}",
                    mend="Leave it out",
                )
            if len(pairs) > self.candidates.get(group, 0):
                raise BadValue(
                    f"{len(pairs)} tracked pairs of {self.candidates.get(group, 0)} candidates",
                    where=f"group {group}",
                )

    @property
    def bits(self) -> float:
        r""":math:`S(\pi)` in bits."""
        return sum(
            math.log2(n + 1) + log2_binomial(n, k) + self.value_bits * k
            for n, k in (
                (n, len(self.tracked.get(group, ()))) for group, n in self.candidates.items()
            )
        )

    def __len__(self) -> int:
        return sum(map(len, self.tracked.values()))

    def with_pairs(self, group: str, pairs: Iterable[Pair]) -> Self:
        """The same argument with more pairs tracked in one group."""
        more = self.tracked.get(group, frozenset()) | frozenset(pairs)

        return type(self)(
            self.subject,
            {**self.tracked, group: more},
            self.candidates,
            value_bits=self.value_bits,
        )


@dataclass(frozen=True)
class Surprise:
    r"""The two parts of total surprise in bits, next to those of the empty argument.

    Attributes:
        outcome: :math:`S(Y \mid \pi)`, how surprising the outcome is, given the argument.
        argument: :math:`S(\pi)`.
        empty_outcome: :math:`S(Y \mid \varnothing)`.
        empty_argument: :math:`S(\varnothing)`: what saying "nothing is tracked" costs.
        flops: floating-point operations of the estimate, where they were counted.

    References:
        Alignment Research Center, 2024: Formal verification, heuristic explanations and surprise
        accounting.
    """

    outcome: float
    argument: float
    empty_outcome: float
    empty_argument: float = 0.0
    flops: int | None = None

    @property
    def total(self) -> float:
        """Surprise of outcome and argument together."""
        return self.outcome + self.argument

    @property
    def explained(self) -> float:
        """How many bits of the outcome's surprise the argument removes."""
        return self.empty_outcome - self.outcome

    @property
    def net(self) -> float:
        """What it explains minus what it costs; worthwhile only above 0."""
        return self.explained - (self.argument - self.empty_argument)


def log2_binomial(n: int, k: int) -> float:
    r""":math:`\log_2 \binom{n}{k}`."""
    if not 0 <= k <= n:
        raise BadValue(f"{k} of {n}", where="binomial coefficient")
    if n < 1000:
        return math.log2(math.comb(n, k))

    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def surprise_of_events(probability: float, hits: int, misses: int = 0) -> float:
    r""":math:`-k \log_2 \hat p - (N - k) \log_2 (1 - \hat p)`, in bits.

    Args:
        probability: the estimate; kept between :math:`2^{-53}` and 1 (between :math:`2^{-53}`
            and :math:`1 - 2^{-53}` where events were missed).
        hits: in how many draws the event happened.
        misses: in how many it did not.
    """
    least = 2.0**-53
    p = min(max(probability, least), 1.0)
    bits = -hits * math.log2(p)
    if misses:
        bits -= misses * math.log2(max(1 - p, least))

    return bits
