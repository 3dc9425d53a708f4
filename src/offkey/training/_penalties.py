"""What a model can be trained to keep low beside the loss of its answers: how odd it looks inside.

An oddness sees a forward pass and gives one number a row; a penalty weighs those of anomalous and
of normal rows. They are used to make organisms that hide from a detector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Forward", "Logits", "Oddness", "Penalty"]

Logits = Float[Tensor, "batch vocabulary"]
Forward = Callable[[], Logits]
"""One pass over the batch in hand: logits at the last token."""


class Oddness(Protocol):
    """How odd each row of a batch looks; higher is odder."""

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, " batch"]]:
        """Runs the forward pass, as often as it needs, and tells the logits and the oddness."""


@dataclass(frozen=True)
class Penalty:
    """The mean oddness of anomalous rows and that of normal rows, weighed.

    Attributes:
        oddness: what is kept low.
        anomalous: weight of anomalous rows.
        normal: weight of normal rows, which holds the normal state in place.
    """

    oddness: Oddness
    anomalous: float = 1.0
    normal: float = 0.5

    def __call__(
        self, forward: Forward, anomalous: Bool[Tensor, " batch"]
    ) -> tuple[Logits, Float[Tensor, ""]]:
        """The logits, and what is added to the loss; a kind of rows that is absent adds 0."""
        logits, odd = self.oddness(forward, anomalous)
        weights = torch.where(
            anomalous,
            self.anomalous / anomalous.sum().clamp(min=1),
            self.normal / (~anomalous).sum().clamp(min=1),
        )

        return logits, (odd * weights.to(odd)).sum()
