"""Values that the tests of a class share."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

__all__ = ["shared"]

T = TypeVar("T")


def shared(
    kept: dict[object, Any], request: pytest.FixtureRequest, name: str, build: Callable[[], T]
) -> T:
    """A value that is built once for each set of parameters that a test of the class has."""
    parameters = getattr(request.node, "callspec", None)
    key = (name, parameters.id if parameters else "")
    if key not in kept:
        kept[key] = build()
    value: T = kept[key]

    return value
