"""The columns that prompts may have, and what each may hold."""

import datetime
import decimal
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["KNOWN", "BadCell", "check_value"]

KNOWN = (
    "id",
    "prompt",
    "messages",
    "choices",
    "target",
    "response",
    "source",
    "label",
    "agrees",
)


class BadCell(Exception):
    """A value that its column cannot hold: what is wrong, and the mend."""

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.what, self.mend = what, mend


def check_value(name: str, value: Any) -> Any:
    """A value in the normal form of its column, ``None`` where it is missing.

    Raises:
        BadCell: the column cannot hold it.
    """
    value = _plain(value, name)
    if value is None or name not in _CHECKS:
        return value

    return _CHECKS[name](value)


def _plain(value: Any, name: str = "value") -> Any:
    """A value in JSON's terms: None, bool, int, float, str, list or dict; NaN becomes None.

    Raises:
        BadCell: there is no such form.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _encodable(value, name)
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, np.generic):
        return _plain(value.item(), name)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, name) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if hasattr(value, "tolist"):  # arrays and tensors
        return _plain(value.tolist(), name)

    raise BadCell(
        f"{name} holds {type(value).__name__}, which is not text, a number or a list",
        f"Drop or convert the column {name!r}",
    )


def _shown(value: Any) -> str:
    """A value for a one-line message, shortened."""
    text = repr(value)

    return text if len(text) <= 40 else text[:37] + "..."


def _encodable(value: str, name: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadCell(f"{name} holds half of a surrogate pair", "Save it as UTF-8") from None

    return value


def _name(column: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise BadCell(f"{column} is {_shown(value)}, not a text or a whole number")

        return str(value)

    return check


def _text(column: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise BadCell(f"{column} is {_shown(value)}, not a text")
        if not value:
            raise BadCell(f"{column} is empty", f"Give it a text or leave the {column} out")

        return value

    return check


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    mend = 'Use a list such as [{"role": "user", "content": "Hello"}]'
    if not isinstance(value, list) or not value:
        raise BadCell(f"messages is {_shown(value)}, not a list of messages", mend)
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadCell(f"message {number} is {_shown(message)}, not an object", mend)
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadCell(f"message {number} has no text under {key!r}", mend)

    return tuple(value)


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise BadCell(f"choices is {_shown(value)}, not a list of texts", 'Use [" Yes", " No"]')
    if len(value) < 2:
        raise BadCell(f"choices has {len(value)} of at least 2 answers", "Add the other answers")
    if "" in value or len(set(value)) < len(value):
        raise BadCell(f"choices {_shown(value)} are empty or repeat", "Make them differ")

    return tuple(value)


def _bit(column: str, mend: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int | float) or value not in (0, 1):
            raise BadCell(f"{column} is {_shown(value)}, not 0 or 1", mend)

        return int(value)

    return check


def _target(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise BadCell(
            f"target is {_shown(value)}, not the index of a choice", "Count choices from 0"
        )

    return int(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "id": _name("id"),
    "source": _name("source"),
    "prompt": _text("prompt"),
    "response": _text("response"),
    "messages": _messages,
    "choices": _choices,
    "target": _target,
    "label": _bit("label", "Use 1 for anomalous and 0 for normal"),
    "agrees": _bit("agrees", "Use 1 where both behaviours give the same answer, else 0"),
}
