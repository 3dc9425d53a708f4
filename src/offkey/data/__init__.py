"""Prompts and batches: read and check, template and tokenise, split and pair, pack by length.

Prompts never change. Content decides what they are: ids and hashes are the same from JSONL, CSV,
Parquet or memory, and a batch's composition depends on its prompts alone.
"""

from offkey.data.batch import Batch, Encoded, Role, encode, pack
from offkey.data.pairs import PromptPairs
from offkey.data.prompts import Prompts, TensorPrompts, check_disjoint, split_by_source
from offkey.data.reading import read_prompts

__all__ = [
    "Batch",
    "Encoded",
    "PromptPairs",
    "Prompts",
    "Role",
    "TensorPrompts",
    "check_disjoint",
    "encode",
    "pack",
    "read_prompts",
    "split_by_source",
]
