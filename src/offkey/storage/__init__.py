"""What is on disk: run folders, shards, artefacts, tables, records; written whole or not at all.

Knows plain values and tensors only. Nothing is ever unpickled, and what was truncated or edited
is refused when it is read.
"""

from offkey.storage.artefacts import (
    flatten,
    load_artefact,
    load_state,
    save_artefact,
    save_state,
    unflatten,
)
from offkey.storage.files import (
    aside,
    make_folder,
    read_json,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)
from offkey.storage.records import Record, first_difference, read_record
from offkey.storage.runs import (
    RunFolder,
    RunRecord,
    machine,
    read_run,
    write_results,
)
from offkey.storage.shards import ShardFolder
from offkey.storage.stateful import Stateful
from offkey.storage.tables import read_table, write_table

__all__ = [
    "Record",
    "RunFolder",
    "RunRecord",
    "ShardFolder",
    "Stateful",
    "aside",
    "first_difference",
    "flatten",
    "load_artefact",
    "load_state",
    "machine",
    "make_folder",
    "read_json",
    "read_record",
    "read_run",
    "read_table",
    "save_artefact",
    "save_state",
    "sha256_file",
    "sha256_json",
    "unflatten",
    "write_bytes",
    "write_json",
    "write_results",
    "write_table",
    "write_tensors",
    "write_text",
]
