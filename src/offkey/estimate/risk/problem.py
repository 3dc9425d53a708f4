"""The question: a network, independent tokens that enter it, and the token that should win."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offkey.errors import BadInput, BadValue, Mismatch

__all__ = [
    "TokenInputs",
    "TokenGradients",
    "TokenNetwork",
    "ModuleNetwork",
    "CachedNetwork",
    "Problem",
    "exact",
    "top_tokens",
    "check_target",
]

_SUM = 1e-6
"""How far probabilities may sum from 1; they are then divided by their sum."""
_Key = TypeVar("_Key", bound=Hashable)
_TILE = 2**26
"""Most logits that are held at once."""


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """Independent tokens, each position with its own candidates and probabilities.

    An input is given as choices ``[n, k]``: for each position the number of a candidate.

    Args:
        tokens: ``[k, c]`` candidates of each position; rows with fewer are filled up at the end.
        probabilities: ``[k, c]`` of each candidate, 0 where a row was filled up.

    Raises:
        BadInput: a probability is negative or not finite, a row does not sum to 1, or a candidate
            appears twice in one row.
        Mismatch: the shapes differ.
    """

    tokens: Int[Tensor, "k c"]
    probabilities: Float[Tensor, "k c"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.probabilities.shape:
            shapes = tuple(self.tokens.shape), tuple(self.probabilities.shape)
            raise Mismatch(f"tokens and probabilities of shapes {shapes}", where="inputs")
        if not self.tokens.numel():
            raise BadInput("there is no position or no candidate", where="inputs")
        p = self.probabilities.double()
        for place, row in enumerate(p):
            _check(row, self.tokens[place], place)
        object.__setattr__(self, "tokens", self.tokens.long())
        object.__setattr__(self, "probabilities", p / p.sum(1, keepdim=True))

    @classmethod
    def of(cls, positions: Sequence[Mapping[int, float]]) -> Self:
        """From one table of token and probability for each position.

        Tokens of probability 0 are left out.

        Raises:
            BadInput: probabilities are negative, not finite or do not sum to 1.
        """
        rows = [{token: p for token, p in row.items() if p != 0} for row in positions]
        for place, row in enumerate(rows):
            if not row:
                raise BadInput("no token has a probability", where=f"position {place}")
        widest = max((len(row) for row in rows), default=0)
        tokens = torch.zeros(len(rows), widest, dtype=torch.long)
        probabilities = torch.zeros(len(rows), widest, dtype=torch.float64)
        for place, row in enumerate(rows):
            filled = [*row, *[next(iter(row))] * (widest - len(row))]
            tokens[place] = torch.tensor(filled)
            probabilities[place, : len(row)] = torch.tensor(
                list(row.values()), dtype=torch.float64
            )

        return cls(tokens, probabilities)

    @classmethod
    def uniform(cls, positions: int, tokens: Sequence[int]) -> Self:
        """The same candidates at every position, all equally likely."""
        return cls.of([{token: 1 / len(tokens) for token in tokens}] * positions)

    @property
    def positions(self) -> int:
        """How many tokens are free."""
        return len(self.tokens)

    @property
    def sizes(self) -> list[int]:
        """How many candidates each position has."""
        return [int(count) for count in (self.probabilities > 0).sum(1)]

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return math.prod(self.sizes)

    def draw(
        self, samples: int, generator: torch.Generator, q: Float[Tensor, "k c"] | None = None
    ) -> Int[Tensor, "n k"]:
        """Draws choices, by other probabilities than the inputs' own where ``q`` is given."""
        table = self.probabilities if q is None else q
        drawn = torch.multinomial(table, samples, replacement=True, generator=generator)

        return drawn.T.contiguous()

    def tokens_of(self, choices: Int[Tensor, "n k"]) -> Int[Tensor, "n k"]:
        """The tokens of choices."""
        return self.tokens.T.gather(0, choices)

    def log_probability(self, choices: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """Of each input, in nats."""
        return self.probabilities.log().T.gather(0, choices).sum(1)

    def all(self, chunk: int = 4096) -> Iterator[Int[Tensor, "n k"]]:
        """Every input once, as choices; the last position runs fastest."""
        sizes = torch.tensor(self.sizes)
        strides = torch.cat([sizes.flip(0).cumprod(0).flip(0)[1:], torch.ones(1).long()])
        for start in range(0, self.count, chunk):
            number = torch.arange(start, min(start + chunk, self.count))
            yield number[:, None] // strides % sizes


def _check(p: Float[Tensor, " c"], tokens: Int[Tensor, " c"], place: int) -> None:
    where = f"position {place}"
    if not bool(p.isfinite().all()) or float(p.amin()) < 0:
        raise BadInput("a probability is negative or not finite", where=where)
    total = float(p.sum())
    if abs(total - 1) > _SUM:
        raise BadInput(
            f"probabilities sum to {total:.6g}, not 1",
            where=where,
            mend="Divide them by their sum",
        )
    used = int((p > 0).sum())
    if bool((p[:used] == 0).any()):
        raise BadInput(
            "a candidate of probability 0 comes before others",
            where=where,
            mend="Make the inputs with TokenInputs.of",
        )
    if len(set(tokens[:used].tolist())) != used:
        raise BadInput("a token is given twice", where=where)


@dataclass(frozen=True, eq=False)
class TokenGradients:
    """How one token's logit responds to other tokens in the input.

    Attributes:
        finals: ``[n, d]`` what enters the unembedding.
        gradient: ``[n, k, c]`` of the target's logit towards each candidate of each position.
    """

    finals: Float[Tensor, "n d"]
    gradient: Float[Tensor, "n k c"]


class TokenNetwork(ABC):
    """Tokens in, logits out, and the last layer known.

    Attributes:
        weight: ``[vocabulary, d]`` unembedding; logits are ``finals @ weight.T + bias``.
        bias: ``[vocabulary]``.
        input_vocabulary: how many tokens can enter.
    """

    weight: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"]
    input_vocabulary: int

    @abstractmethod
    def finals(self, tokens: Int[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """What enters the unembedding."""

    @abstractmethod
    def gradients(
        self, tokens: Int[Tensor, "n k"], target: int, candidates: Int[Tensor, "k c"]
    ) -> TokenGradients:
        """The gradient of the target's logit with respect to the one-hot tokens."""

    def walk(self, inputs: TokenInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Choices ``[n, k]`` and finals ``[n, d]`` of every input, each input once."""
        for choices in inputs.all():
            yield choices, self.finals(inputs.tokens_of(choices))

    def logit(self, finals: Float[Tensor, "n d"], target: int) -> Float[Tensor, " n"]:
        """The target's logit."""
        return finals @ self.weight[target] + self.bias[target]


class ModuleNetwork(TokenNetwork):
    """A small module: a trunk that reads one-hot tokens, and a linear head.

    Args:
        trunk: from one-hot tokens ``[n, k, input_vocabulary]`` to ``[n, d]``.
        head: from ``[n, d]`` to logits.
        input_vocabulary: how many tokens can enter.
    """

    def __init__(self, trunk: nn.Module, head: nn.Linear, input_vocabulary: int) -> None:
        self.trunk, self.input_vocabulary = trunk, input_vocabulary
        self.weight = head.weight.detach()
        blank = self.weight.new_zeros(len(self.weight))
        self.bias = blank if head.bias is None else head.bias.detach()

    def finals(self, tokens: Int[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """What enters the head."""
        with torch.no_grad():
            finals: Tensor = self.trunk(self._one_hot(tokens))

        return finals

    def gradients(
        self, tokens: Int[Tensor, "n k"], target: int, candidates: Int[Tensor, "k c"]
    ) -> TokenGradients:
        """The gradient of the target's logit with respect to the one-hot tokens."""
        with torch.enable_grad():
            hot = self._one_hot(tokens).requires_grad_()
            finals = self.trunk(hot)
            (slope,) = torch.autograd.grad(self.logit(finals, target).sum(), hot)
        wanted = candidates.expand(len(tokens), *candidates.shape)

        return TokenGradients(finals.detach(), slope.gather(2, wanted).double())

    def _one_hot(self, tokens: Tensor) -> Tensor:
        hot = torch.nn.functional.one_hot(tokens, self.input_vocabulary)

        return hot.to(self.weight.dtype)


class CachedNetwork(TokenNetwork):
    """A network that runs each input only once; chains return to inputs they have seen.

    Attributes:
        computed: how many inputs the network was run on.
    """

    def __init__(self, network: TokenNetwork) -> None:
        self.network = network
        self.weight, self.bias = network.weight, network.bias
        self.input_vocabulary = network.input_vocabulary
        self.computed = 0
        self._finals: dict[bytes, Tensor] = {}
        self._pulls: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}
        self._candidates: Tensor | None = None

    def finals(self, tokens: Int[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """What enters the unembedding."""
        keys = _keys(tokens)
        new = [i for i, key in _first(keys) if key not in self._finals]
        if new:
            self.computed += len(new)
            for i, row in zip(new, self.network.finals(tokens[new]), strict=True):
                self._finals[keys[i]] = row

        return torch.stack([self._finals[key] for key in keys])

    def gradients(
        self, tokens: Int[Tensor, "n k"], target: int, candidates: Int[Tensor, "k c"]
    ) -> TokenGradients:
        """The gradient of the target's logit with respect to the one-hot tokens."""
        if self._candidates is None or not torch.equal(self._candidates, candidates):
            self._candidates = candidates
            self._pulls.clear()
        keys = [(target, key) for key in _keys(tokens)]
        new = [i for i, key in _first(keys) if key not in self._pulls]
        if new:
            self.computed += len(new)
            computed = self.network.gradients(tokens[new], target, candidates)
            for i, *both in zip(new, computed.finals, computed.gradient, strict=True):
                self._pulls[keys[i]] = both[0], both[1]
        pulls = [self._pulls[key] for key in keys]

        return TokenGradients(
            torch.stack([one for one, _ in pulls]), torch.stack([two for _, two in pulls])
        )

    def walk(self, inputs: TokenInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Every input once, as the network itself lists them."""
        return self.network.walk(inputs)


@dataclass(frozen=True, eq=False)
class Problem:
    """The question of how likely it is that one token gets the largest logit.

    Args:
        network: the network.
        inputs: the distribution of its inputs.
        target: the token; of equal logits the token with the smallest number counts as largest.

    Raises:
        BadValue: the target or a candidate is not in the vocabulary.
    """

    network: TokenNetwork
    inputs: TokenInputs
    target: int

    def __post_init__(self) -> None:
        check_target(self.target, len(self.network.weight))
        limit = self.network.input_vocabulary
        low, high = int(self.inputs.tokens.amin()), int(self.inputs.tokens.amax())
        if low < 0 or high >= limit:
            raise BadValue(
                f"token {low if low < 0 else high} is not in the vocabulary of {limit}",
                where="inputs",
            )

    @cached_property
    def weight64(self) -> Float[Tensor, " d"]:
        """The target's row of the unembedding."""
        return self.network.weight[self.target].double()

    def logit(self, finals: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The target's logit, in float64."""
        return finals.double() @ self.weight64 + self.network.bias[self.target].double()

    def is_event(self, finals: Float[Tensor, "n d"]) -> Tensor:
        """Whether the target's logit is the largest."""
        return top_tokens(finals, self.network.weight, self.network.bias) == self.target

    def exact(self) -> float:
        """The probability, by running every input."""
        return float(exact(self.network, self.inputs)[self.target])


def exact(network: TokenNetwork, inputs: TokenInputs) -> Float[Tensor, " vocabulary"]:
    """For every token the probability that its logit is the largest, by running every input."""
    probabilities = torch.zeros(len(network.weight), dtype=torch.float64)
    for choices, finals in network.walk(inputs):
        first = top_tokens(finals, network.weight, network.bias)
        probabilities.index_add_(0, first, inputs.log_probability(choices).exp())

    return probabilities


def top_tokens(
    finals: Float[Tensor, "n d"],
    weight: Float[Tensor, "vocabulary d"],
    bias: Float[Tensor, " vocabulary"],
) -> Int[Tensor, " n"]:
    """The token with the largest logit in each row."""
    if finals.shape[1:] != weight.shape[1:] or len(bias) != len(weight):
        shapes = tuple(finals.shape), tuple(weight.shape), tuple(bias.shape)
        raise Mismatch(f"activations, unembedding and biases of shapes {shapes}", where="logits")
    if not bool(finals.isfinite().all()):
        raise BadInput("an activation is not finite", where="logits")
    rows = max(1, _TILE // len(weight))
    parts = [torch.addmm(bias, part, weight.T).argmax(1) for part in torch.split(finals, rows)]

    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def check_target(target: int, vocabulary: int) -> None:
    """Checks that a token exists.

    Raises:
        BadValue: it does not.
    """
    if not 0 <= target < vocabulary:
        raise BadValue(
            f"token {target} is not in the vocabulary of {vocabulary}",
            where="target",
            mend=f"Name a token from 0 to {vocabulary - 1}",
        )


def _keys(tokens: Tensor) -> list[bytes]:
    return [row.tobytes() for row in tokens.cpu().numpy()]


def _first(keys: Sequence[_Key]) -> list[tuple[int, _Key]]:
    """Each key once, with its first place."""
    places: dict[_Key, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)

    return [(place, key) for key, place in places.items()]
