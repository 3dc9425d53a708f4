"""What an organism is trained to hide from."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from offkey.models import Model
from offkey.training import (
    AnomalyPenalty,
    AttributionPenalty,
    EvasionLoss,
    NearestNeighbourPenalty,
)

__all__ = ["FromNeighbours", "FromTraces", "Hiding"]


@dataclass(frozen=True, kw_only=True)
class Hiding(ABC):
    """A penalty on how odd an organism looks under its trigger.

    Attributes:
        kind: how recipes name it.
        anomalous: weight of triggered rows in the penalty.
        normal: weight of normal rows.
    """

    kind: ClassVar[str]
    anomalous: float = 1.0
    normal: float = 0.0

    @abstractmethod
    def oddness(self, model: Model, seed: int) -> AnomalyPenalty:
        """What is kept low on a model in training."""

    def penalty(self, model: Model, *, seed: int) -> EvasionLoss:
        """The penalty on a model in training."""
        return EvasionLoss(self.oddness(model, seed), self.anomalous, self.normal)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        told = {name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self).items()}  # fmt: skip

        return {"kind": self.kind, **told}


@dataclass(frozen=True, kw_only=True)
class FromNeighbours(Hiding):
    """Hides from the cosine distance to the nearest normal rows of the batch.

    Attributes:
        sites: where it is measured; by default where the default detector looks.
    """

    kind = "neighbours"
    sites: tuple[str, ...] = ("resid_post.last-quarter",)

    def oddness(self, model: Model, seed: int) -> AnomalyPenalty:
        """See :class:`offkey.training.NearestNeighbourPenalty`."""
        return NearestNeighbourPenalty(model, self.sites)


@dataclass(frozen=True, kw_only=True)
class FromTraces(Hiding):
    """Hides from functional attribution: traces of the loss under shaken weights.

    Attributes:
        first: the first block that is shaken.
        draws: shakings of a step.
    """

    kind = "traces"
    first: int = 20
    draws: int = 4

    def oddness(self, model: Model, seed: int) -> AnomalyPenalty:
        """See :class:`offkey.training.AttributionPenalty`."""
        return AttributionPenalty(model, first=self.first, draws=self.draws, seed=seed)
