"""The base of everything that learns and is saved: settings, and what was learned from data."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from offkey.errors import Mismatch

__all__ = ["Stateful"]


class Stateful:
    """An object whose saving follows from its constructor and its attributes.

    A subclass stores each argument of its constructor under the argument's name. What it learns
    goes into attributes whose names end in ``_``: tensors, plain values, and dicts and lists of
    these. Then :meth:`state` holds both, and :meth:`from_state` gives back an equal object.
    """

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments by name; tuples as lists, as JSON has them."""
        return {name: _plain(getattr(self, name)) for name in _arguments(type(self).__init__)[0]}

    def learned(self) -> dict[str, Any]:
        """What was learned, by attribute; empty before that."""
        return {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_")
        }

    def state(self) -> dict[str, Any]:
        """Settings and what was learned, enough to make an equal object."""
        return self.settings() | self.learned()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The object that :meth:`state` described; tensors are copied.

        Raises:
            Mismatch: the state holds a setting that the constructor does not take.
        """
        names, takes_any = _arguments(cls.__init__)
        settings = {name: value for name, value in state.items() if not name.endswith("_")}
        unknown = [name for name in settings if name not in names]
        if unknown and not takes_any:
            raise Mismatch(
                f"its saved state has a setting {unknown[0]!r}, which does not exist",
                where=getattr(cls, "name", cls.__name__),
                mend="Fit and save it again with this version",
            )
        made = cls(**{name: _given(value) for name, value in settings.items()})
        for name, value in state.items():
            if name.endswith("_"):
                setattr(made, name, _copied(value))

        return made

    if not TYPE_CHECKING:  # a type checker would else believe in any attribute

        def __getattr__(self, name: str) -> Any:
            if name.endswith("_") and not name.startswith("_"):
                who = getattr(type(self), "name", type(self).__name__)
                raise AttributeError(f"{who} has not learned anything yet")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())

        return f"{type(self).__name__}({inside})"


@cache
def _arguments(constructor: Callable[..., None]) -> tuple[tuple[str, ...], bool]:
    """Names of a constructor's arguments, and whether it takes others besides."""
    if constructor is object.__init__:
        return (), False
    _, *known = inspect.signature(constructor).parameters.values()
    names = tuple(p.name for p in known if p.kind is not inspect.Parameter.VAR_KEYWORD)

    return names, len(names) < len(known)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else _copied(value)


def _copied(value: Any) -> Any:
    """The same value with tensors of its own.

    A fresh tensor is aligned in memory as the one that was learned, which keeps products bitwise.
    """
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]

    return value
