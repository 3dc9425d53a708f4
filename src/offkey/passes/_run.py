"""The one pass over prompts: shard by shard, resumable, on one process or many."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offkey.data import Batch, Prompts, TensorPrompts, pack
from offkey.errors import BadInput, BadValue
from offkey.models import Model, Reading
from offkey.passes._plan import Plan
from offkey.passes._progress import progress
from offkey.passes._rows import Rows, compact
from offkey.passes._world import World
from offkey.storage import ShardFolder

__all__ = ["SHARD_SIZE", "Extract", "budget_for", "readings", "record"]

SHARD_SIZE = 256
CPU_BUDGET, ACCELERATOR_BUDGET = 1024, 16384
ROW_TOKENS = 8
"""What a row of arrays counts as, which has no tokens."""

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
    token_budget = token_budget or budget_for(model.device)
    for batch in pack(
        prompts,
        model.tokenizer,
        token_budget=token_budget,
        context_length=model.context_length,
        rows=max(1, token_budget // ROW_TOKENS),
    ):
        yield _read(model, batch, plan)


def record(
    model: Model,
    prompts: Prompts | TensorPrompts,
    plan: Plan,
    extract: Extract,
    folder: Path,
    *,
    config: Mapping[str, Any],
    shard_size: int = SHARD_SIZE,
    token_budget: int | None = None,
    world: World | None = None,
    quiet: bool = False,
) -> Rows:
    """Runs the model over prompts once and keeps what ``extract`` makes of each reading.

    The unit of work is a shard: fixed prompts, packed in a fixed way. One that lies whole under
    its final name is not done again, so a killed pass loses at most the shard in hand, and any
    number of workers leave the same bytes. Out of memory, a shard starts again at half the
    token budget, which its file records.

    Args:
        model: the model that is read.
        prompts: what it is given.
        plan: what is read.
        extract: makes named rows of a reading, one per prompt of its batch.
        folder: where the shards go.
        config: everything that shapes the rows besides the model, the prompts and the packing;
            a folder that was filled with another configuration is refused.
        shard_size: prompts a shard.
        token_budget: tokens a batch, padding included; chosen by the device if left out.
        world: which worker this is; read from the environment if left out.
        quiet: show no progress.

    Raises:
        BadInput: a prompt lacks a column that the plan needs.
        Mismatch: the folder holds a pass of another configuration.
        Damaged: a shard in the folder was truncated or edited.
    """
    plan.check(prompts)
    token_budget = budget_for(model.device) if token_budget is None else token_budget
    if shard_size < 1 or token_budget < 1:
        raise BadValue("must be at least 1", where="shard_size, token_budget")
    world = world or World.from_environment()
    shards = ShardFolder(
        folder,
        {
            **config,
            "model": model.fingerprint,
            "prompts": prompts.digest,
            "shard_size": shard_size,
            "token_budget": token_budget,
        },
    )
    starts = range(0, len(prompts), shard_size)
    missing = shards.missing(len(starts))
    mine = [n for n in missing if n % world.size == world.rank]
    with progress(f"{len(prompts)} prompts", len(mine), quiet=quiet) as advance:
        for number in mine:
            start = starts[number]
            part = prompts.take(range(start, min(start + shard_size, len(prompts))))
            tensors, used = _shard(model, part, plan, extract, token_budget)
            shards.write(number, tensors, {"token_budget": used})
            advance()
    if world.is_main:
        _wait(shards, [n for n in missing if n not in mine])

    return Rows(shards, tuple(prompts.ids), shard_size)


def budget_for(device: torch.device) -> int:
    """Tokens a batch: few enough to stay in a processor's cache, or enough to fill a card."""
    return CPU_BUDGET if device.type == "cpu" else ACCELERATOR_BUDGET


def _shard(
    model: Model,
    prompts: Prompts | TensorPrompts,
    plan: Plan,
    extract: Extract,
    token_budget: int,
) -> tuple[dict[str, Tensor], int]:
    """Rows of one shard in the order of its prompts, and the token budget that fitted."""
    while True:
        try:
            return _rows(model, prompts, plan, extract, token_budget), token_budget
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error) or token_budget == 1:
                raise
        token_budget //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rows(
    model: Model,
    prompts: Prompts | TensorPrompts,
    plan: Plan,
    extract: Extract,
    token_budget: int,
) -> dict[str, Tensor]:
    place = {id: row for row, id in enumerate(prompts.ids)}
    out: dict[str, Tensor] = {}
    for reading in readings(model, prompts, plan, token_budget=token_budget):
        where = torch.tensor([place[id] for id in reading.batch.ids])
        for name, rows in extract(reading).items():
            if name not in out:
                out[name] = torch.empty((len(prompts), *rows.shape[1:]), dtype=rows.dtype)
            if rows.shape[1:] != out[name].shape[1:]:
                raise BadInput(
                    f"rows of {tuple(rows.shape[1:])} after rows of {tuple(out[name].shape[1:])}",
                    where=f"feature {name}",
                    mend="A feature must give vectors of one length",
                )
            out[name][where] = rows.cpu()

    return {name: compact(rows) for name, rows in out.items()}


def _read(model: Model, batch: Batch, plan: Plan) -> Reading:
    batch = batch.to(model.device)
    if not (plan.reads or plan.gradients or plan.logits or plan.metric):
        return Reading(batch, {})

    return model.read(
        batch,
        plan.reads,
        positions=plan.positions,
        metric=plan.metric,
        gradients=plan.gradients,
        logits=plan.logits,
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "not enough memory" in str(error) or "out of memory" in str(error).lower()
    )


def _wait(shards: ShardFolder, numbers: Sequence[int], *, seconds: float = 0.1) -> None:
    """Waits for the shards of other workers; their launcher ends this process if one dies."""
    for number in numbers:
        while not shards.file(number).exists():
            time.sleep(seconds)
