"""How a dictionary is trained."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from offkey.errors import check, check_choice, check_positive
from offkey.passes import Blocks, ShuffleBuffer
from offkey.training import TrainingSettings

__all__ = ["Annealed", "DictionaryRecipe"]


@dataclass(frozen=True)
class Annealed(TrainingSettings):
    """TrainingSettings whose rate falls linearly to 0 over a last share of the steps.

    Attributes:
        cooldown: that share of the steps.
    """

    cooldown: float = 0.2

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)

        return super().rate_at(step) * min(1.0, left)


@dataclass(frozen=True)
class DictionaryRecipe:
    r"""How a dictionary is trained.

    Attributes:
        latents: number of latents.
        active: k of TopK; for JumpReLU, how many shall be active on average.
        kind: activation function of the dictionary.
        rows: activations to train on in total, repeats included.
        batch: activations a step.
        rate: learning rate; by default :math:`2 \cdot 10^{-4} \sqrt{2^{14} / M}`.
        warmup: share of the steps in which rate and sparsity rise.
        dead_after: rows after which a latent that was never active counts as dead.
        auxiliary: weight of the dead latents' loss: AuxK; for JumpReLU, the pull on thresholds
            that dead latents miss.
        sparsity: weight of JumpReLU's :math:`(L_0 / \text{active} - 1)^2`.
        bandwidth: width of the kernel of JumpReLU's pseudo-derivatives, on scaled activations.
        buffer: batches held in memory and drawn from in random order.
        longest: rows longer than so many times the median length are left out.
        seed: of everything random.
    """

    latents: int = 2048
    active: int = 32
    kind: Literal["topk", "jumprelu"] = "topk"
    rows: int = 4_000_000
    batch: int = 4096
    rate: float | None = None
    warmup: float = 0.05
    dead_after: int = 500_000
    auxiliary: float = 1 / 32
    sparsity: float = 1.0
    bandwidth: float = 0.1
    buffer: int = 32
    longest: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latents", "active", "rows", "batch", "dead_after", "bandwidth", "buffer"):
            check_positive(name, getattr(self, name))
        check(
            self.active <= self.latents, f"{self.active} of {self.latents} latents", where="active"
        )
        check_choice("kind", self.kind, ("topk", "jumprelu"))

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return -(-self.rows // self.batch)

    def shuffled(self, blocks: Blocks, device: torch.device | str) -> ShuffleBuffer:
        """The training batches, drawn in random order from the blocks.

        Raises:
            NotEnoughData: fewer rows than a batch.
        """
        return ShuffleBuffer(
            blocks,
            batch=self.batch,
            size=self.buffer,
            seed=self.seed,
            longest=self.longest,
            device=device,
        )

    def settings(self, save_every: int = 200) -> Annealed:
        """The training loop's settings; what it calls a row is a batch here."""
        rate = self.rate or 2e-4 * math.sqrt(2**14 / self.latents)

        return Annealed(
            steps=self.steps,
            batch=1,
            rate=rate,
            warmup=round(self.warmup * self.steps),
            seed=self.seed,
            save_every=save_every,
        )

    def as_dict(self) -> Mapping[str, Any]:
        """The recipe, as JSON has it."""
        return asdict(self)
