"""The one pass over prompts: batch by batch, or shard by shard into memory or a folder.

The unit of recorded work is a shard: fixed prompts, packed in a fixed way. So the same prompts,
model and packing give the same rows in memory and in a folder, from one process or from many,
and also after a kill.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from offkey.data import Batch, Prompts, TensorPrompts, pack
from offkey.errors import BadInput, BadValue, check
from offkey.models import Model, Reading
from offkey.passes.plan import Plan
from offkey.storage import ShardFolder

__all__ = [
    "SHARD_SIZE",
    "Extract",
    "RowRecorder",
    "Rows",
    "ShardRows",
    "World",
    "budget_for",
    "progress",
    "readings",
]

SHARD_SIZE = 256
CPU_BUDGET, ACCELERATOR_BUDGET = 1024, 16384
ROW_TOKENS = 8
"""How many tokens a row of arrays counts as, since it has none."""

Extract = Callable[[Reading], Mapping[str, Tensor]]
"""Turns a reading into named rows ``[batch, d]``."""


def readings(
    model: Model, prompts: Prompts | TensorPrompts, plan: Plan, *, token_budget: int | None = None
) -> Iterator[Reading]:
    """Reads prompts batch by batch, in packing order; nothing is kept.

    A plan that asks for nothing inside the model does not run it.

    Args:
        model: the model that is read.
        prompts: what it is given.
        plan: what is read.
        token_budget: tokens a batch, padding included; chosen by the device if left out.

    Raises:
        BadInput: a prompt lacks a column that the plan needs.
    """
    plan.check(prompts)
    for batch in _batches(model, prompts, token_budget or budget_for(model.device)):
        batch = batch.to(model.device)
        yield model.read(batch, **plan.request) if plan.runs_model else Reading(batch, {})


def budget_for(device: torch.device) -> int:
    """Tokens a batch: few enough to stay in a processor's cache, or enough to fill a card."""
    return CPU_BUDGET if device.type == "cpu" else ACCELERATOR_BUDGET


@dataclass(frozen=True)
class ShardRows:
    """Rows of one shard.

    Attributes:
        ids: ids of the prompts, in their order.
        values: float32 ``[n, d]`` for each name, read when asked for.
        token_budget: tokens a batch that fitted; null where the rows were recorded before.
    """

    ids: tuple[str, ...]
    values: Mapping[str, Tensor]
    token_budget: int | None = None

    def __getitem__(self, name: str) -> Float[Tensor, "n d"]:
        return self.values[name].float()


class ShardStore(Protocol):
    """Where shards lie: a :class:`offkey.storage.ShardFolder`, or memory."""

    def read(self, number: int) -> Mapping[str, Tensor]:
        """The tensors of a shard by name."""


class MemoryShards:
    """Shards that are kept in memory."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        self._shards = shards

    def read(self, number: int) -> Mapping[str, Tensor]:
        """The tensors of a shard by name."""
        return self._shards[number]


@dataclass(frozen=True)
class Rows:
    """Rows of every prompt of a pass; of those in a folder, one shard at a time is in memory.

    Attributes:
        store: where the shards lie.
        ids: ids of all prompts, in their order.
        shard_size: prompts in each shard but the last.
    """

    store: ShardStore
    ids: tuple[str, ...]
    shard_size: int

    @classmethod
    def in_memory(cls, shards: Sequence[ShardRows], shard_size: int) -> "Rows":
        """Rows of shards that are in memory."""
        ids = tuple(id for shard in shards for id in shard.ids)

        return Rows(MemoryShards([shard.values for shard in shards]), ids, shard_size)

    def __len__(self) -> int:
        return len(self.ids)

    def shards(self) -> Iterator[ShardRows]:
        """Every shard, in order."""
        for number, start in enumerate(range(0, len(self.ids), self.shard_size)):
            ids = self.ids[start : start + self.shard_size]
            yield ShardRows(ids, self.store.read(number))

    def column(self, name: str) -> Float[Tensor, "n d"]:
        """All rows of one name, in memory.

        Raises:
            BadValue: the pass did not record that name.
        """
        shards = list(self.shards())
        is_recorded = all(name in shard.values for shard in shards)
        check(is_recorded, "the pass did not record it", where=f"rows {name}")

        return torch.cat([shard[name] for shard in shards])


@dataclass(frozen=True)
class World:
    """A process's place among those that share a pass.

    Workers do not talk to each other: worker ``r`` of ``W`` takes shards ``r, r + W, …`` and
    leaves them as files, and the first one waits for the files. So torchrun, a Slurm array and
    two shells on one disk serve alike.

    Attributes:
        rank: number of this process, from 0.
        size: how many processes there are.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        check(
            0 <= self.rank < self.size,
            f"rank {self.rank} of {self.size} processes does not exist",
            where="RANK, WORLD_SIZE",
        )

    @property
    def is_main(self) -> bool:
        """Whether this process gathers the results."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> Self:
        """Reads ``RANK`` and ``WORLD_SIZE``, as torchrun sets them; alone without them."""
        try:
            return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        except ValueError as error:
            raise BadValue("not a number", where="RANK, WORLD_SIZE") from error


@dataclass(frozen=True)
class RowRecorder:
    """Runs a model over prompts once and keeps the rows that are made of each reading.

    Out of memory, a shard starts again at half the token budget.

    Attributes:
        model: the model that is read.
        plan: what is read.
        extract: makes named rows of a reading, one for each prompt of its batch.
        shard_size: prompts a shard.
        token_budget: tokens a batch, padding included; chosen by the device if left out.
    """

    model: Model
    plan: Plan
    extract: Extract
    shard_size: int = SHARD_SIZE
    token_budget: int | None = None

    def __post_init__(self) -> None:
        is_positive = self.shard_size >= 1 and self.budget >= 1
        check(is_positive, "must be at least 1", where="shard_size, token_budget")

    @property
    def budget(self) -> int:
        """Tokens a batch, before any lack of memory."""
        return budget_for(self.model.device) if self.token_budget is None else self.token_budget

    def parts(self, prompts: Prompts | TensorPrompts) -> Iterator[Prompts | TensorPrompts]:
        """The prompts of one shard after another.

        Raises:
            BadInput: a prompt lacks a column that the plan needs.
        """
        self.plan.check(prompts)
        for start in range(0, len(prompts), self.shard_size):
            yield self._part(prompts, start)

    def shard(self, prompts: Prompts | TensorPrompts) -> ShardRows:
        """Records the rows of one shard, in the order of its prompts."""
        budget, request = self.budget, self.plan.request
        while True:
            rows = _OrderedRows(prompts.ids)
            try:
                for batch in _batches(self.model, prompts, budget):
                    batch = batch.to(self.model.device)
                    if self.plan.runs_model:
                        reading = self.model.read(batch, **request)
                    else:
                        reading = Reading(batch, {})
                    rows.put(batch.ids, self.extract(reading))
                return ShardRows(tuple(prompts.ids), rows.compacted(), budget)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or budget == 1:
                    raise
            budget //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def to_folder(
        self,
        prompts: Prompts | TensorPrompts,
        folder: Path,
        config: Mapping[str, Any],
        *,
        world: World | None = None,
        quiet: bool = False,
        wait: bool | None = None,
    ) -> Rows:
        """Records shards as files; one that lies there whole is not recorded again.

        A killed pass loses at most the shard in hand, and any number of workers leave the same
        bytes. The token budget that fitted is kept with each shard.

        Args:
            prompts: what the model is given.
            folder: where the shards go.
            config: everything that shapes the rows besides the model, the prompts and the
                packing; a folder that was filled with another configuration is refused.
            world: which worker this is; read from the environment if left out.
            quiet: show no progress.
            wait: whether to wait for the shards of other workers; the first one does if left out.

        Raises:
            BadInput: a prompt lacks a column that the plan needs.
            Mismatch: the folder holds a pass of another configuration.
            Damaged: a shard in the folder was truncated or edited.
        """
        self.plan.check(prompts)
        world = world or World.from_environment()
        settings = {
            "model": self.model.fingerprint,
            "prompts": prompts.digest,
            "shard_size": self.shard_size,
            "token_budget": self.budget,
        }
        store = ShardFolder(folder, {**config, **settings})
        missing = store.missing(-(-len(prompts) // self.shard_size))
        mine = [number for number in missing if number % world.size == world.rank]
        with progress(f"{len(prompts)} prompts", len(mine), quiet=quiet) as advance:
            for number in mine:
                shard = self.shard(self._part(prompts, number * self.shard_size))
                store.write(number, shard.values, {"token_budget": shard.token_budget})
                advance()
        if world.is_main if wait is None else wait:
            _wait_for(store, [number for number in missing if number not in mine])

        return Rows(store, tuple(prompts.ids), self.shard_size)

    def _part(self, prompts: Prompts | TensorPrompts, start: int) -> Prompts | TensorPrompts:
        return prompts.take(range(start, min(start + self.shard_size, len(prompts))))


class _OrderedRows:
    """Rows of a shard, which batches fill in any order."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._place = {id: row for row, id in enumerate(ids)}
        self._rows: dict[str, Tensor] = {}

    def put(self, ids: Sequence[str], rows: Mapping[str, Tensor]) -> None:
        """Puts a batch's rows where its prompts stand."""
        where = torch.tensor([self._place[id] for id in ids])
        for name, batch_rows in rows.items():
            width = batch_rows.shape[1:]
            if name not in self._rows:
                empty = torch.empty((len(self._place), *width), dtype=batch_rows.dtype)
                self._rows[name] = empty
            kept = self._rows[name]
            if kept.shape[1:] != width:
                raise BadInput(
                    f"rows of {tuple(width)} after rows of {tuple(kept.shape[1:])}",
                    where=f"feature {name}",
                    mend="A feature must give vectors of one length",
                )
            kept[where] = batch_rows.cpu()

    def compacted(self) -> dict[str, Tensor]:
        """The rows in bfloat16 where that loses nothing, as for a bfloat16 model's values."""
        compacted = {}
        for name, rows in self._rows.items():
            small = rows.to(torch.bfloat16)
            compacted[name] = small if torch.equal(small.to(rows.dtype), rows) else rows

        return compacted


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Shows ``what`` with the share of ``total`` that is done, where somebody watches.

    Args:
        what: what is being done.
        total: number of steps.
        quiet: show nothing.

    Yields:
        A function to be called after each step.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal or not total:
        yield lambda: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _batches(model: Model, prompts: Prompts | TensorPrompts, token_budget: int) -> list[Batch]:
    return pack(
        prompts,
        model.tokenizer,
        token_budget=token_budget,
        context_length=model.context_length,
        rows=max(1, token_budget // ROW_TOKENS),
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "not enough memory" in str(error) or "out of memory" in str(error).lower()
    )


def _wait_for(store: ShardFolder, numbers: Sequence[int], *, seconds: float = 0.1) -> None:
    """Waits for the shards of other workers; their launcher ends this process if one dies."""
    for number in numbers:
        while not store.file(number).exists():
            time.sleep(seconds)
