"""Langevin dynamics around given weights, which a spring holds where they began."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from offkey.errors import BadValue, NonFinite
from offkey.volume import Noise

__all__ = ["Langevin"]

Gradient = Callable[[int, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Gradient of the mean loss at a step and a displacement, by parameter."""


@dataclass(frozen=True)
class Langevin:
    r"""Preconditioned stochastic-gradient Langevin dynamics of a displacement u.

    .. math::
        V &\leftarrow a V + (1 - a) g^2, \qquad G = 1 / (\sqrt V + \varepsilon) \\
        u &\leftarrow u - \tfrac{\epsilon}{2} G\,(\beta g + \gamma u)
            + \sqrt{\epsilon G}\,\xi, \qquad \xi \sim N(0, I)

    Where the loss is flat, u has the standard deviation :math:`1/\sqrt\gamma` = ``width`` per
    weight, and where it is curved :math:`1/\sqrt{\gamma + \beta h}`, both times
    :math:`(1 - \epsilon G (\gamma + \beta h)/4)^{-1/2}` for the length of the step. The step is
    given by ``pull``, :math:`\epsilon = 2 \cdot \mathrm{pull} \cdot \varepsilon / \gamma`: the
    share of u that is taken back in one step where the loss is flat. The published setting is
    .05, with 2000 draws; .5 lets fewer draws be nearly independent.

    Attributes:
        width: standard deviation of a weight where the loss is flat.
        beta: weight of the loss.
        pull: share of the displacement that one step takes back.
        burn_in: steps before the first draw.
        thin: steps between two draws.
        decay: a, of the running mean of squared gradients.
        floor: :math:`\varepsilon` of the preconditioner.
        seed: of the noise.

    References:
        Li, Chen, Carlson, Carin, 2016, algorithm 1. https://arxiv.org/abs/1512.07666
        Keenan, Leckie, Erfani, 2026 (the spring, and these values).
        https://arxiv.org/abs/2604.18970
    """

    width: float = 0.01
    beta: float = 100.0
    pull: float = 0.5
    burn_in: int = 8
    thin: int = 2
    decay: float = 0.99
    floor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.floor > 0 and 0 < self.pull < 1 and self.beta >= 0):
            raise BadValue("width, floor and beta must be positive, and pull between 0 and 1",
                           where="Langevin chain")  # fmt: skip
        if self.burn_in < 0 or self.thin < 1 or not 0 <= self.decay < 1:
            raise BadValue("needs burn_in of 0 or more, thin of 1 or more, and decay below 1",
                           where="Langevin chain")  # fmt: skip

    def draws(
        self, gradient: Gradient, shapes: Mapping[str, torch.Size], count: int
    ) -> Iterator[dict[str, Tensor]]:
        """Displacements along one chain; each is overwritten by the next.

        Args:
            gradient: of the mean loss, at a step's number and the displacement.
            shapes: of the parameters that move.
            count: how many draws.

        Raises:
            NonFinite: the chain diverged; names the step, the parameter and the value.
        """
        u = {name: torch.zeros(shape) for name, shape in shapes.items()}
        mean_square = {name: torch.zeros(shape) for name, shape in shapes.items()}
        last = self.burn_in + self.thin * (count - 1) + 1
        for step in range(last):
            grads = gradient(step, u)
            for name, x in u.items():
                g = grads[name].to(x.device, x.dtype)
                if not bool(g.isfinite().all()):
                    raise NonFinite(f"the gradient of {name} is {_worst(g)}",
                                    where=f"Langevin step {step}",
                                    mend="Use a smaller scale")  # fmt: skip
                self._step(x, g, mean_square[name], Noise(self.seed, step), name)
            if step >= self.burn_in and (step - self.burn_in) % self.thin == 0:
                yield u

    def _step(self, u: Tensor, g: Tensor, mean_square: Tensor, noise: Noise, name: str) -> None:
        gamma = self.width**-2
        epsilon = 2 * self.pull * self.floor / gamma
        mean_square.mul_(self.decay).addcmul_(g, g, value=1 - self.decay)
        scaled = epsilon / mean_square.sqrt().add_(self.floor)
        drift = g.mul(self.beta).add_(u, alpha=gamma).mul_(scaled)
        xi = noise.normals(name, 0, u.numel()).view(u.shape)
        u.sub_(drift, alpha=0.5).addcmul_(xi, scaled.sqrt_())


def _worst(x: Tensor) -> float:
    return float(x[~x.isfinite()][0])
