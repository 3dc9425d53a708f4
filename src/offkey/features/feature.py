"""The contract of a feature: what happened inside the model, one vector per prompt and site."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.errors import check
from offkey.models import Model, Reading, Site
from offkey.passes import Plan
from offkey.storage import Stateful

__all__ = ["Feature", "Learner", "learn_together", "own_reading"]

Learner = Generator[None, Reading | None, None]
"""A feature at work on trusted prompts: it is sent reading after reading, and ``None`` at last."""


class Feature(Stateful, ABC):
    """Turns a reading of the model into one vector per prompt and site.

    A feature says in :meth:`plan` what must be read, and :meth:`rows` makes vectors of it. One
    that learns something from trusted prompts first (a mean, a probe) sets ``learns`` and
    implements :meth:`learner`; what it learned is stored under names that end in ``_``. Its plan
    and sites do not depend on it. A prompt's row must not depend on its neighbours in the batch.

    Attributes:
        learns: whether it must see trusted prompts before it gives rows.
    """

    name: ClassVar[str]
    default_score: ClassVar[str] = "mahalanobis"
    learns: bool = False

    @abstractmethod
    def plan(self, model: Model) -> Plan:
        """What must be read on ``model``."""

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """Where it gives vectors, in the model's order; by default the sites that it reads."""
        return self.plan(model).reads

    @abstractmethod
    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """One float32 vector per prompt and site.

        A feature whose plan declares passes of its own runs them here on ``reading.batch``.
        """

    def learning_plan(self, model: Model) -> Plan:
        """What must be read of trusted prompts; by default what is read of any prompt."""
        return self.plan(model)

    def check_trusted(self, prompts: Prompts | TensorPrompts) -> None:
        """Refuses trusted prompts from which it cannot learn, before the model is run."""

    def learner(self, model: Model) -> Learner:
        """Learns from readings of trusted prompts, which it is sent one by one.

        A generator, so that several features learn from one pass and none holds more than it
        needs. After the last reading it is sent ``None``, and stores what it learned::

            moments = Moments()
            while (reading := (yield)) is not None:
                moments.update(reading["resid_post.3"], reading.batch.ids)
            self.mean_ = moments.mean
        """
        while (yield) is not None:
            pass

    def learn(self, model: Model, readings: Iterable[Reading]) -> None:
        """Learns from readings of trusted prompts; what was learned before is replaced."""
        _feed([self.learner(model)], ([reading] for reading in readings))

    def need_learned(self) -> None:
        """Refuses to go on before anything was learned.

        Raises:
            BadValue: nothing was.
        """
        check(
            bool(self.learned()),
            "it has seen no trusted prompts yet",
            where=f"feature {self.name}",
            mend="Let it learn from some; fitting a detector does",
        )


def learn_together(features: Sequence[Feature], model: Model, readings: Iterable[Reading]) -> None:
    """Lets several features learn from one pass, each from what its ``learning_plan`` reads."""
    plans = [feature.learning_plan(model) for feature in features]
    shared = ([own_reading(reading, plan) for plan in plans] for reading in readings)
    _feed([feature.learner(model) for feature in features], shared)


def own_reading(reading: Reading, plan: Plan) -> Reading:
    """What one plan asked for, of what was read for several."""
    values = {site: reading.values[site] for site in plan.reads}
    grads = {site: reading.grads[site] for site in plan.gradients}

    return replace(reading, values=values, grads=grads)


def _feed(learners: Sequence[Learner], readings: Iterable[Sequence[Reading]]) -> None:
    """Sends each learner its part of every reading, and then the end."""
    for learner in learners:
        next(learner)
    for parts in readings:
        for learner, part in zip(learners, parts, strict=True):
            learner.send(part)
    for learner in learners:
        next(learner, None)
