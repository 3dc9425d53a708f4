"""What is on disk: run folders, shards, checksums, atomic writes, safe tensors.

Knows plain dicts and tensors only; nothing is ever unpickled or half-written.
"""

from offkey.storage._artefact import (
    Artefact,
    load_artefact,
    load_state,
    save_artefact,
    save_state,
    sha256_file,
    sha256_json,
)
from offkey.storage._atomic import (
    aside,
    clean_leftovers,
    make_folder,
    write_bytes,
    write_json,
    write_json_once,
    write_parquet,
    write_tensors,
    write_text,
)
from offkey.storage._machine import commit, machine, versions
from offkey.storage._runs import RunFolder, Status
from offkey.storage._settings import first_difference
from offkey.storage._shards import Shard, ShardFolder
from offkey.storage._state import flatten, unflatten
from offkey.storage._tables import read_table, write_results, write_table
from offkey.storage.stateful import Stateful

__all__ = [
    "Artefact",
    "RunFolder",
    "Shard",
    "ShardFolder",
    "Stateful",
    "Status",
    "aside",
    "clean_leftovers",
    "commit",
    "first_difference",
    "flatten",
    "load_artefact",
    "load_state",
    "machine",
    "make_folder",
    "read_table",
    "save_artefact",
    "save_state",
    "sha256_file",
    "sha256_json",
    "unflatten",
    "versions",
    "write_bytes",
    "write_json",
    "write_json_once",
    "write_parquet",
    "write_results",
    "write_table",
    "write_tensors",
    "write_text",
]
