"""A task with the models that are compared on it."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from offkey.data import Prompts
from offkey.models import Model, adapter_folder, bundled_adapters, load
from offkey.tasks import BASE, get_task, task_names

__all__ = ["Arena", "learned_tasks"]


@dataclass(frozen=True)
class Arena:
    """A task, its organism and the same model untouched, on the same prompts.

    Attributes:
        task: name of the task.
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
    def of(cls, task: str, *, seed: int = 0, clean: Model | None = None) -> Self:
        """Loads a task's organism and makes its prompts.

        Args:
            task: name of a task that has an organism.
            seed: of the prompts; 0 is the one that the organism was measured on.
            clean: the base model, where it is loaded already; the organism gets its dtype.

        Raises:
            UnknownName: there is no such task, or no organism of it.
        """
        data = get_task(task).make(seed)
        clean = clean or load(BASE)
        organism = load(BASE, f"bundled:{task}", dtype=clean.dtype)
        quirkiness = recipe_of(task)["measured"]["quirkiness"]

        return cls(task, organism, clean, data.trusted, data.untrusted, data.test,
                   quirkiness)  # fmt: skip

    def cut(self, prompts: int) -> Self:
        """The same with at most so many trusted and test prompts, evenly spread; 0 for all."""
        if not prompts:
            return self

        return replace(self, trusted=_spread(self.trusted, prompts),
                       test=_spread(self.test, prompts))  # fmt: skip

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """How the organism was trained and how it behaves."""
        return recipe_of(self.task)


def _spread(prompts: Prompts, count: int) -> Prompts:
    if len(prompts) <= count:
        return prompts

    return prompts.take(row * len(prompts) // count for row in range(count))


def recipe_of(task: str) -> dict[str, Any]:
    """The recipe that lies beside a bundled adapter."""
    text = (adapter_folder(f"bundled:{task}") / "recipe.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)

    return found


def learned_tasks(*, triggered: bool = False) -> tuple[str, ...]:
    """Tasks whose bundled organism plays both characters, by name.

    Args:
        triggered: those where a trigger, rather than a name, says which rule holds; they are
            apart, and no mean over quirky tasks holds them.
    """
    known = set(task_names()) & set(bundled_adapters())

    return tuple(
        name
        for name in sorted(known)
        if recipe_of(name)["measured"]["learned"] and get_task(name).triggered == triggered
    )
