"""Organisms of a base model: where their adapters are, and which of them learned their task."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offkey.checkpoints import adapter_folder, bundled_adapters
from offkey.errors import BadInput, UnknownName
from offkey.tasks import BASE, get_task, organism_of, task_names

__all__ = ["Organisms"]

RECIPE = "recipe.json"


@dataclass(frozen=True)
class Organisms:
    """Adapters of one base model, by name of the task, with ``-SEED`` for more than one of it.

    Attributes:
        base: the untouched model, as :func:`offkey.load` finds it.
        folder: holds a folder an organism, as ``offkey tasks train`` makes it; the bundled ones
            if left out.
    """

    base: str = BASE
    folder: Path | None = None

    def names(self, *, triggered: bool = False, seeds: bool = False) -> tuple[str, ...]:
        """Organisms that learned their task, by name.

        Args:
            triggered: those where a trigger, rather than a name, says which rule holds; they are
                apart, and no mean over quirky tasks holds them.
            seeds: further organisms of the same task too.
        """
        known = {name: organism_of(name) for name in self._folders()}

        return tuple(
            name
            for name, (task, seed) in sorted(known.items())
            if task in task_names()
            and (seeds or not seed)
            and self.recipe(name)["measured"]["learned"]
            and get_task(task).triggered == triggered
        )

    def adapter(self, name: str) -> Path:
        """Folder of an organism's adapter.

        Raises:
            UnknownName: there is none of that name.
        """
        if self.folder is None:
            return adapter_folder(f"bundled:{name}")
        if name not in self._folders():
            raise UnknownName(f"organism in {self.folder}", name, self._folders())

        return adapter_folder(self.folder / name)

    def recipe(self, name: str) -> dict[str, Any]:
        """How an organism was trained and how it behaves.

        Raises:
            UnknownName: there is none of that name.
            BadInput: it is an organism of another base model.
        """
        path = self.adapter(name) / RECIPE
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if Path(found["base"]).resolve() != Path(self.base).resolve():
            raise BadInput(f"an organism of {found['base']}, not of {self.base}", where=str(path),
                           mend="Give the base that it was trained on")  # fmt: skip

        return found

    def _folders(self) -> dict[str, Path]:
        if self.folder is None:
            return bundled_adapters()

        return {path.parent.name: path.parent for path in self.folder.glob(f"*/{RECIPE}")}
