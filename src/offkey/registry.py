"""Names of pluggable parts: a lazy map for ours, entry points for those of other packages."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Generic, TypeVar, cast

from offkey.errors import BadValue, MissingExtra, UnknownName, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Finds classes by name and creates them with checked settings.

    Args:
        kind: what is registered, for error messages, such as ``"score"``.
        builtin: name → ``"module:Class"``, imported when first used.
        group: entry-point group under which other packages register theirs.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str], *, group: str) -> None:
        self.kind, self.builtin, self.group = kind, dict(builtin), group

    @property
    def others(self) -> dict[str, EntryPoint]:
        """What other packages registered, by name."""
        return {point.name: point for point in entry_points(group=self.group)}

    @property
    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted({*self.builtin, *self.others}))

    def find(self, name: str) -> type[T]:
        """The class registered under ``name``.

        Raises:
            UnknownName: nothing is; the error names the nearest.
            MissingExtra: its optional library is not installed.
        """
        try:
            if name in self.builtin:
                module, _, attribute = self.builtin[name].partition(":")
                return cast(type[T], getattr(import_module(module), attribute))
            if name in self.others:
                return cast(type[T], self.others[name].load())
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"{error.name} is not installed",
                where=f"{self.kind} {name}",
                mend=f"Install it: pip install {error.name}",
            ) from error
        raise UnknownName(self.kind, name, self.names)

    def make(self, name: str, **settings: object) -> T:
        """An instance of the class registered under ``name``, with these settings.

        Raises:
            UnknownName: no such name.
            BadValue: it has no such setting.
        """
        factory = self.find(name)
        parameters = signature(factory).parameters.values()
        known = [p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD]
        checks_itself = len(known) < len(parameters)
        for setting in settings:
            if setting not in known and not checks_itself:
                raise BadValue(
                    f"unknown setting {setting!r}",
                    where=name,
                    mend="It has "
                    + (", ".join(nearest(setting, known) or known) or "no settings"),
                )

        return factory(**settings)
