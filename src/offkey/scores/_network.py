"""What scores share that train a small network on trusted rows."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from offkey.errors import NonFinite
from offkey.scores._tensors import TensorScore, check_number
from offkey.stats import Sample, Statistic
from offkey.training import TrainingSettings, train

__all__ = ["NetworkScore"]

_LEAST = 10
"""Trusted rows without which there is nothing to hold out."""

_HELD_OUT = 5
"""One trusted row in so many is kept from training and chooses when it was best."""

_CHECKS = 20
"""How often in a training the held-out rows are looked at."""


class NetworkScore(TensorScore):
    """A score that trains a network on the principal components of trusted rows.

    A fifth of the trusted rows is held out: of the states that the training passes through, the
    one with the smallest loss on them is kept. Principal components come from the others. A
    subclass builds the network, says its loss, and learns what else it needs from the trained
    network in ``_learn``. Training and initial weights depend on the generator alone.
    """

    mean_: Float[Tensor, " d"]
    axes_: Float[Tensor, "d k"]
    spread_: Float[Tensor, " k"]
    parameters_: Float[Tensor, " p"]
    _network: Any

    components: int
    steps: int
    rate: float
    rows: int

    def _check_training(self) -> None:
        """Checks the settings that all of them have."""
        check_number(f"{self.name} components", self.components, least=1, whole=True)
        check_number(f"{self.name} steps", self.steps, least=1, whole=True)
        check_number(f"{self.name} rate", self.rate, least=1e-9)
        check_number(f"{self.name} rows", self.rows, least=_LEAST, whole=True)

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Trains the network; ``generator`` holds out rows and draws weights and batches."""
        assert isinstance(trusted, Sample)
        self._need(trusted, _LEAST)
        rows = trusted.rows.to(torch.float64)
        order = torch.randperm(len(rows), generator=generator)
        held = len(rows) // _HELD_OUT
        kept, held_out = rows[order[held:]], rows[order[:held]]
        self._reduce(kept)
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = self._build(self.axes_.shape[1])
            self._train(self._coordinates(kept).float(), self._coordinates(held_out).float(), seed)
        vector = parameters_to_vector(self._network.parameters())
        self.parameters_ = vector.detach().clone()
        self._freeze()
        self._learn(rows, held_out)

        return self

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The score that :meth:`state` described."""
        score = super().from_state(state)
        if "parameters_" in state:
            with torch.random.fork_rng(devices=[]):
                score._network = score._build(score.axes_.shape[1])
            vector_to_parameters(score.parameters_, score._network.parameters())
            score._freeze()

        return score

    def _freeze(self) -> None:
        """Makes the network ready to score: a fixed function in float64."""
        self._network.double().requires_grad_(False)

    def _reduce(self, rows: Float[Tensor, "n d"]) -> None:
        """Learns mean and principal axes, and what to divide each component by."""
        self.mean_ = rows.mean(dim=0)
        values, axes = torch.linalg.svd(rows - self.mean_, full_matrices=False)[1:]
        spread = values[: self.components] / len(rows) ** 0.5
        floor = 1e-9 * float(torch.linalg.vector_norm(rows, dim=1).mean())
        varies = spread > floor
        if bool(varies.any()):
            self.axes_ = axes[: self.components][varies].T.contiguous()
            self.spread_ = self._scale(spread[varies])
        else:
            self.axes_ = torch.zeros(rows.shape[1], 1, dtype=rows.dtype)
            self.spread_ = torch.ones(1, dtype=rows.dtype)

    def _coordinates(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return ((x - self.mean_) @ self.axes_) / self.spread_

    def _train(
        self, kept: Float[Tensor, "n k"], held_out: Float[Tensor, "m k"], seed: int
    ) -> None:
        def held_out_loss() -> dict[str, float]:
            with torch.no_grad():
                return {"held out": -float(self._loss(held_out, noisy=False))}

        settings = TrainingSettings(
            steps=self.steps,
            batch=min(len(kept), 256),
            rate=self.rate,
            seed=seed,
            check_every=max(1, self.steps // _CHECKS),
        )
        try:
            train(
                dict(self._network.named_parameters()),
                lambda rows: self._loss(kept[rows], noisy=True),
                len(kept),
                settings,
                validate=held_out_loss,
            )
        except NonFinite as error:
            raise NonFinite(error.what, where=f"{self.name} {error.where}",
                            mend="Lower its rate") from error  # fmt: skip

    @abstractmethod
    def _scale(self, spread: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """What each component is divided by, given its standard deviation."""

    @abstractmethod
    def _build(self, width: int) -> nn.Module:
        """A network with fresh weights for coordinates of this width."""

    @abstractmethod
    def _loss(self, y: Float[Tensor, "n k"], *, noisy: bool) -> Float[Tensor, ""]:
        """Mean loss of coordinates, in nats; ``noisy`` while it trains."""

    @abstractmethod
    def _learn(self, rows: Float[Tensor, "n d"], held_out: Float[Tensor, "m d"]) -> None:
        """Learns what scoring needs besides, from all trusted rows or those held out."""
