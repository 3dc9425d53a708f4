"""Typed records that one room writes as JSON and others read, and how two of them differ."""

from os import PathLike
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from offkey.errors import Damaged, Mismatch
from offkey.storage.files import read_json, write_json

__all__ = ["Record", "RecordType", "first_difference", "read_record", "refuse_other", "validated"]

RecordType = TypeVar("RecordType", bound="Record")

_AGAIN = "Run the command that wrote it again"
_ABSENT = object()


class Record(BaseModel):
    """Base of the records that one room writes as JSON and others read: frozen and checked.

    Fields that a later version added are ignored; NaN and infinity are refused.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return self.model_dump(mode="json")

    def write(self, path: str | PathLike[str]) -> None:
        """Writes the record as JSON, whole or not at all; :func:`read_record` reads it back.

        Raises:
            Unwritable: the file cannot be written.
        """
        write_json(path, self.as_json())


def read_record(
    kind: type[RecordType], path: str | PathLike[str], *, mend: str = _AGAIN
) -> RecordType:
    """Reads a record that was written as JSON.

    Args:
        kind: class of the record.
        path: the file.
        mend: what to do where the file is missing or broken.

    Raises:
        BadInput: there is no such file.
        Damaged: it is not JSON, or a field is missing or of another type; names the first one.
    """
    return validated(kind, read_json(path, mend=mend), where=str(path), mend=mend)


def validated(kind: type[RecordType], value: Any, *, where: str, mend: str) -> RecordType:
    """A record from JSON values.

    Raises:
        Damaged: a field is missing or of another type; names the first one.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise Damaged(f"{field}: {first['msg'].lower()}", where=where, mend=mend) from None


def first_difference(a: Any, b: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first setting (dotted path) where two JSON values differ, and both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*b, *(key for key in a if key not in b)]:
            name = f"{path}.{key}" if path else str(key)
            difference = first_difference(a.get(key, _ABSENT), b.get(key, _ABSENT), name)
            if difference:
                return difference
        return None

    same = a == b and isinstance(a, bool) == isinstance(b, bool)

    return None if same else (path, a, b)


def refuse_other(path: str | PathLike[str], stored: Any, wanted: Any) -> None:
    """Refuses a folder whose configuration is not the one wanted.

    Raises:
        Mismatch: names the first setting that differs.
    """
    difference = first_difference(stored, wanted)
    if difference:
        name, old, new = difference
        raise Mismatch(
            f"the folder belongs to a run with {name} = {_shown(old)}, not {_shown(new)}",
            where=str(path),
            mend="Give another folder, or the settings of that run",
        )


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = repr(value)

    return text if len(text) <= 60 else text[:57] + "..."
