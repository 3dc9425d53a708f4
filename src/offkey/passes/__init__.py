"""The one pass over prompts: plan, shards, resume, out-of-memory, progress, many workers.

A plan says what must be read; :func:`record` runs the model over prompts once and leaves the rows
that features made of each reading in shards on disk. The same prompts, model and packing give the
same bytes, on one process or on many, also after a kill.
"""

from offkey.passes._plan import Plan
from offkey.passes._progress import progress
from offkey.passes._rows import Rows, ShardRows
from offkey.passes._run import SHARD_SIZE, Extract, budget_for, readings, record
from offkey.passes._world import World
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
    "Extract",
    "Plan",
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
    "record",
]
