"""Edits: what to change at a site while the model runs, and how that is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadValue, Mismatch, OffkeyError
from offkey.models.sites import HEAD_KINDS, Site

__all__ = ["Edit", "PassContext", "edited", "row_positions"]

BY_HAND = "Run the model through Model.read or Model.generate"

TokenPositions = tuple[int, ...] | Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Edit:
    r"""One change of the values at one site; a sequence is applied in list order.

    ``replace`` puts ``value`` there, ``add`` adds it, ``scale`` multiplies by it, ``project_out``
    removes the component along each row of ``value`` (:math:`x - \hat v \hat v^\top x`; of several
    rows, the whole span). A function gets the values ``[batch, token, *site]`` and the batch, with
    ``reads`` also what was read, and returns the new values. What a function runs by itself is run
    without the edits around it.

    Attributes:
        site: the place, or its name.
        op: what is done.
        value: broadcasts to ``[batch, *site]``; with ``ids``, row ``i`` belongs to ``ids[i]``. Or
            ``[batch, k, *site]``: one for each of ``k`` positions, else for the last ``k`` tokens.
            In a pass that keeps its graph, gradients reach it.
        positions: tokens that are edited: ``"last"``, ``"all"``, or numbers: −1 is the last token
            of a row, 0 its first. By prompt id, where they differ; prompts that are not named are
            not edited. In generation ``"prompt"``, ``"new"``, ``"all"``, or numbers from 0.
        ids: prompts that are edited; ``None`` means every one.
        heads: heads that are edited, at sites with a head axis; ``None`` means every one.
        reads: sites, earlier in the pass, that the function or the condition looks at:
            ``[batch, token, *site]`` each, of the tokens in hand.
        condition: given what was read and the batch, which rows ``[batch]``, or which tokens
            ``[batch, token]``, are edited.
        schedule: in generation, the share of the change that is made at each new token, by its
            number from 0; prompt tokens have negative numbers, −1 the last.
    """

    site: Site | str
    op: Literal["replace", "add", "scale", "project_out"] | Callable[..., Tensor]
    value: Tensor | float | None = None
    positions: Literal["last", "all", "prompt", "new"] | TokenPositions = "all"
    ids: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    reads: tuple[Site | str, ...] = ()
    condition: Callable[[Mapping[Site, Tensor], Batch], Bool[Tensor, "..."]] | None = None
    schedule: Callable[[int], float] | None = None

    @property
    def carries_gradient(self) -> bool:
        """Whether gradients are to reach its value."""
        return isinstance(self.value, Tensor) and self.value.requires_grad


@dataclass(frozen=True)
class PassContext:
    """What edits know of the pass under way.

    The tensor at a site covers the *last* tokens of each row so far, however many it has: one
    token in cached generation, all of them at keys and values, a few where only some logits are
    computed.

    Attributes:
        batch: what the model was given.
        width: how many tokens a row has in this pass, padding included; ``None`` without tokens.
        total: how many it has with those of earlier passes, which are cached.
        real: which of all these are no padding.
        prompt: in generation, how many real tokens of each row are its prompt.
        values: what was read in this pass, for edits that ask for it.
    """

    batch: Batch
    width: int | None
    total: int = 0
    real: Bool[Tensor, "batch total"] | None = None
    prompt: Int[Tensor, " batch"] | None = None
    values: dict[Site, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, *, rows: Batch | None = None, prompt: Tensor | None = None) -> Self:
        """The context of a pass over a batch.

        Args:
            batch: what runs; its mask also covers tokens that are cached.
            rows: what edits are shown instead, such as the prompts that are being continued.
            prompt: in generation, how many tokens of each row are its prompt.
        """
        if batch.mask is None:
            return cls(rows or batch, None)
        tokens = batch.inputs.get("input_ids", batch.mask)

        return cls(rows or batch, tokens.shape[1], batch.mask.shape[1], batch.mask, prompt)

    @cached_property
    def mask(self) -> Bool[Tensor, "batch total"] | None:
        """Which tokens are no padding; ``None`` where all are real."""
        return None if self.real is None or bool(self.real.all()) else self.real

    @cached_property
    def numbers(self) -> Int[Tensor, "#batch total"]:
        """Number of each token in its row, from 0; negative or arbitrary at padding."""
        if self.mask is None:
            return torch.arange(self.total)[None]
        return self.mask.long().cumsum(1) - 1

    @cached_property
    def lengths(self) -> Int[Tensor, "#batch 1"]:
        """How many real tokens each row has."""
        return self.numbers[:, -1:] + 1


NOWHERE = torch.iinfo(torch.long).min
"""The position of a row that has fewer of them than others."""


def row_positions(positions: TokenPositions, ids: Sequence[str]) -> Int[Tensor, "#batch k"]:
    """Token numbers of each row; one row for all where they are the same."""
    if isinstance(positions, tuple):
        return torch.tensor([positions])
    rows = [tuple(positions.get(name, ())) for name in ids]
    most = max(map(len, rows))

    filled = [(*row, *(NOWHERE,) * (most - len(row))) for row in rows]

    return torch.tensor(filled, dtype=torch.long).view(len(rows), most)


def edited(
    edit: Edit, site: Site, x: Tensor, *, has_tokens: bool, context: PassContext | None
) -> Tensor:
    """The tensor with an edit made, the rest of it bitwise as it was.

    Args:
        edit: what to do.
        site: where this is.
        x: what passes there, ``[batch, token, *site]``, or without a token axis.
        has_tokens: whether it has a token axis.
        context: the pass under way; ``None`` when the model was called by hand.

    Raises:
        BadValue: the edit's value, positions or heads do not fit the site.
        Mismatch: the edit needs the batch, and the model was called by hand.
    """
    return _Editing(edit, site, x, has_tokens, context).result()


@dataclass(frozen=True)
class _Editing:
    """One edit meeting the tensor at its site."""

    edit: Edit
    site: Site
    x: Tensor
    tokens: bool
    context: PassContext | None

    def result(self) -> Tensor:
        chosen = self._chosen()
        new = self._operated()
        if new.shape != self.x.shape:
            raise self._misfit(BadValue, f"the edit makes {tuple(new.shape)} of {self._shape}")
        new = new.to(self.x.dtype)
        if self.edit.schedule is not None:
            new = self._scheduled(new)

        return new if chosen is None else torch.where(chosen, new, self.x)

    def _operated(self) -> Tensor:
        op = self.edit.op
        if not isinstance(op, str):
            return self._called(op)
        if self.edit.value is None:
            raise self._misfit(BadValue, f"the edit {op!r} has no value")
        if op == "project_out":
            return self._projected(torch.as_tensor(self.edit.value))

        value = self._value(torch.as_tensor(self.edit.value))
        try:
            match op:
                case "replace":
                    return value.expand_as(self.x).contiguous()
                case "add":
                    return self.x + value
                case "scale":
                    return self.x * value
                case unknown:
                    raise self._misfit(BadValue, f"no such operation {unknown!r}")
        except RuntimeError:
            given = tuple(value.shape)
            raise self._misfit(BadValue, f"{given} does not broadcast to {self._shape}") from None

    def _called(self, op: Callable[..., Tensor]) -> Tensor:
        if self.context is None:
            raise self._misfit(Mismatch, "a function needs to know the batch", BY_HAND)
        if self.edit.reads:
            return op(self.x, self.context.batch, self._read())
        return op(self.x, self.context.batch)

    def _read(self) -> dict[Site, Tensor]:
        if self.context is None and self.edit.reads:
            raise self._misfit(Mismatch, "what it reads is known only in a pass", BY_HAND)
        values: dict[Site, Tensor] = {} if self.context is None else self.context.values
        late = [site for site in self.edit.reads if site not in values]
        if late:
            raise self._misfit(BadValue, f"{late[0]} does not come before it in the pass")

        return {site: values[site] for site in self.edit.reads if isinstance(site, Site)}

    def _projected(self, directions: Tensor) -> Tensor:
        x = self.x
        if not 1 <= directions.ndim <= 2 or directions.shape[-1] != x.shape[-1]:
            given = tuple(directions.shape)
            raise self._misfit(BadValue, f"directions of shape {given} in width {x.shape[-1]}")
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = directions.reshape(-1, x.shape[-1]).to(x.device, wide)
        basis: Tensor = torch.linalg.qr(rows.T).Q

        along: Tensor = (x.to(wide) @ basis) @ basis.T

        return x - along.to(x.dtype)

    def _scheduled(self, new: Tensor) -> Tensor:
        """Takes the share of the change that each token gets."""
        context, schedule = self.context, self.edit.schedule
        if context is None or context.prompt is None or schedule is None or not self.tokens:
            raise self._misfit(BadValue, "a schedule exists only in generation")
        numbers = context.numbers - context.prompt[:, None].to(context.numbers.device)
        numbers = numbers[:, -self.x.shape[1] :].cpu()
        share_of = {n: float(schedule(n)) for n in set(numbers.flatten().tolist())}
        shares = torch.tensor([[share_of[n] for n in row] for row in numbers.tolist()])
        share = shares.to(self.x.device).view(*shares.shape, *[1] * (self.x.ndim - 2))
        part = (self.x + share * (new - self.x)).to(self.x.dtype)

        return torch.where(share == 0, self.x, torch.where(share == 1, new, part))

    def _value(self, value: Tensor) -> Tensor:
        """The value in a shape that broadcasts, its rows put where their prompts are."""
        value = value.to(self.x.device, self.x.dtype)
        extra = value.ndim - (self.x.ndim - (2 if self.tokens else 1))
        if extra <= 0:
            return value
        if value.shape[0] != 1 or self.edit.ids is not None:
            value = value[self._value_rows(value.shape[0])]
        if extra == 1:
            return value.unsqueeze(1) if self.tokens else value
        if extra == 2 and self.tokens:
            return self._over_tokens(value)

        raise self._misfit(BadValue, f"{tuple(value.shape)} does not broadcast to {self._shape}")

    def _value_rows(self, given: int) -> list[int]:
        ids = self.edit.ids
        if ids is None:
            what = f"the value has {given} rows, and no ids tell which prompts they belong to"
            raise self._misfit(Mismatch, what, "Give the prompts' ids with the edit")
        if given not in (1, len(ids)):
            raise self._misfit(Mismatch, f"the edit has {given} rows for {len(ids)} prompt ids")
        row_of = {name: row if given > 1 else 0 for row, name in enumerate(ids)}

        return [row_of.get(name, 0) for name in self._batch.ids]

    def _over_tokens(self, value: Tensor) -> Tensor:
        """Puts ``[batch, k, *site]`` at the positions listed, or at the last ``k`` tokens."""
        x, positions = self.x, self.edit.positions
        if self.context is not None and self.context.prompt is not None:
            raise self._misfit(BadValue, "a value for each token does not fit generation")
        spread = x.expand(max(len(x), len(value)), *x.shape[1:]).clone()
        if not isinstance(positions, str):
            columns = self._columns(positions)
            most = self._most_positions(positions)
            if value.shape[1] != most:
                what = f"{value.shape[1]} token values for {most} positions"
                raise self._misfit(BadValue, what)
            value = value[:, : columns.shape[1]]  # none of these rows may have as many
            columns = columns.expand(len(spread), -1)
            rows, places = ((columns >= 0) & (columns < x.shape[1])).nonzero(as_tuple=True)
            value = value.expand(len(spread), *value.shape[1:])
            spread[rows, columns[rows, places]] = value[rows, places]
            return spread
        width = min(value.shape[1], x.shape[1])
        if width < x.shape[1] and positions == "all":
            self._check_covered(x.shape[1] - width)
        spread[:, -width:] = value[:, -width:]

        return spread

    def _check_covered(self, missing: int) -> None:
        chosen = self._chosen()
        rows = torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        if chosen is not None:
            rows = rows & chosen.flatten(2).any(-1)
        short = rows[:, :missing].any(1)
        if bool(short.any()):
            name = self._batch.ids[int(short.int().argmax())]
            what = f"the edit has no values for the first tokens of prompt {name}"
            raise self._misfit(Mismatch, what)

    def _chosen(self) -> Bool[Tensor, "..."] | None:
        """What is edited, broadcasting to ``x``; ``None`` where everything is."""
        x = self.x
        masks = []
        if self.edit.ids is not None:
            wanted = set(self.edit.ids)
            rows = torch.tensor([name in wanted for name in self._batch.ids], device=x.device)
            masks.append(rows.view(-1, *[1] * (x.ndim - 1)))
        if self.tokens and (places := self._places()) is not None:
            masks.append(places.view(*places.shape, *[1] * (x.ndim - 2)))
        if self.edit.heads is not None:
            among = torch.zeros(self._n_heads(), dtype=torch.bool, device=x.device)
            among[list(self.edit.heads)] = True
            masks.append(among.view(-1, 1))
        if self.edit.condition is not None:
            masks.append(self._meets(self.edit.condition))
        if not masks:
            return None

        chosen = masks[0]
        for mask in masks[1:]:
            chosen = chosen & mask

        return chosen

    def _meets(self, condition: Callable[..., Tensor]) -> Bool[Tensor, "..."]:
        """Where the condition holds."""
        holds = condition(self._read(), self._batch).to(self.x.device)
        if holds.dtype != torch.bool or holds.ndim not in (1, 2) or len(holds) != len(self.x):
            what = f"the condition gives {holds.dtype} {tuple(holds.shape)} for {self._shape}"
            raise self._misfit(BadValue, what, "Return True or False for each row or token")
        if holds.ndim == 2 and self.tokens:
            holds = holds[:, -self.x.shape[1] :]
            # Keys and values also cover the tokens of earlier passes, which are as they were.
            holds = torch.nn.functional.pad(holds, (self.x.shape[1] - holds.shape[1], 0))

        return holds.view(*holds.shape, *[1] * (self.x.ndim - holds.ndim))

    def _places(self) -> Bool[Tensor, "rows token"] | None:
        """Which tokens are edited; ``None`` where all are."""
        width, context = self.x.shape[1], self.context
        places = self._among(width)
        if context is None or context.mask is None:
            return places
        real = context.mask[:, -width:].to(self.x.device)

        return real if places is None else real & places

    def _among(self, width: int) -> Bool[Tensor, "rows token"] | None:
        positions, context = self.edit.positions, self.context
        if positions == "all":
            return None
        if context is not None and context.prompt is not None:
            return self._among_generated(context, width)
        if positions == "last":
            return torch.arange(width, device=self.x.device)[None] == width - 1
        if not isinstance(positions, str):
            columns = self._columns(positions)
            numbers = torch.arange(width, device=self.x.device)
            return (columns[:, :, None] == numbers).any(1)

        what = f"positions {positions!r} exist only in generation"
        if positions not in ("prompt", "new"):
            what = f"{positions!r} are no positions"
        raise self._misfit(BadValue, what, "Use 'all', 'last' or numbers of tokens")

    def _among_generated(self, context: PassContext, width: int) -> Bool[Tensor, "rows token"]:
        positions, numbers = self.edit.positions, context.numbers[:, -width:].to(self.x.device)
        prompt = context.prompt[:, None].to(self.x.device) if context.prompt is not None else 0
        if positions in ("prompt", "new"):
            return (numbers < prompt) == (positions == "prompt")
        chosen = None if isinstance(positions, str) else self._numbers(positions)
        if chosen is None or bool(((chosen < 0) & (chosen != NOWHERE)).any()):
            what = f"positions {positions!r} do not exist in generation"
            raise self._misfit(BadValue, what, "Use 'prompt', 'new', 'all', or numbers from 0")

        return (chosen[:, :, None].to(numbers.device) == numbers[:, None]).any(1)

    @staticmethod
    def _most_positions(positions: TokenPositions) -> int:
        if isinstance(positions, tuple):
            return len(positions)
        return max(map(len, positions.values()), default=0)

    def _numbers(self, positions: TokenPositions) -> Int[Tensor, "#batch k"]:
        """The positions of each row, as they were given."""
        ids = () if isinstance(positions, tuple) else self._batch.ids
        return row_positions(positions, ids)

    def _columns(self, positions: TokenPositions) -> Int[Tensor, "#batch k"]:
        """Where the positions are along the token axis; outside of it where there are none."""
        numbers, width = self._numbers(positions), self.x.shape[1]
        if self.context is None:
            if bool((numbers >= 0).any()):
                what = "the first token of a row is known only with the batch"
                raise self._misfit(Mismatch, what, BY_HAND)
            return (numbers + width).to(self.x.device)
        from_end = torch.where(numbers < 0, numbers, numbers - self.context.lengths.cpu())
        from_end = torch.where(from_end < 0, from_end, NOWHERE // 2)

        return (from_end + width).to(self.x.device)

    def _n_heads(self) -> int:
        if self.site.kind not in HEAD_KINDS:
            raise self._misfit(BadValue, "the site has no heads")
        count = self.x.shape[2]
        if not all(0 <= head < count for head in self.edit.heads or ()):
            what = f"heads {self.edit.heads} were named"
            raise self._misfit(BadValue, what, f"The site has heads 0-{count - 1}")

        return count

    @property
    def _batch(self) -> Batch:
        if self.context is None:
            raise self._misfit(Mismatch, "an edit of single prompts needs the batch", BY_HAND)
        return self.context.batch

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    def _misfit(self, error: type[OffkeyError], what: str, mend: str = "") -> OffkeyError:
        return error(what, where=f"edit at {self.site}", mend=mend)
