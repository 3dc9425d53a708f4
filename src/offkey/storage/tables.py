"""Tables as Parquet, with a version of their schema."""

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from offkey.errors import BadInput, Damaged, Mismatch, check
from offkey.storage.files import aside

__all__ = ["read_table", "write_table"]

_KEY = b"offkey"
_AGAIN = "Write it again"


def write_table(
    path: str | PathLike[str],
    rows: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | pa.Table,
    *,
    version: int = 1,
) -> None:
    """Writes rows (dicts) or columns as Parquet, with the schema's version and page checksums.

    Raises:
        ValueError: a column holds NaN; what is missing is ``None``.
        Unwritable: the file cannot be written.
    """
    table = rows if isinstance(rows, pa.Table) else _table(rows)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if _has_nan(column):
            raise ValueError(f"column {name!r} of {path} holds NaN; a missing value is None")
    facts = json.dumps({"table": Path(path).stem, "version": version})
    metadata = {**(table.schema.metadata or {}), _KEY: facts.encode()}
    with aside(path) as partial:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            partial,
            compression="zstd",
            write_page_checksum=True,
        )


def read_table(
    path: str | PathLike[str],
    columns: Iterable[str] = (),
    *,
    leave_out: Sequence[str] = (),
    filters: list[tuple[str, str, Any]] | None = None,
    version: int = 1,
) -> pa.Table:
    """Reads what :func:`write_table` wrote.

    Args:
        path: the file.
        columns: columns that must be there; others are read too.
        leave_out: columns that are not read.
        filters: rows that are read, as in :func:`pyarrow.parquet.read_table`.
        version: the newest schema that the caller understands.

    Raises:
        BadInput: there is no such file.
        Damaged: it was truncated or edited, a column is missing, or a number is NaN.
        Mismatch: its schema is newer than ``version``.
    """
    path = Path(path)
    what, mend = f"no {path.name} in this folder", "Finish the run that writes it"
    check(path.is_file(), what, where=str(path.parent), mend=mend, error=BadInput)
    table, schema_version = _read_parquet(path, columns, leave_out, filters)
    what = f"the table has version {schema_version} of its schema, known is {version}"
    check(schema_version <= version, what, where=str(path), mend="Update offkey", error=Mismatch)
    for name, column in zip(table.column_names, table.columns, strict=True):
        what = f"column {name!r} holds NaN; a missing number is null"
        check(not _has_nan(column), what, where=str(path), mend=_AGAIN, error=Damaged)

    return table


def _read_parquet(
    path: Path,
    columns: Iterable[str],
    leave_out: Sequence[str],
    filters: list[tuple[str, str, Any]] | None,
) -> tuple[pa.Table, int]:
    """The table and the version of its schema."""
    try:
        data = pa.BufferReader(path.read_bytes())
        schema = pq.read_schema(data)
        version = int(json.loads((schema.metadata or {})[_KEY])["version"])
        missing = [name for name in columns if name not in schema.names]
        keep = [name for name in schema.names if name not in leave_out]
        if missing:
            what = f"column {missing[0]!r} is missing"
            raise Damaged(what, where=str(path), mend=_AGAIN)
        data.seek(0)
        table = pq.read_table(data, columns=keep, filters=filters, page_checksum_verification=True)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise Damaged("the table was truncated or edited", where=str(path), mend=_AGAIN) from None

    return table, version


def _has_nan(column: pa.ChunkedArray) -> bool:
    return pa.types.is_floating(column.type) and bool(pc.any(pc.is_nan(column)).as_py())


def _table(rows: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> pa.Table:
    if isinstance(rows, Mapping):
        return pa.table({name: _plain(values) for name, values in rows.items()})
    rows = [dict(row) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))

    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else list(values)
