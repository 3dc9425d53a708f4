"""How likely a language model's next token is, over inputs with free positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from offkey.errors import BadInput, BadValue, UnknownName, UnmappedModel, check
from offkey.estimate.quantities import Estimate
from offkey.estimate.risk.decomposition import argmax_probability, qld
from offkey.estimate.risk.draws import Draws, gld, monte_carlo
from offkey.estimate.risk.problem import (
    CachedNetwork,
    Problem,
    TokenGradients,
    TokenInputs,
    TokenNetwork,
)
from offkey.estimate.risk.samplers import ITGIS, MHIS
from offkey.models import Model
from offkey.storage import Record

__all__ = [
    "RISK_METHODS",
    "LanguageNetwork",
    "RiskQuestion",
    "RiskReport",
    "RiskRow",
    "RiskSettings",
    "estimate_risk",
]

RISK_METHODS = (
    "naive",
    "itgis",
    "mhis",
    "qld",
    "qld-gaussian",
    "qld-pareto",
    "gld",
    "layer-gaussian",
)
"""Names of the methods of :func:`estimate_risk`: plain sampling, two samplers, extrapolations."""

_LEAST_FOR_MHIS = 1024
_Keys = list[tuple[Tensor, Tensor]]
_NODES = 64
"""How many inputs' keys and values are held side by side."""


class LanguageNetwork(TokenNetwork):
    """The next token after a prefix and free tokens.

    Logits are those before a cap, where the model caps them: the largest stays the largest.
    Everything is computed in the model's dtype; in bfloat16 logits tie often, so float32 is
    advised.

    Args:
        model: a causal language model.
        prefix: tokens that come first in every input.

    Raises:
        UnmappedModel: the model's parts are not known.
        BadInput: the prefix is empty.
        BadValue: a token of the prefix is not in the vocabulary.
    """

    def __init__(self, model: Model, prefix: Sequence[int]) -> None:
        wiring = model.wiring
        if wiring is None or wiring.unembedding is None:
            raise model.unmapped or UnmappedModel("no unembedding", where=f"model {model.name}")
        if not len(prefix):
            raise BadInput("the prefix is empty", where="prefix", mend="Give at least one token")
        self.model, self._wiring = model, wiring
        self.input_vocabulary = int(wiring.config.vocab_size)
        if min(prefix) < 0 or max(prefix) >= self.input_vocabulary:
            raise BadValue(
                f"a token is not in the vocabulary of {self.input_vocabulary}", where="prefix"
            )
        self.weight = cast(Tensor, wiring.unembedding.weight).detach()
        bias = getattr(wiring.unembedding, "bias", None)
        self.bias = self.weight.new_zeros(len(self.weight)) if bias is None else bias.detach()
        self.prefix = torch.tensor([list(prefix)], device=model.device)
        with torch.no_grad():
            cache = DynamicCache(config=wiring.config)
            wiring.decoder(input_ids=self.prefix, past_key_values=cache, use_cache=True)
        self._keys: _Keys = [(layer.keys, layer.values) for layer in cache.layers]

    def finals(self, tokens: Int[Tensor, "n k"]) -> Tensor:
        """What enters the unembedding at the last free token."""
        with torch.no_grad():
            return torch.cat(
                [self._last(self._embed(part)) for part in torch.split(tokens, _NODES)]
            )

    def gradients(
        self, tokens: Int[Tensor, "n k"], target: int, candidates: Tensor
    ) -> TokenGradients:
        """The gradient of the target's logit with respect to the one-hot tokens."""
        with torch.no_grad():
            rows = self._embed(candidates)
        parts = []
        for part in torch.split(tokens, _NODES):
            with torch.enable_grad():
                embedded = self._embed(part).detach().requires_grad_()
                finals = self._last(embedded)
                (slope,) = torch.autograd.grad(self.logit(finals, target).sum(), embedded)
            parts.append(
                TokenGradients(finals.detach(), torch.einsum("nkd,kcd->nkc", slope, rows))
            )

        return TokenGradients(
            torch.cat([part.finals for part in parts]),
            torch.cat([part.gradient for part in parts]).double().cpu(),
        )

    def walk(self, inputs: TokenInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Every input, as a tree: a token that several inputs share is computed once.

        The candidates of a position follow their common past side by side; the mask lets each see
        that past and itself.
        """
        root = torch.zeros(1, 0, dtype=torch.long)
        with torch.no_grad():
            yield from self._branches(inputs, root, self._keys)

    def _branches(
        self, inputs: TokenInputs, past: Tensor, keys: _Keys
    ) -> Iterator[tuple[Tensor, Tensor]]:
        depth, width = past.shape[1], inputs.sizes[past.shape[1]]
        hidden, grown = self._candidates(inputs.tokens[depth, :width], len(past), keys)
        number = torch.arange(width).repeat(len(past))[:, None]
        children = torch.cat([past.repeat_interleave(width, 0), number], 1)
        if depth + 1 == inputs.positions:
            yield children, hidden.flatten(0, 1)
            return
        length = self.prefix.shape[1] + depth
        for part in torch.split(torch.arange(len(children)), _NODES):
            yield from self._branches(inputs, children[part], _grown(grown, part, length, width))

    def _candidates(self, tokens: Tensor, parents: int, keys: _Keys) -> tuple[Tensor, _Keys]:
        """Runs the same candidates after each of several pasts."""
        cache = self._cache(keys, parents)
        length, width = keys[0][0].shape[2], len(tokens)
        embedded = self._embed(tokens[None]).expand(parents, -1, -1)
        mask = embedded.new_full((width, length + width), torch.finfo(embedded.dtype).min)
        mask[:, :length] = 0
        mask[:, length:].fill_diagonal_(0)
        out = self._wiring.decoder(
            inputs_embeds=embedded,
            attention_mask=mask.expand(parents, 1, -1, -1),
            position_ids=torch.full((parents, width), length, device=embedded.device),
            past_key_values=cache,
            use_cache=True,
        )

        return out.last_hidden_state, [(layer.keys, layer.values) for layer in cache.layers]

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self._wiring.embedding(tokens.to(self.model.device))

        return embedded

    def _last(self, embedded: Tensor) -> Tensor:
        out = self._wiring.decoder(
            inputs_embeds=embedded,
            past_key_values=self._cache(self._keys, len(embedded)),
            use_cache=True,
        )

        return out.last_hidden_state[:, -1].contiguous()  # type: ignore[no-any-return] # untyped

    def _cache(self, keys: _Keys, rows: int) -> Any:
        cache = DynamicCache(config=self._wiring.config)
        for number, (key, value) in enumerate(keys):
            cache.update(key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1), number)

        return cache


def _grown(keys: _Keys, nodes: Tensor, length: int, width: int) -> _Keys:
    """Keys and values of some children: their parent's, and their own."""
    parent, own = nodes // width, length + nodes % width

    def of(x: Tensor) -> Tensor:
        new = x[parent, :, own][:, :, None]

        return torch.cat([x[parent, :, :length], new], 2)

    return [(of(key), of(value)) for key, value in keys]


@dataclass(frozen=True)
class RiskSettings:
    """How the probability of a next token is estimated.

    Attributes:
        methods: names from :data:`RISK_METHODS`; all of them if empty.
        samples: how many inputs each method may run; the methods that only extrapolate share
            one set of them.
        temperature: T of ``itgis`` and ``mhis``, in logits.
        seed: of every draw.

    Raises:
        UnknownName: there is no such method.
        BadValue: too few samples for ``mhis``.
    """

    methods: tuple[str, ...] = ()
    samples: int = 1024
    temperature: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in RISK_METHODS:
                raise UnknownName("method", name, RISK_METHODS, where="methods")
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods or RISK_METHODS)))
        check(
            self.samples >= _LEAST_FOR_MHIS or "mhis" not in self.methods,
            f"{self.samples} samples are too few for mhis",
            where="samples",
            mend=f"Give at least {_LEAST_FOR_MHIS}, or other methods",
        )


@dataclass(frozen=True)
class RiskQuestion:
    """How likely is it that one token comes next, over inputs with free positions?

    Attributes:
        prompt: what every input begins with.
        free: for each free position the texts of its candidates, one token each, and their
            probabilities. Positions are independent.
        target: text of the next token.
    """

    prompt: str
    free: Sequence[Mapping[str, float]]
    target: str

    def problem(self, model: Model) -> Problem:
        """The question in the tokens of a model, which runs the prompt once.

        Raises:
            BadInput: the model has no tokenizer, a text is not one token, two texts are the same
                token, or probabilities do not sum to 1.
            UnmappedModel: the model's parts are not known.
        """
        inputs = TokenInputs.of([_candidates(model, row, n) for n, row in enumerate(self.free)])
        target = _one_token(model, self.target, "target")
        prefix = _tokenizer(model)(self.prompt)["input_ids"]
        network = LanguageNetwork(model, [int(token) for token in prefix])

        return Problem(CachedNetwork(network), inputs, target)


class RiskRow(Record):
    """The answer of one method.

    Attributes:
        method: its name.
        estimate: the probability; a best guess, never a bound. ``None`` where there is none.
        standard_error: of sampling.
        effective_samples: how many equally weighted samples the estimate is worth.
        resolution: the smallest probability that the method can distinguish from 0.
        status: as in :class:`~offkey.estimate.Estimate`.
        reason: why the status is not ``ok``.
    """

    method: str
    estimate: float | None
    standard_error: float | None
    effective_samples: float | None
    resolution: float | None
    status: str
    reason: str

    @classmethod
    def of(cls, method: str, estimate: Estimate) -> Self:
        """The row of an estimate."""
        return cls(
            method=method,
            estimate=estimate.value,
            standard_error=estimate.error,
            effective_samples=estimate.effective_samples,
            resolution=estimate.resolution,
            status=estimate.status,
            reason=estimate.reason,
        )


class RiskReport(Record):
    """The question and the answer of every method.

    Attributes:
        model: name of the model.
        fingerprint: of the model.
        prompt: what every input begins with.
        target: text of the next token.
        target_token: its number.
        inputs: how many inputs the free positions make.
        samples: how many inputs each method could run.
        temperature: of the samplers, in logits.
        seed: of every draw.
        dtype: in which the model ran.
        rows: one for each method, in the order of the settings.
    """

    model: str
    fingerprint: str
    prompt: str
    target: str
    target_token: int
    inputs: int
    samples: int
    temperature: float
    seed: int
    dtype: str
    rows: tuple[RiskRow, ...]


def estimate_risk(
    model: Model, question: RiskQuestion, settings: RiskSettings | None = None
) -> RiskReport:
    """Estimates how likely a next token is with several methods, as ``offkey risk`` does.

    Every answer is an estimate and never a bound. A method without any accepted sample answers
    ``below_resolution``; a value that depends on few samples has the status ``failed``.

    Args:
        model: a causal language model with its tokenizer; float32 is advised.
        question: prompt, free positions and target.
        settings: methods, samples, temperature and seed.

    Raises:
        BadInput: a text of the question is not one token, or probabilities do not sum to 1.
        UnmappedModel: the model's parts are not known.
    """
    chosen = settings or RiskSettings()
    problem = question.problem(model)
    is_plain = any(name not in _SAMPLERS for name in chosen.methods)
    draws = _plain_draws(problem, chosen) if is_plain else None
    rows = [RiskRow.of(name, _answer(name, problem, draws, chosen)) for name in chosen.methods]

    return RiskReport(
        model=model.name,
        fingerprint=model.fingerprint,
        prompt=question.prompt,
        target=question.target,
        target_token=problem.target,
        inputs=problem.inputs.count,
        samples=chosen.samples,
        temperature=chosen.temperature,
        seed=chosen.seed,
        dtype=str(model.dtype).removeprefix("torch."),
        rows=tuple(rows),
    )


def _itgis(problem: Problem, settings: RiskSettings) -> Estimate:
    batch = min(256, max(1, settings.samples // 16))

    return ITGIS(settings.temperature, settings.samples, batch)(problem, seed=settings.seed)


def _mhis(problem: Problem, settings: RiskSettings) -> Estimate:
    return MHIS(settings.temperature, settings.samples, chains=16)(problem, seed=settings.seed)


def _layer_gaussian(draws: Draws, target: int, seed: int) -> Estimate:
    return argmax_probability(draws.normal, draws.weight, draws.bias, target, seed=seed)


_SAMPLERS = {"itgis": _itgis, "mhis": _mhis}
"""Methods that choose their own inputs."""


def _answer(name: str, problem: Problem, draws: Draws | None, settings: RiskSettings) -> Estimate:
    if name in _SAMPLERS:
        return _SAMPLERS[name](problem, settings)
    assert draws is not None
    target = problem.target
    match name:
        case "naive":
            return monte_carlo(draws, target)
        case "gld":
            return gld(draws, target)
        case "layer-gaussian":
            return _layer_gaussian(draws, target, settings.seed)
        case "qld-gaussian":
            return qld(draws, target, tail="gaussian")
        case "qld-pareto":
            return qld(draws, target, tail="pareto")

    return qld(draws, target)


def _plain_draws(problem: Problem, settings: RiskSettings) -> Draws:
    """Inputs drawn from their own distribution, which the extrapolating methods share."""
    network = problem.network
    plain = network.network if isinstance(network, CachedNetwork) else network

    return Draws.of(plain, problem.inputs, settings.samples, seed=settings.seed)


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise BadInput("the model has no tokenizer", where=f"model {model.name}")

    return model.tokenizer


def _candidates(model: Model, row: Mapping[str, float], place: int) -> dict[int, float]:
    where = f"free position {place}"
    tokens = [_one_token(model, text, where) for text in row]
    check(
        len(set(tokens)) == len(tokens),
        "two texts are the same token",
        where=where,
        error=BadInput,
    )

    return dict(zip(tokens, map(float, row.values()), strict=True))


def _one_token(model: Model, text: str, where: str) -> int:
    tokenizer = _tokenizer(model)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) != 1:
        parts = ", ".join(repr(tokenizer.decode([token])) for token in tokens) or "nothing"
        raise BadInput(
            f"{text!r} is not one token of the vocabulary but {parts}",
            where=where,
            mend="Give one token's text, with its leading space",
        )

    return int(tokens[0])
