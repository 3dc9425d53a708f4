"""Prompts: what a model is asked. Checked once, never changed, split by source."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offkey.data.columns import KNOWN, BadCell, check_value
from offkey.errors import BadInput, BadValue, NotEnoughData, UnknownName, check, nearest
from offkey.storage import write_text

__all__ = ["Prompts", "Table", "TensorPrompts", "check_disjoint", "split_by_source"]

Columns = dict[str, tuple[Any, ...]]
TableType = TypeVar("TableType", bound="Table")


class Table:
    """Columns of equal length, the base of all sets of prompts; every change gives a new table.

    Attributes:
        places: where each row came from, such as ``trusted.jsonl:17``, for messages.
    """

    places: tuple[str, ...]
    _columns: Columns

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> tuple[Any, ...]:
        if name not in self._columns:
            raise UnknownName("column", str(name), self._columns)

        return self._columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.digest == getattr(other, "digest", None)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows: {', '.join(self.columns)})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: the known ones first, then those carried through."""
        return tuple(self._columns)

    @property
    def ids(self) -> tuple[str, ...]:
        """Id of each row."""
        return self._columns["id"]

    @property
    def digest(self) -> str:
        """SHA-256 of all columns, in this order of rows."""
        hasher = hashlib.sha256()
        for name in sorted(self._columns):
            line = json.dumps([name, self._columns[name]], sort_keys=True, ensure_ascii=True)
            hasher.update(line.encode() + b"\n")

        return hasher.hexdigest()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as a dict, with ``None`` where it lacks a column."""
        names = tuple(self._columns)
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))

    def take(self, indices: Iterable[int]) -> Self:
        """Rows by number, in the order given; no number gives an empty table."""
        numbers = np.asarray(list(indices), dtype=np.int64)
        if numbers.size and (numbers.min() < -len(self) or numbers.max() >= len(self)):
            raise IndexError(f"rows run from 0 to {len(self) - 1}")

        made = object.__new__(type(self))
        made._columns = {
            name: tuple(values[i] for i in numbers) for name, values in self._columns.items()
        }
        made.places = tuple(self.places[i] for i in numbers)
        made._take_arrays(self, numbers)

        return made

    def select(self, mask: Iterable[Any]) -> Self:
        """Rows where ``mask`` (one value a row) is true."""
        kept = [bool(value) for value in mask]
        check(
            len(kept) == len(self),
            f"the mask has {len(kept)} values for {len(self)} prompts",
            error=BadInput,
        )

        return self.take(i for i, value in enumerate(kept) if value)

    def without(self, *names: str) -> Self:
        """The same rows without these columns; names of absent columns are ignored."""
        kept = {name: values for name, values in self._columns.items() if name not in names}

        return self._with(_without_empty(kept))

    def with_columns(self, **columns: Sequence[Any]) -> Self:
        """The same rows with columns added or replaced, one value a row."""
        return self._with(_checked_columns({**self._columns, **columns}, self.places))

    def _with(self, columns: Columns) -> Self:
        """The same rows with these columns, whose values are checked already."""
        made = object.__new__(type(self))
        made.places = self.places
        made._take_arrays(self, None)
        made._columns = made._completed(columns)

        return made

    def _take_arrays(self, other: Self, rows: NDArray[np.int64] | None) -> None:
        """Takes over what another table holds beside its columns, all of it or these rows."""

    def _completed(self, columns: Columns) -> Columns:
        """Columns whose values are checked, with ids and sources filled in."""
        raise NotImplementedError


class Prompts(Table):
    """Texts or chats for a model, with what is known about them; immutable, ordered, by column.

    Each row has a ``prompt`` (text) or ``messages`` (a chat: a list of objects with ``role`` and
    ``content``). The other known columns are optional:

    - ``id``: by default a hash of the content and its occurrence number;
    - ``choices``: at least two answer texts, whose first tokens differ;
    - ``target``: index of the true choice;
    - ``response``: a text after the prompt, scored at its own positions;
    - ``source``: the item the row was made from; splits are disjoint by it. By default the id if
      one was given, else a hash of the prompt alone, so that repeats stay together;
    - ``label``: 1 = anomalous, 0 = normal; ``agrees``: 1 where both behaviours give the same
      answer.

    Further columns are carried through. A missing value is ``None``.

    Args:
        columns: values by column name, one a row.
        where: what messages call the rows: a name for all, or one name for each row.

    Raises:
        BadInput: there are no rows, or a value is not what its column holds.

    Example:
        >>> prompts = Prompts({"prompt": ["2 + 2 =", "2 + 3 ="], "label": [0, 1]})
        >>> len(prompts), prompts["label"]
        (2, (0, 1))
    """

    def __init__(
        self, columns: Mapping[str, Sequence[Any]], *, where: str | Sequence[str] = ""
    ) -> None:
        count = max((len(values) for values in columns.values()), default=0)
        check(
            count > 0,
            "there are no prompts",
            where=where if isinstance(where, str) else "",
            mend="Give at least one row with a 'prompt' or 'messages'",
            error=BadInput,
        )
        self.places = _place_names(where, count)
        self._columns = self._completed(_checked_columns(columns, self.places))

    @classmethod
    def concat(cls, parts: Iterable["Prompts"]) -> "Prompts":
        """All rows of the parts in turn; a column that a part lacks is ``None`` there.

        Raises:
            BadInput: two parts have the same id.
        """
        parts = list(parts)

        return cls(
            _joined_columns(parts), where=[place for part in parts for place in part.places]
        )

    def to_jsonl(self, path: str | PathLike[str]) -> None:
        """Writes one JSON object a line, which :func:`read_prompts` reads as the same prompts.

        Raises:
            Unwritable: the file cannot be written.
        """
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
        write_text(path, "".join(lines))

    def _completed(self, columns: Columns) -> Columns:
        _check_texts(columns, self.places)
        _check_targets(columns, self.places)

        hashes = _text_hashes(columns, ("prompt", "messages", "response", "choices"), len(self))
        origins = _text_hashes(columns, ("prompt", "messages"), len(self))
        nothing = (None,) * len(self)
        given = columns.get("id", nothing)
        made = _numbered(hashes)
        ids = tuple(_first(*names) for names in zip(given, made, strict=True))
        _check_unique(ids, self.places)
        sources = tuple(
            _first(*names)
            for names in zip(columns.get("source", nothing), given, origins, strict=True)
        )

        return _ordered({**columns, "id": ids, "source": sources})


class TensorPrompts(Table):
    """Arrays that a model is given, one row a prompt, with what is known about them.

    Args:
        arrays: the model's keyword arguments; the leading axis of each is the prompt.
        columns: ``id``, ``source``, ``label``, ``agrees``, ``target`` (index of the true class)
            and further columns; ids and sources default as those of :class:`Prompts`.
        where: what messages call the rows.

    Raises:
        BadInput: there are no rows, lengths differ, or a value is not what its column holds.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        where: str | Sequence[str] = "",
    ) -> None:
        lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
        count = max(lengths.values(), default=0)
        check(
            count > 0 and min(lengths.values()) == count,
            f"arrays need one leading axis of equal length, found {lengths}",
            where=where if isinstance(where, str) else "",
            mend="Give at least one array with a row for each prompt",
            error=BadInput,
        )
        self.arrays = {name: array.detach() for name, array in arrays.items()}
        self.places = _place_names(where, count)
        self._columns = self._completed(_checked_columns(columns or {}, self.places))

    @property
    def digest(self) -> str:
        """SHA-256 of all columns and arrays, in this order of rows."""
        hasher = hashlib.sha256(super().digest.encode())
        for name in sorted(self.arrays):
            array = self.arrays[name].cpu().contiguous()
            hasher.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            hasher.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")

        return hasher.hexdigest()

    @classmethod
    def concat(cls, parts: Iterable["TensorPrompts"]) -> "TensorPrompts":
        """All rows of the parts in turn; a column that a part lacks is ``None`` there."""
        parts = list(parts)
        arrays = {
            name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays
        }
        places = [place for part in parts for place in part.places]

        return cls(arrays, _joined_columns(parts), where=places)

    def _take_arrays(self, other: Self, rows: NDArray[np.int64] | None) -> None:
        self.arrays = {
            name: array if rows is None else array[torch.as_tensor(rows, device=array.device)]
            for name, array in other.arrays.items()
        }

    def _completed(self, columns: Columns) -> Columns:
        nothing = (None,) * len(self)
        ids, sources = columns.get("id", nothing), columns.get("source", nothing)
        hashes = self._array_hashes() if None in ids else [""] * len(self)
        rows = list(zip(ids, _numbered(hashes), hashes, sources, strict=True))
        names = tuple(given or made for given, made, _, _ in rows)
        origins = tuple(source or given or bare for given, _, bare, source in rows)
        _check_unique(names, self.places)

        return _ordered({**columns, "id": names, "source": origins})

    def _array_hashes(self) -> list[str]:
        hashes = []
        for i in range(len(self)):
            hasher = hashlib.sha256()
            for name in sorted(self.arrays):
                row = self.arrays[name][i].cpu().contiguous().reshape(-1)
                hasher.update(name.encode() + row.view(torch.uint8).numpy().tobytes())
            hashes.append(hasher.hexdigest()[:16])

        return hashes


def split_by_source(
    prompts: TableType, fractions: Sequence[float], seed: int
) -> tuple[TableType, ...]:
    """Parts of about these fractions of the rows; rows of one source stay together.

    Sources are ordered by a hash of seed and name and cut where the fractions of rows are
    reached, so which rows a part has does not depend on their order, which each part keeps. With
    one row a source the sizes are the rounded fractions. If the fractions sum to less than 1, the
    remaining rows are in no part.

    Raises:
        BadValue: a fraction is not positive, or they exceed 1 together.
        NotEnoughData: a part would be empty.
    """
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise BadValue(
            f"fractions {tuple(fractions)} are not positive numbers that sum to at most 1",
            where="fractions",
            mend="Use for example (0.6, 0.2, 0.2)",
        )
    sizes = Counter(prompts["source"])
    ends = [round(sum(fractions[: i + 1]) * len(prompts)) for i in range(len(fractions))]

    part_of: dict[str, int] = {}
    start = 0
    for source in sorted(sizes, key=lambda name: _source_rank(seed, name)):
        middle = start + sizes[source] / 2
        part_of[source] = sum(middle > end for end in ends)
        start += sizes[source]

    parts = []
    for number in range(len(fractions)):
        parts.append(prompts.select([part_of[s] == number for s in prompts["source"]]))
    if not all(len(part) for part in parts):
        raise NotEnoughData(
            f"{len(prompts)} prompts of {len(sizes)} sources leave a part empty when split into "
            f"{len(fractions)}",
            mend="Give more prompts of other sources",
        )

    return tuple(parts)


def check_disjoint(a: Table, b: Table, names: tuple[str, str] = ("trusted", "test")) -> None:
    """Refuses two sets of prompts that share a source.

    Args:
        a: a set of prompts.
        b: another.
        names: what the message calls them.

    Raises:
        BadInput: names the first source shared.
    """
    shared = sorted(set(a["source"]) & set(b["source"]))
    if shared:
        places = dict(zip(b["source"], b.places, strict=True))
        raise BadInput(
            f"source {shared[0]!r} is in both the {names[0]} and the {names[1]} prompts "
            f"({len(shared)} shared)",
            where=places[shared[0]],
            mend="Keep all rows made from one item in one of the sets",
        )


def _checked_columns(columns: Mapping[str, Sequence[Any]], places: tuple[str, ...]) -> Columns:
    """Columns in normal form and order; known ones without any value are left out.

    Raises:
        BadInput: a length or a value is wrong.
    """
    checked: Columns = {}
    for name, values in _ordered(columns).items():
        if len(values) != len(places):
            raise BadInput(f"column {name!r} has {len(values)} values for {len(places)} prompts")
        if isinstance(values, torch.Tensor | np.ndarray):
            values = values.tolist()
        cells = []
        for value, place in zip(values, places, strict=True):
            try:
                cells.append(check_value(name, value))
            except BadCell as bad:
                raise BadInput(bad.what, where=place, mend=bad.mend) from None
        checked[name] = tuple(cells)

    return _without_empty(checked)


def _without_empty(columns: Columns) -> Columns:
    """Columns but the known ones that have rows and no value in any."""
    return {
        name: values
        for name, values in columns.items()
        if name not in KNOWN or not values or any(value is not None for value in values)
    }


def _ordered(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Known columns in their order, then the others."""
    names = [name for name in KNOWN if name in columns]

    return {name: columns[name] for name in [*names, *(n for n in columns if n not in KNOWN)]}


def _joined_columns(parts: Sequence[Table]) -> dict[str, list[Any]]:
    """Columns of all parts, ``None`` where a part lacks one."""
    names = dict.fromkeys(name for part in parts for name in part.columns)

    return {
        name: [
            value
            for part in parts
            for value in (part[name] if name in part else [None] * len(part))
        ]
        for name in names
    }


def _place_names(where: str | Sequence[str], count: int) -> tuple[str, ...]:
    """Where each row came from, given one name for all or one for each."""
    if isinstance(where, str):
        return tuple(f"{where} row {i + 1}".strip() for i in range(count))
    if len(where) != count:
        raise BadInput(f"{len(where)} places were given for {count} prompts")

    return tuple(where)


def _check_unique(ids: Sequence[str], places: Sequence[str]) -> None:
    used: dict[str, str] = {}
    for name, place in zip(ids, places, strict=True):
        if name in used:
            raise BadInput(
                f"id {name!r} was already used at {used[name]}",
                where=place,
                mend="Give every prompt its own id, or leave the ids out",
            )
        used[name] = place


def _check_texts(columns: Mapping[str, tuple[Any, ...]], places: tuple[str, ...]) -> None:
    nothing = (None,) * len(places)
    prompts, messages = columns.get("prompt", nothing), columns.get("messages", nothing)
    for prompt, chat, place in zip(prompts, messages, places, strict=True):
        if prompt is None and chat is None:
            close = [n for n in nearest("prompt", columns) if n not in KNOWN]
            mend = f"Rename {close[0]!r} to 'prompt'" if close else "Add one of the two"
            raise BadInput("neither 'prompt' nor 'messages' is there", where=place, mend=mend)
        if prompt is not None and chat is not None:
            raise BadInput("both 'prompt' and 'messages' are there", where=place, mend="Keep one")


def _check_targets(columns: Mapping[str, tuple[Any, ...]], places: tuple[str, ...]) -> None:
    targets = columns.get("target", ())
    choices = columns.get("choices", (None,) * len(targets))
    for target, options, place in zip(targets, choices, places, strict=bool(targets)):
        if target is None:
            continue
        if options is None:
            raise BadInput("there is a target but no choices", where=place, mend="Add choices")
        if not 0 <= target < len(options):
            raise BadInput(
                f"target is {target}, but there are {len(options)} choices",
                where=place,
                mend="Count choices from 0",
            )


def _text_hashes(
    columns: Mapping[str, tuple[Any, ...]], names: Iterable[str], count: int
) -> list[str]:
    """A hash of these columns for each row; labels and targets never play a part in it."""
    used = {name: columns[name] for name in names if name in columns}
    hashes = []
    for i in range(count):
        row = {name: values[i] for name, values in used.items() if values[i] is not None}
        hashes.append(hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16])

    return hashes


def _numbered(hashes: Iterable[str]) -> list[str]:
    """Each hash with the number of its occurrence, counted from 1."""
    counts: Counter[str] = Counter()
    names = []
    for digest in hashes:
        counts[digest] += 1
        names.append(f"{digest}-{counts[digest]}")

    return names


def _first(*values: Any) -> Any:
    """The first value that is not ``None``."""
    return next(value for value in values if value is not None)


def _source_rank(seed: int, source: str) -> tuple[str, str]:
    return hashlib.sha256(f"{seed}\n{source}".encode()).hexdigest(), source
