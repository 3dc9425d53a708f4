"""Values that the tests of a class share, so that it fits once and not for every check."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

__all__ = ["shared"]

T = TypeVar("T")

_KEPT = pytest.StashKey[dict[tuple[str, str], Any]]()


def shared(request: pytest.FixtureRequest, name: str, build: Callable[[], T]) -> T:
    """A value that is built once for each set of parameters that a test of the class has.

    It is let go of with the last test of the class; no test may change it.
    """
    owner = request.node.getparent(pytest.Class)
    if _KEPT not in owner.stash:
        owner.stash[_KEPT] = {}
        owner.addfinalizer(owner.stash[_KEPT].clear)

    kept = owner.stash[_KEPT]
    parameters = getattr(request.node, "callspec", None)
    key = (name, parameters.id if parameters else "")
    if key not in kept:
        kept[key] = build()
    value: T = kept[key]

    return value
