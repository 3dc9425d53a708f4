"""The contract of a feature: what happened inside the model, one vector per prompt and site."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch, Prompts, TensorPrompts
from offkey.models import Model, Reading, Site
from offkey.passes import Plan

__all__ = ["Feature"]


class Feature(ABC):
    """Turns a reading of the model into one vector per prompt and site.

    A feature says in :meth:`plan` what it must read. One that learns something from trusted
    prompts first (a mean, a probe) is given their readings by :meth:`prepare_batch` and then
    :meth:`prepared`; the next :meth:`prepare_batch` begins anew. What it has learned is part of
    its state; its plan and sites do not depend on it. Rows must not depend on their neighbours in
    the batch.
    """

    name: ClassVar[str]
    default_score: ClassVar[str] = "mahalanobis"
    prepares: ClassVar[bool] = False

    @abstractmethod
    def plan(self, model: Model) -> Plan:
        """What must be read on ``model``."""

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """Where it gives vectors, in the model's order; the sites it reads, if not said here."""
        return self.plan(model).reads

    def preparation(self, model: Model) -> Plan:
        """What :meth:`prepare_batch` must be given; all that is read later, if not said here."""
        return self.plan(model)

    @abstractmethod
    def __call__(self, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """One float32 vector per row and site."""

    def extract(self, model: Model, batch: Batch) -> dict[Site, Float[Tensor, "batch d"]]:
        """Runs the extra passes that the plan declares; features without any never get here."""
        raise NotImplementedError(f"{self.name} declares extra passes but does not extract")

    def check_trusted(self, prompts: Prompts | TensorPrompts) -> None:
        """Refuses trusted prompts from which it cannot learn, before the model is run."""

    def prepare_batch(self, reading: Reading) -> None:
        """Sees a batch of trusted prompts before anything is extracted."""

    def prepared(self) -> None:
        """Called once after the last :meth:`prepare_batch`."""

    def state(self) -> dict[str, Any]:
        """Settings (plain values) and what was learned (tensors)."""
        return {}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The feature that :meth:`state` described."""
        return cls(**state)
