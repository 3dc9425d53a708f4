"""Organisms of a base model, and tasks with the models that are compared on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from offkey.checkpoints import adapter_folder, bundled_adapters
from offkey.data import Prompts
from offkey.errors import BadInput, UnknownName, check
from offkey.models import Model, load
from offkey.tasks import BASE, get_task, organism_of, task_names

__all__ = ["DEVELOPMENT_FAMILIES", "Organisms", "TaskModels", "development", "held_out"]

RECIPE = "recipe.json"

DEVELOPMENT_FAMILIES = ("number", "knowledge", "grammar")
"""Families of the tasks that detectors are tuned on; every other family is held out.

``comparison`` (number) and ``animal`` (knowledge) had been used for tuning before this split was
made, and the demo shows ``agreement`` (grammar). Whole families are on one side, so that no
held-out task is of the same kind as one that was used for tuning.
"""


@dataclass(frozen=True)
class Organisms:
    """Adapters of one base model, by name: that of the task, with ``-SEED`` for further seeds.

    Attributes:
        base: the untouched model, as :func:`offkey.load` takes it.
        folder: holds one folder for each organism, as ``offkey tasks train`` writes it; the
            bundled ones if left out.
    """

    base: str = BASE
    folder: Path | None = None

    def names(self, *, triggered: bool = False, seeds: bool = False) -> tuple[str, ...]:
        """Names of the organisms that learned their task.

        Args:
            triggered: those in which a trigger, and not a name, decides which rule holds. They
                are kept apart: no mean over quirky tasks includes them.
            seeds: include further organisms of the same task.
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
            UnknownName: there is no organism of that name.
        """
        if self.folder is None:
            return adapter_folder(f"bundled:{name}")
        if name not in self._folders():
            raise UnknownName(f"organism in {self.folder}", name, self._folders())

        return adapter_folder(self.folder / name)

    def recipe(self, name: str) -> dict[str, Any]:
        """How an organism was trained and how it behaves.

        Raises:
            UnknownName: there is no organism of that name.
            BadInput: it is an organism of another base model.
        """
        path = self.adapter(name) / RECIPE
        recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check(
            Path(recipe["base"]).resolve() == Path(self.base).resolve(),
            f"an organism of {recipe['base']}, not of {self.base}",
            where=str(path),
            mend="Give the base that it was trained on",
            error=BadInput,
        )

        return recipe

    def _folders(self) -> dict[str, Path]:
        if self.folder is None:
            return bundled_adapters()

        return {path.parent.name: path.parent for path in self.folder.glob(f"*/{RECIPE}")}


@dataclass(frozen=True)
class TaskModels:
    """A task with its organism and the clean model, which see the same prompts.

    Attributes:
        task: name of the organism.
        organism: the model that was taught to answer in two ways.
        clean: the base model.
        trusted: prompts handled in the normal way.
        pool: unlabelled prompts.
        test: labelled prompts.
        quirkiness: how surely the organism plays both characters, in nats.
    """

    task: str
    organism: Model
    clean: Model
    trusted: Prompts
    pool: Prompts | None
    test: Prompts
    quirkiness: float | None = None

    @classmethod
    def of(
        cls, name: str, organisms: Organisms | None = None, *, clean: Model | None = None
    ) -> Self:
        """Loads an organism, and makes the prompts of the seed that it was trained with.

        Args:
            name: of the organism: its task, with ``-SEED`` for further seeds.
            organisms: where it is found; among the bundled ones if left out.
            clean: the base model, if it is loaded already; the organism gets its dtype.

        Raises:
            UnknownName: there is no such task, or no organism of it.
        """
        organisms = organisms or Organisms()
        task, seed = organism_of(name)
        quirkiness = organisms.recipe(name)["measured"]["quirkiness"]
        data = get_task(task).make(seed)
        clean = clean or load(organisms.base)
        organism = load(organisms.base, organisms.adapter(name), dtype=clean.dtype)

        return cls(name, organism, clean, data.trusted, data.untrusted, data.test, quirkiness)

    def limit(self, prompts: int) -> Self:
        """The same with at most so many trusted and test prompts, evenly spread; all for 0."""
        if not prompts:
            return self

        return replace(
            self, trusted=_spread(self.trusted, prompts), test=_spread(self.test, prompts)
        )


def development(tasks: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that detectors may be tuned on."""
    return tuple(task for task in tasks if _family(task) in DEVELOPMENT_FAMILIES)


def held_out(tasks: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that played no part in any choice."""
    return tuple(task for task in tasks if _family(task) not in DEVELOPMENT_FAMILIES)


def _family(organism: str) -> str:
    return get_task(organism_of(organism)[0]).family


def _spread(prompts: Prompts, count: int) -> Prompts:
    if len(prompts) <= count:
        return prompts

    return prompts.take(row * len(prompts) // count for row in range(count))
