"""From prompts to batches: tokens, the role of each, and packing by length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from offkey.data.chat import content_spans, render
from offkey.data.prompts import Prompts, TensorPrompts
from offkey.errors import BadInput, BadValue, check_at_least

__all__ = ["Batch", "Encoded", "Role", "encode", "pack"]

_TENSORS = ("mask", "positions", "roles", "choices", "target")
"""Fields of a batch that hold a row a prompt, beside its inputs."""


class Role(IntEnum):
    """What a token belongs to."""

    PADDING = -1
    TEMPLATE = 0
    PROMPT = 1
    RESPONSE = 2


@dataclass(frozen=True)
class Batch:
    """Prompts packed for one forward pass; text is padded on the left, so −1 is the last token.

    Attributes:
        inputs: keyword arguments of the model, such as ``input_ids [batch, token]``.
        ids: id of each row's prompt.
        mask: True at real tokens.
        positions: position id of each token, counted from each row's first real token.
        roles: :class:`Role` of each token.
        choices: first token of each answer choice; −1 where a row has fewer.
        target: index of the true choice; −1 where unknown.
    """

    inputs: Mapping[str, Tensor]
    ids: tuple[str, ...]
    mask: Bool[Tensor, "batch token"] | None = None
    positions: Int[Tensor, "batch token"] | None = None
    roles: Int[Tensor, "batch token"] | None = None
    choices: Int[Tensor, "batch choice"] | None = None
    target: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: Bool[Tensor, " batch"]) -> Self:
        """The rows where ``keep`` is true, padded as they were."""
        rows = keep.nonzero()[:, 0].tolist()
        fields: dict[str, Any] = {
            name: value[keep.to(value.device)] for name, value in self._tensors().items()
        }
        inputs = {name: value[keep.to(value.device)] for name, value in self.inputs.items()}

        return replace(self, inputs=inputs, ids=tuple(self.ids[row] for row in rows), **fields)

    def alone(self, row: int) -> Self:
        """One row as a batch of its own, without its padding."""
        keep = torch.zeros(len(self), dtype=torch.bool)
        keep[row] = True
        batch = self.select(keep)
        if batch.mask is None:
            return batch
        real = slice(-int(batch.mask.sum()), None)
        tokens = {
            name: value[:, real]
            for name in ("mask", "positions", "roles")
            if (value := getattr(batch, name)) is not None
        }
        inputs = {name: value[:, real] for name, value in batch.inputs.items()}

        return replace(batch, inputs=inputs, **tokens)

    def repeat(self, count: int) -> Self:
        """The whole batch ``count`` times, one copy after the other.

        The first copy keeps its ids; in copy ``k`` they end in ``#k``. So edits of each copy can
        be told apart, and many pairs of a prompt and an edit run in one pass.

        Raises:
            BadValue: fewer than one copy.
        """
        check_at_least("count", count, 1)
        ids = [f"{name}#{copy}" if copy else name for copy in range(count) for name in self.ids]
        fields: dict[str, Any] = {
            name: torch.cat([value] * count) for name, value in self._tensors().items()
        }
        inputs = {name: torch.cat([value] * count) for name, value in self.inputs.items()}

        return replace(self, inputs=inputs, ids=tuple(ids), **fields)

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on ``device``."""
        fields: dict[str, Any] = {
            name: value.to(device) for name, value in self._tensors().items()
        }
        inputs = {name: value.to(device) for name, value in self.inputs.items()}

        return replace(self, inputs=inputs, **fields)

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors beside the inputs, by field."""
        tensors: dict[str, Tensor] = {}
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None:
                tensors[name] = value

        return tensors


@dataclass(frozen=True)
class Encoded:
    """One prompt as tokens.

    Attributes:
        id: id of the prompt.
        tokens: token ids, without padding.
        roles: :class:`Role` of each token.
        choices: first token of each answer choice; empty where there are none.
        target: index of the true choice; −1 where unknown.
    """

    id: str
    tokens: tuple[int, ...]
    roles: tuple[int, ...]
    choices: tuple[int, ...] = ()
    target: int = -1

    def __len__(self) -> int:
        return len(self.tokens)


def encode(
    prompts: Prompts, tokenizer: Any, *, context_length: int | None = None
) -> list[Encoded]:
    """Tokens of each prompt, in the order given.

    A ``prompt`` gets the tokenizer's special tokens (except those at the end, where the answer
    follows), ``messages`` get the chat template with its generation prompt, and a ``response`` is
    tokenised as the text continues. The first token of a choice is the one that follows the
    prompt's last character.

    Args:
        prompts: what to encode.
        tokenizer: a Hugging Face tokenizer.
        context_length: the longest sequence of tokens that the model reads.

    Raises:
        BadInput: there is no tokenizer, a prompt has no tokens or too many, its choices begin
            with the same token, or the chat template refuses it.
    """
    if tokenizer is None:
        raise BadInput(
            "text needs a tokenizer, and this model has none",
            mend="Save one beside the weights, or give arrays",
        )
    plain, chats = _present(prompts, "prompt"), _present(prompts, "messages")
    heads = _encode_plain(plain, tokenizer) + _encode_chats(chats, prompts.places, tokenizer)
    texts = {head.row: head.text for head in heads}
    responses = _responses(_present(prompts, "response"), texts, tokenizer)
    choices = _first_tokens(_present(prompts, "choices"), texts, prompts, tokenizer)
    targets = _present(prompts, "target")

    encoded = []
    for i, _, tokens, roles in sorted(heads):
        response = responses.get(i, ())
        row = Encoded(
            prompts.ids[i],
            (*tokens, *response),
            (*roles, *[int(Role.RESPONSE)] * len(response)),
            choices.get(i, ()),
            int(targets.get(i, -1)),
        )
        _check_length(row, prompts.places[i], context_length)
        encoded.append(row)

    return encoded


def pack(
    prompts: Prompts | TensorPrompts,
    tokenizer: Any = None,
    *,
    token_budget: int = 2048,
    context_length: int | None = None,
    rows: int = 256,
) -> list[Batch]:
    """Batches that hold every prompt once, similar lengths together, the longest first.

    The composition depends on the prompts alone, not on their order: they are sorted by length
    and id, and a batch is filled while its longest row times its number of rows stays within
    the budget. A prompt longer than the budget makes a batch of its own.

    Args:
        prompts: what to pack.
        tokenizer: a Hugging Face tokenizer; not needed for arrays.
        token_budget: most tokens of a batch, padding included.
        context_length: the longest sequence of tokens that the model reads.
        rows: most rows of a batch of arrays.

    Raises:
        BadInput: a prompt cannot be encoded, see :func:`encode`.
        BadValue: the budget is not positive.
    """
    if token_budget < 1 or rows < 1:
        raise BadValue(
            f"a batch of {token_budget} tokens or {rows} rows holds nothing", where="token_budget"
        )
    if isinstance(prompts, TensorPrompts):
        return _pack_arrays(prompts, rows)

    encoded = encode(prompts, tokenizer, context_length=context_length)
    pad = next(
        (
            token
            for name in ("pad_token_id", "eos_token_id")
            if isinstance(token := getattr(tokenizer, name, None), int)
        ),
        0,
    )

    return [_batch(group, pad) for group in _groups(encoded, token_budget)]


class _Head(NamedTuple):
    """What a model reads of a prompt before the response: its text, tokens and their roles."""

    row: int
    text: str
    tokens: list[int]
    roles: list[int]


def _encode_plain(texts: Mapping[int, str], tokenizer: Any) -> list[_Head]:
    """Tokens of texts, given by row; special tokens at the end are dropped."""
    if not texts:
        return []

    encoding = tokenizer(list(texts.values()), return_special_tokens_mask=True, verbose=False)
    heads = []
    for (row, text), tokens, special in zip(
        texts.items(), encoding["input_ids"], encoding["special_tokens_mask"], strict=True
    ):
        end = len(tokens)
        while end and special[end - 1] and not all(special):
            end -= 1
        roles = [int(Role.TEMPLATE if mark else Role.PROMPT) for mark in special[:end]]
        heads.append(_Head(row, text, list(tokens[:end]), roles))

    return heads


def _encode_chats(chats: Mapping[int, Any], places: Sequence[str], tokenizer: Any) -> list[_Head]:
    """Tokens of chats, given by row; those that overlap a message's content are the prompt's."""
    if not chats:
        return []

    texts = [render(chat, tokenizer, places[row]) for row, chat in chats.items()]
    fast = getattr(tokenizer, "is_fast", False)
    encoding = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False
    )
    heads = []
    for number, (row, chat) in enumerate(chats.items()):
        text, tokens = texts[number], list(encoding["input_ids"][number])
        spans = content_spans(chat, text, tokenizer)
        if fast:
            offsets = encoding["offset_mapping"][number]
        else:
            offsets = _slow_offsets(text, spans, len(tokens), tokenizer)
        heads.append(_Head(row, text, tokens, _roles(offsets, spans)))

    return heads


def _roles(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    roles = [int(Role.TEMPLATE)] * len(offsets)
    at = 0
    for i, (start, end) in enumerate(offsets):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and max(start, spans[at][0]) < min(end, spans[at][1]):
            roles[i] = int(Role.PROMPT)

    return roles


def _slow_offsets(
    text: str, spans: Sequence[tuple[int, int]], count: int, tokenizer: Any
) -> list[tuple[int, int]]:
    """Offsets exact only at the ends of spans, from the token counts of the text's prefixes."""
    edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
    offsets: list[tuple[int, int]] = []
    for start, end in zip(edges, edges[1:], strict=False):
        until = len(tokenizer(text[:end], add_special_tokens=False)["input_ids"])
        until = count if end == len(text) else until
        offsets += [(start, end)] * (until - len(offsets))

    return offsets[:count]


def _responses(
    responses: Mapping[int, str], texts: Mapping[int, str], tokenizer: Any
) -> dict[int, tuple[int, ...]]:
    """Tokens of each response, by row, as they continue the text."""
    if not responses:
        return {}
    pairs = [(texts[row][-1:], response) for row, response in responses.items()]

    return dict(zip(responses, _continuations(pairs, tokenizer), strict=True))


def _first_tokens(
    choices: Mapping[int, Sequence[str]],
    texts: Mapping[int, str],
    prompts: Prompts,
    tokenizer: Any,
) -> dict[int, tuple[int, ...]]:
    """First token of each choice, by row, as it continues the text."""
    if not choices:
        return {}
    pairs = {
        (texts[row][-1:], choice): None for row, options in choices.items() for choice in options
    }
    first = dict(zip(pairs, _continuations(list(pairs), tokenizer), strict=True))

    firsts: dict[int, tuple[int, ...]] = {}
    for row, options in choices.items():
        tokens = tuple(first[texts[row][-1:], choice][0] for choice in options)
        if len(set(tokens)) < len(tokens):
            same = [c for c, t in zip(options, tokens, strict=True) if tokens.count(t) > 1]
            raise BadInput(
                f"choices {same[0]!r} and {same[1]!r} of prompt {prompts.ids[row]!r} begin with "
                "the same token",
                where=prompts.places[row],
                mend="Choose answers whose first tokens differ",
            )
        firsts[row] = tokens

    return firsts


def _continuations(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[tuple[int, ...]]:
    """Tokens of each text as it follows an anchor (the last character before it).

    Where the two would merge into one token, the text is encoded as it follows a line break, and
    failing that by itself.
    """
    results: list[tuple[int, ...]] = []
    for (anchor, text), tokens in zip(pairs, _joined(pairs, tokenizer), strict=True):
        if tokens is None:
            tokens = next(_joined([("\n", text)], tokenizer))
        if tokens is None:
            tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise BadInput(f"{text!r} after {anchor!r} has no tokens", mend="Give a longer text")
        results.append(tokens)

    return results


def _joined(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> Iterator[tuple[int, ...] | None]:
    if not pairs:
        return

    anchors = list(dict.fromkeys(anchor for anchor, _ in pairs))
    alone = dict(zip(anchors, _bare(anchors, tokenizer), strict=True))
    both = _bare([anchor + text for anchor, text in pairs], tokenizer)
    for (anchor, _), tokens in zip(pairs, both, strict=True):
        head = alone[anchor]
        yield tuple(tokens[len(head) :]) if tokens[: len(head)] == head else None


def _bare(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    encoding: Mapping[str, list[list[int]]] = tokenizer(
        list(texts), add_special_tokens=False, verbose=False
    )

    return [list(tokens) for tokens in encoding["input_ids"]]


def _present(prompts: Prompts, column: str) -> dict[int, Any]:
    """Values of a column by row number, where there are any."""
    if column not in prompts:
        return {}

    return {i: value for i, value in enumerate(prompts[column]) if value is not None}


def _check_length(row: Encoded, place: str, context_length: int | None) -> None:
    if not row.tokens:
        raise BadInput(f"prompt {row.id!r} has no tokens", where=place, mend="Give it a text")
    if context_length is not None and len(row) > context_length:
        raise BadInput(
            f"prompt {row.id!r} has {len(row)} tokens, but the model reads {context_length}",
            where=place,
            mend="Shorten it or leave it out",
        )


def _groups(encoded: Sequence[Encoded], token_budget: int) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for row in sorted(encoded, key=lambda row: (-len(row), row.id)):
        if group and len(group[0]) * (len(group) + 1) > token_budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _batch(group: Sequence[Encoded], pad: int) -> Batch:
    tokens = _padded([row.tokens for row in group], pad)
    roles = _padded([row.roles for row in group], int(Role.PADDING))
    mask = roles != int(Role.PADDING)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    choices = [row.choices for row in group]
    targets = torch.tensor([row.target for row in group])

    return Batch(
        inputs={"input_ids": tokens},
        ids=tuple(row.id for row in group),
        mask=mask,
        positions=positions,
        roles=roles,
        choices=_padded(choices, -1, left=False) if any(choices) else None,
        target=targets if bool((targets >= 0).any()) else None,
    )


def _padded(
    rows: Sequence[Sequence[int]], fill: int, *, left: bool = True
) -> Int[Tensor, "row column"]:
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), fill, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        start = width - len(row) if left else 0
        line[start : start + len(row)] = row

    return torch.from_numpy(padded)


def _pack_arrays(prompts: TensorPrompts, rows: int) -> list[Batch]:
    order = sorted(range(len(prompts)), key=lambda i: prompts.ids[i])
    batches = []
    for start in range(0, len(order), rows):
        part = prompts.take(order[start : start + rows])
        target = None
        if "target" in part:
            target = torch.tensor([-1 if t is None else t for t in part["target"]])
        batches.append(Batch(inputs=part.arrays, ids=part.ids, target=target))

    return batches
