"""The one pass over prompts: plan, shards, resume, out-of-memory, progress, many workers.

A plan says what must be read; a :class:`RowRecorder` runs the model over prompts once and keeps
the rows that features make of each reading, in memory or in shards on disk. The same prompts,
model and packing give the same rows, in one process or in many, also after a kill.

An :class:`ActivationStream` gives what a model computes at sites while it reads texts, block by
block.
"""

from offkey.passes.plan import Plan
from offkey.passes.recording import (
    SHARD_SIZE,
    RowRecorder,
    Rows,
    ShardRows,
    World,
    budget_for,
    progress,
    readings,
)
from offkey.passes.stream import (
    ActivationStream,
    Blocks,
    ShuffleBuffer,
    SiteBlocks,
    TensorBlocks,
    Windows,
)

__all__ = [
    "SHARD_SIZE",
    "ActivationStream",
    "Blocks",
    "Plan",
    "RowRecorder",
    "Rows",
    "ShardRows",
    "ShuffleBuffer",
    "SiteBlocks",
    "TensorBlocks",
    "Windows",
    "World",
    "budget_for",
    "progress",
    "readings",
]
