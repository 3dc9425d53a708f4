"""Generation: token by token over cached keys and values, with edits and readings."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from offkey.data import Batch
from offkey.errors import check
from offkey.models.edits import Edit, PassContext
from offkey.models.network import Network
from offkey.models.passing import Pass, Reading, Sites
from offkey.models.sites import Site

__all__ = ["Generation", "Step", "Steps", "generate"]


@dataclass(frozen=True)
class Step:
    """One new token of each row that is being continued.

    Attributes:
        ids: the prompts, in the order of the rows.
        tokens: the new tokens.
        numbers: how many new tokens each row had before.
        ended: rows that end with this token, and leave.
        logits: what the tokens were chosen from.
        values: at each site asked for, values at the token that was run: the last of the prompt,
            and then each new token.
    """

    ids: tuple[str, ...]
    tokens: Int[Tensor, " row"]
    numbers: tuple[int, ...]
    ended: Bool[Tensor, " row"]
    logits: Float[Tensor, "row vocab"]
    values: Mapping[Site, Tensor]

    def __getitem__(self, site: Site | str) -> Tensor:
        return self.values[Site.parse(site) if isinstance(site, str) else site]


@dataclass
class _RowsUnderWay:
    """Rows that go on together: what they were asked, and what is cached of them.

    Attributes:
        prompts: the prompts.
        chunk: what is run next; its mask covers all tokens so far.
        cache: keys and values of those before.
        lengths: how many tokens each prompt has.
    """

    prompts: Batch
    chunk: Batch
    cache: DynamicCache
    lengths: Int[Tensor, " row"]


class Steps:
    """Generation one token at a time: ``for step in model.steps(batch): …``.

    Between two steps rows can :meth:`join` and :meth:`leave`, and a caller can simply stop:
    nothing of it lives on the model. What a row is given depends on its prompt alone, up to
    rounding, whoever runs beside it.

    Args:
        network: a decoder whose parts were found.
        batch: prompts, padded on the left.
        tokenizer: says which token ends a text, beside the model's own settings.
        reads: sites whose values come with each step.
        edits: changes, whose ``positions`` are ``"prompt"``, ``"new"``, ``"all"``, or token
            numbers from 0.
        max_new_tokens: rows end after so many; ``None`` means at the end-of-text token alone.
        temperature: 0 takes the most probable token.
        seed: with a temperature, a row's tokens depend on it and the prompt's id alone.

    Attributes:
        tokens: new tokens of each row so far, by id, also of rows that ended or left.

    Raises:
        BadValue: a plain module, inputs without tokens, or a setting that is out of range.
    """

    def __init__(
        self,
        network: Network,
        batch: Batch,
        *,
        tokenizer: Any = None,
        reads: Sites = (),
        edits: Sequence[Edit] = (),
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check(network, batch, max_new_tokens, temperature)
        self.network, self.tokenizer, self.batch = network, tokenizer, batch.to(network.device)
        self.reads, self.edits = network.sites_at(reads), tuple(edits)
        self.max_new_tokens = max_new_tokens
        self.tokens: dict[str, list[int]] = {}
        self.keeps_ended = False
        self._sampler = _TokenSampler(temperature, seed)
        self._ends = _end_tokens(network, tokenizer)
        self._rows: _RowsUnderWay | None = None
        self._joining: list[Batch] = []
        self._leaving: set[str] = set()
        self.join(self.batch)

    def __iter__(self) -> Self:
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """The rows that the next step continues."""
        running = () if self._rows is None else self._rows.prompts.ids
        joining = [name for batch in self._joining for name in batch.ids]
        return tuple(name for name in (*running, *joining) if name not in self._leaving)

    def join(self, batch: Batch) -> None:
        """Lets prompts take part from the next step on.

        Raises:
            BadValue: a prompt of that id has taken part already.
        """
        _check(self.network, batch, self.max_new_tokens, 0.0)
        for name in batch.ids:
            check(name not in self.tokens, "it has taken part already", where=f"prompt {name}")
        self.tokens.update({name: [] for name in batch.ids})
        self._joining.append(batch.to(self.network.device))

    def leave(self, *ids: str) -> None:
        """Lets rows go no further.

        Raises:
            BadValue: there is no such row.
        """
        for name in ids:
            check(name in self.ids, "it takes no part", where=f"prompt {name}")
        self._leaving.update(ids)

    def __next__(self) -> Step:
        """Runs the model once, and once more where prompts join."""
        groups = self._groups()
        if not groups:
            raise StopIteration
        readings = [self._run(rows) for rows in groups]
        rows = _together(groups)
        logits = torch.cat([_logits(reading) for reading in readings])
        tokens = self._sampler(logits, rows.prompts.ids)
        numbers = tuple(len(self.tokens[name]) for name in rows.prompts.ids)
        ended = self._record(rows.prompts.ids, tokens)
        self._rows = rows
        rows.chunk = _grown(rows.chunk, tokens)
        values = {site: torch.cat([r[site] for r in readings]) for site in self.reads}

        return Step(rows.prompts.ids, tokens, numbers, ended, logits, values)

    def _groups(self) -> list[_RowsUnderWay]:
        """The rows that go on, and those that join; each group is run by itself."""
        groups = []
        if self._rows is not None:
            keep = [name not in self._leaving for name in self._rows.prompts.ids]
            if any(keep):
                groups.append(self._rows if all(keep) else _some(self._rows, keep))
        for batch in self._joining:
            stays = torch.tensor([name not in self._leaving for name in batch.ids])
            if bool(stays.any()):
                groups.append(self._started(batch if bool(stays.all()) else batch.select(stays)))
        self._rows, self._joining, self._leaving = None, [], set()

        return groups

    def _started(self, batch: Batch) -> _RowsUnderWay:
        assert self.network.wiring is not None
        assert batch.mask is not None
        cache = DynamicCache(config=self.network.wiring.config)

        return _RowsUnderWay(batch, batch, cache, batch.mask.sum(1))

    def _run(self, rows: _RowsUnderWay) -> Reading:
        context = PassContext.of(rows.chunk, rows=rows.prompts, prompt=rows.lengths)
        extra = {"past_key_values": rows.cache, "use_cache": True}
        with Pass(self.network, rows.chunk, self.edits, context=context, extra=extra) as p:
            return p.run(self.reads, logits=True, allow_nonfinite=True)

    def _record(self, ids: Sequence[str], tokens: Tensor) -> Bool[Tensor, " row"]:
        """Keeps the new tokens; says which rows end, and lets them leave."""
        ended = []
        for name, token in zip(ids, tokens.tolist(), strict=True):
            row = self.tokens[name]
            if not row or row[-1] not in self._ends:
                row.append(token)
            is_full = self.max_new_tokens is not None and len(row) >= self.max_new_tokens
            ended.append(row[-1] in self._ends or is_full)
        over = [name for name, end in zip(ids, ended, strict=True) if end]
        if not self.keeps_ended or len(over) == len(ids):
            self._leaving.update(over)

        return torch.tensor(ended)


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    Attributes:
        batch: what it was given.
        tokens: new tokens of each row, up to and with the end-of-text token.
        texts: the same as text, without special tokens; empty strings without a tokenizer.
    """

    batch: Batch
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


def generate(steps: Steps) -> Generation:
    """Takes all steps; see :meth:`offkey.models.Model.generate`."""
    check(
        steps.max_new_tokens is not None,
        "temperature is at least 0 and max_new_tokens at least 1",
        where="generate",
    )
    steps.keeps_ended = True  # so that a row's neighbours, and its last bits, stay the same
    for _ in steps:
        pass
    rows = [steps.tokens[name] for name in steps.batch.ids]
    texts: Sequence[str] = [""] * len(rows)
    if steps.tokenizer is not None:
        texts = steps.tokenizer.batch_decode(rows, skip_special_tokens=True)

    return Generation(steps.batch, tuple(map(tuple, rows)), tuple(texts))


# -- cached keys and values ------------------------------------------------------------------


def _some(rows: _RowsUnderWay, keep: Sequence[bool]) -> _RowsUnderWay:
    """Some of the rows, without the padding that none of them needs."""
    kept = torch.tensor(keep, device=rows.lengths.device)
    chunk, prompts = rows.chunk.select(kept), rows.prompts.select(kept)
    assert chunk.mask is not None
    spare = int(chunk.mask.int().argmax(1).min())
    mask = chunk.mask[:, spare:]
    total = mask.shape[1] - 1
    _check_cache(rows.cache)
    for layer in rows.cache.layers:
        width = min(layer.keys.shape[-2], total)
        _store(layer, layer.keys[kept][:, :, -width:], layer.values[kept][:, :, -width:], total)

    return _RowsUnderWay(prompts, replace(chunk, mask=mask), rows.cache, rows.lengths[kept])


def _together(groups: Sequence[_RowsUnderWay]) -> _RowsUnderWay:
    """Groups that were run, as one; shorter rows are padded on the left."""
    if len(groups) == 1:
        return groups[0]
    for group in groups:
        _check_cache(group.cache)
    masks = [group.chunk.mask for group in groups if group.chunk.mask is not None]
    total = max(mask.shape[1] for mask in masks)
    caches = [group.cache for group in groups]
    for number, layer in enumerate(caches[0].layers):
        parts = [cache.layers[number] for cache in caches]
        width = max(part.keys.shape[-2] for part in parts)
        keys = torch.cat([_left_padded(part.keys, width, 2) for part in parts])
        values = torch.cat([_left_padded(part.values, width, 2) for part in parts])
        _store(layer, keys, values, total)
    prompts = _packed([group.prompts for group in groups])
    chunk = Batch(
        {"input_ids": torch.cat([group.chunk.inputs["input_ids"][:, -1:] for group in groups])},
        prompts.ids,
        mask=torch.cat([_left_padded(mask, total, 1) for mask in masks]),
    )

    return _RowsUnderWay(prompts, chunk, caches[0], torch.cat([group.lengths for group in groups]))


def _store(layer: Any, keys: Tensor, values: Tensor, total: int) -> None:
    layer.keys, layer.values = keys, values
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = total


def _check_cache(cache: DynamicCache) -> None:
    """Refuses caches whose rows cannot be taken apart."""
    for layer in cache.layers:
        check(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer),
            f"rows of a {type(layer).__name__} cannot be joined or parted",
            where="steps",
            mend="Start steps anew with the rows that are wanted",
        )


def _left_padded(x: Tensor, width: int, axis: int) -> Tensor:
    missing = width - x.shape[axis]
    if not missing:
        return x
    shape = (*x.shape[:axis], missing, *x.shape[axis + 1 :])

    return torch.cat([x.new_zeros(shape), x], dim=axis)


def _packed(batches: Sequence[Batch]) -> Batch:
    """Prompts of several batches as one, padded on the left; without roles."""
    width = max(batch.inputs["input_ids"].shape[1] for batch in batches)
    masks = [batch.mask for batch in batches if batch.mask is not None]

    return Batch(
        {
            "input_ids": torch.cat(
                [_left_padded(batch.inputs["input_ids"], width, 1) for batch in batches]
            )
        },
        tuple(name for batch in batches for name in batch.ids),
        mask=torch.cat([_left_padded(mask, width, 1) for mask in masks]),
    )


def _grown(chunk: Batch, token: Int[Tensor, " row"]) -> Batch:
    """The next pass: one token a row, after all those that the cache holds."""
    mask = chunk.mask
    assert mask is not None
    positions = mask.sum(1, keepdim=True)
    longer = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)

    return Batch({"input_ids": token[:, None]}, chunk.ids, mask=longer, positions=positions)


def _logits(reading: Reading) -> Float[Tensor, "row vocab"]:
    assert reading.logits is not None
    return reading.logits


def _check(network: Network, batch: Batch, max_new_tokens: int | None, temperature: float) -> None:
    check(
        batch.mask is not None and network.wiring is not None,
        "only a mapped language model generates",
        where=f"model {network.name}",
    )
    check(
        temperature >= 0 and (max_new_tokens is None or max_new_tokens >= 1),
        "temperature is at least 0 and max_new_tokens at least 1",
        where="generate",
    )


@dataclass
class _TokenSampler:
    """Chooses tokens; each row by random numbers of its own."""

    temperature: float
    seed: int
    generators: dict[str, torch.Generator] = field(default_factory=dict)

    def __call__(
        self, logits: Float[Tensor, "row vocab"], ids: Sequence[str]
    ) -> Int[Tensor, " row"]:
        if not self.temperature:
            return logits.argmax(-1)
        chances = (logits.double() / self.temperature).softmax(-1).cpu()
        drawn = [
            torch.multinomial(row, 1, generator=self._generator(name))
            for row, name in zip(chances, ids, strict=True)
        ]

        return torch.cat(drawn).to(logits.device)

    def _generator(self, name: str) -> torch.Generator:
        if name not in self.generators:
            self.generators[name] = torch.Generator().manual_seed(_seed(self.seed, name))
        return self.generators[name]


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


def _end_tokens(network: Network, tokenizer: Any) -> set[int]:
    config = getattr(network.wiring.top if network.wiring else None, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    several = ends if isinstance(ends, list | tuple) else (ends,)
    tokens = (*several, getattr(tokenizer, "eos_token_id", None))

    return {token for token in tokens if token is not None}
