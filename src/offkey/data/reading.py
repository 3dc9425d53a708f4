"""Reading prompts from JSONL, CSV, Parquet and datasets of the Hub."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from offkey.data.columns import KNOWN
from offkey.data.prompts import Prompts
from offkey.errors import BadInput, MissingExtra, OffkeyError, Offline, UnknownName, nearest

__all__ = ["read_prompts"]

_Columns = dict[str, list[Any]]
_NO_NETWORK = {
    "ConnectionError",
    "ConnectTimeout",
    "ConnectError",
    "LocalEntryNotFoundError",
    "MaxRetryError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "ReadTimeout",
}


def read_prompts(source: str | PathLike[str], *, split: str = "train") -> Prompts:
    """Reads prompts from JSONL, CSV or Parquet, or a dataset of the Hub.

    In CSV, ``choices`` and ``messages`` are JSON lists, ``target``, ``label`` and ``agrees`` are
    numbers (or true / false), and an empty cell is a missing value.

    Args:
        source: a file whose name ends in ``.jsonl``, ``.csv`` or ``.parquet``, or
            ``hf:NAME[@REVISION]``, where NAME is a dataset of the Hub or a local dataset folder
            (this needs the ``hub`` extra).
        split: which split of a Hub dataset, where it has splits.

    Raises:
        BadInput: the file is missing, empty or broken, or a row is not a prompt; says where.
        MissingExtra: a Hub dataset was asked for and ``datasets`` is not installed.
        Offline: the Hub could not be reached.
    """
    name = str(source)
    if name.startswith("hf:"):
        columns = _read_hub(name, split)
        return Prompts(columns, where=name)

    path = Path(source)
    data = _bytes(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(
            f"unknown kind of file {path.suffix or path.name!r}",
            where=name,
            mend="Use " + ", ".join(_READERS) + " or hf:NAME",
        )
    columns, where = reader(data, name)
    if not where:
        raise BadInput("the file holds no prompts", where=name, mend="Give it at least one row")
    _check_names(columns, name)

    return Prompts(columns, where=where)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        others = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, others)
        if close:
            mend = "Did you mean " + " or ".join(str(path.parent / name) for name in close) + "?"
        elif path.parent.is_dir():
            mend = "Give the path of a .jsonl, .csv or .parquet file"
        else:
            mend = f"There is no folder {str(path.parent)!r} either"
        raise BadInput("no such file", where=str(path), mend=mend) from None
    except IsADirectoryError:
        raise BadInput(
            "a folder, not a file",
            where=str(path),
            mend=f"Give a file, or hf:{path} for a dataset",
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"cannot be read: {reason}", where=str(path)) from None
    if not data.strip():
        raise BadInput("the file is empty", where=str(path), mend="Give it at least one row")

    return data


def _jsonl(data: bytes, name: str) -> tuple[_Columns, list[str]]:
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        rows.append(_object(_decoded(line, place), place))
        places.append(place)

    names = list(dict.fromkeys(key for row in rows for key in row))
    return {key: [row.get(key) for row in rows] for key in names}, places


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"broken JSON: {error.msg} at column {error.colno}",
            where=place,
            mend="Write one JSON object a line",
        ) from None
    except RecursionError:
        raise BadInput("the JSON is nested too deeply", where=place) from None
    except ValueError as error:
        raise BadInput(f"broken JSON: {error}", where=place, mend="Write null") from None
    if not isinstance(row, dict):
        raise BadInput(
            f"a JSON {_JSON_KINDS.get(type(row), 'number')}, not an object",
            where=place,
            mend='Write one object a line, such as {"prompt": "2 + 2 ="}',
        )

    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_JSON_KINDS = {list: "list", str: "text", bool: "constant", type(None): "constant"}


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"not UTF-8: byte 0x{data[error.start]:02x} at column {error.start + 1}",
            where=place,
            mend="Save the file as UTF-8",
        ) from None


def _csv(data: bytes, name: str) -> tuple[_Columns, list[str]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        _decoded(line, f"{name}:{number}")
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    rows: list[list[Any]] = []
    places: list[str] = []
    start = 1
    try:
        header = next(lines)
        start = lines.line_num + 1
        for row in lines:
            place, start = f"{name}:{start}", lines.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise BadInput(
                    f"{len(row)} fields where the header has {len(header)}",
                    where=place,
                    mend="Put a field that holds a comma or a line break into double quotes",
                )
            rows.append([_cell(key, cell, place) for key, cell in zip(header, row, strict=True)])
            places.append(place)
    except csv.Error as error:
        raise BadInput(f"broken CSV: {error}", where=f"{name}:{start}") from None
    if len(set(header)) < len(header):
        twice = next(key for key in header if header.count(key) > 1)
        raise BadInput(f"two columns are called {twice!r}", where=f"{name}:1", mend="Rename one")

    return {key: [row[i] for row in rows] for i, key in enumerate(header)}, places


def _cell(key: str, cell: str, place: str) -> Any:
    if not cell:
        return None
    if key in ("choices", "messages"):
        try:
            return json.loads(cell)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{key} is not a JSON list: {error.msg}", where=place, mend='Use ["Yes", "No"]'
            ) from None
    if key in ("target", "label", "agrees"):
        word = cell.strip().lower()
        if word in ("true", "false"):
            return word == "true"
        try:
            return float(word) if "." in word else int(word)
        except ValueError:
            return cell  # the column's own check says what it may hold

    return cell


def _parquet(data: bytes, name: str) -> tuple[_Columns, list[str]]:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"not a whole Parquet file: {reason}", where=name) from None

    return table.to_pydict(), [f"{name} row {i + 1}" for i in range(table.num_rows)]


_READERS: Mapping[str, Callable[[bytes, str], tuple[_Columns, list[str]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _check_names(columns: Mapping[str, Sequence[Any]], name: str) -> None:
    """Refuses a column whose name is close to that of an absent known one."""
    absent = [known for known in KNOWN if known not in columns and known != "id"]
    if "prompt" in columns or "messages" in columns:
        absent = [known for known in absent if known not in ("prompt", "messages")]
    for key in columns:
        close = difflib.get_close_matches(key, absent, n=1, cutoff=0.8)
        if key not in KNOWN and close:
            raise BadInput(
                f"unknown field {key!r}", where=name, mend=f"Did you mean {close[0]!r}?"
            )


def _read_hub(name: str, split: str) -> dict[str, list[Any]]:
    """Columns of a dataset, given as ``hf:NAME[@REVISION]``; NAME may be a local folder.

    Raises:
        MissingExtra: the library is not installed.
        Offline: the Hub did not answer.
        BadInput: there is no such dataset.
        UnknownName: the dataset has no such split.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            "datasets of the Hub need the library 'datasets'",
            where=name,
            mend="Install it with: pip install 'offkey[hub]'",
        ) from None

    target, revision = name.removeprefix("hf:"), ""
    if not Path(target).exists():
        target, _, revision = target.partition("@")
    try:
        if (Path(target) / "dataset_info.json").is_file() or (
            Path(target) / "dataset_dict.json"
        ).is_file():
            dataset = datasets.load_from_disk(target)
        else:
            dataset = datasets.load_dataset(target, revision=revision or None)
    except Exception as error:
        raise _hub_error(name, error) from error

    return _hub_columns(dataset, split, name)


def _hub_columns(dataset: Any, split: str, name: str) -> dict[str, list[Any]]:
    if isinstance(dataset, dict):  # a dataset with splits
        if split not in dataset:
            raise UnknownName("split", split, dataset, where=name)
        dataset = dataset[split]

    return {column: list(dataset[column]) for column in dataset.column_names}


def _hub_error(name: str, error: Exception) -> OffkeyError:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 10:
        chain.append(cause)
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if kinds & _NO_NETWORK:
        return Offline(
            "the Hub could not be reached",
            where=name,
            mend="Connect to the network, or give a local file or dataset folder",
        )

    reason = " ".join(str(error).split())[:160].rstrip(".")
    return BadInput(f"the dataset cannot be read: {reason}", where=name)
