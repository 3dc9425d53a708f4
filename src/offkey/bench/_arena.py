"""A task with the models that are compared on it."""

from dataclasses import dataclass, replace
from typing import Self

from offkey.bench._organisms import Organisms
from offkey.data import Prompts
from offkey.models import Model, load
from offkey.tasks import get_task, organism_of

__all__ = ["Arena"]


@dataclass(frozen=True)
class Arena:
    """A task, its organism and the same model untouched, on the same prompts.

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
        """Loads an organism, and makes the prompts of the seed that it was trained on.

        Args:
            name: of the organism: its task, with ``-SEED`` for another seed of it.
            organisms: where it is found; among the bundled ones if left out.
            clean: the base model, where it is loaded already; the organism gets its dtype.

        Raises:
            UnknownName: there is no such task, or no organism of it.
        """
        organisms = organisms or Organisms()
        task, seed = organism_of(name)
        quirkiness = organisms.recipe(name)["measured"]["quirkiness"]
        data = get_task(task).make(seed)
        clean = clean or load(organisms.base)
        organism = load(organisms.base, organisms.adapter(name), dtype=clean.dtype)

        return cls(name, organism, clean, data.trusted, data.untrusted, data.test,
                   quirkiness)  # fmt: skip

    def cut(self, prompts: int) -> Self:
        """The same with at most so many trusted and test prompts, evenly spread; 0 for all."""
        if not prompts:
            return self

        return replace(self, trusted=_spread(self.trusted, prompts),
                       test=_spread(self.test, prompts))  # fmt: skip


def _spread(prompts: Prompts, count: int) -> Prompts:
    if len(prompts) <= count:
        return prompts

    return prompts.take(row * len(prompts) // count for row in range(count))
