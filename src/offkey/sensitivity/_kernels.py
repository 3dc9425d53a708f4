r"""Kernels between prompts: how alike the losses of two prompts answer to the same disturbance.

Each gives a row a prompt whose inner products are the kernel. The three agree in their limits:
small weight noise orders prompts as their gradients do, and long Langevin chains see the noise
that the loss on a sampling set leaves.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadValue, NonFinite
from offkey.models import Model
from offkey.sensitivity._langevin import Langevin
from offkey.sensitivity._own_answers import OwnAnswers
from offkey.volume import Noise, later_half

__all__ = ["GradientKernel", "Kernel", "LangevinKernel", "WeightNoiseKernel"]

_SHARE = 4
"""A chain's draws are kept if they fit into this part of the machine's memory."""


class Kernel(ABC):
    """Rows of prompts, from passes that do not depend on the prompts beside them."""

    @property
    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes a prompt."""

    def check(self, model: Model) -> None:
        """Refuses a model to which it does not apply; the model is not run.

        Raises:
            BadValue: nothing in it can be moved.
        """
        moving(model)

    @abstractmethod
    def rows(
        self, model: Model, batch: Batch
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """A row for each prompt in float32, and the number of the answer that it prefers.

        Raises:
            NonFinite: the loss of a prompt is not a number; names the draw and the prompt.
        """


class TraceKernel(Kernel):
    """Losses of the own answers at other weights, which all prompts share."""

    draws: int

    @property
    def passes(self) -> tuple[int, int]:
        """One for each draw, and one to see which answer is preferred."""
        return self.draws + 1, 0

    @abstractmethod
    def moves(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        """What is added to the weights, draw after draw."""

    def rows(
        self, model: Model, batch: Batch
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """The loss of each prompt's own answer in every draw, in nats."""
        start, _ = moving(model)
        answers = OwnAnswers(model, batch, start)
        _check(answers.losses(), batch, "model as it is")
        told = []
        for draw, move in enumerate(self.moves(model)):
            with model.perturbed(move):
                losses = answers.losses()
            _check(losses, batch, f"draw {draw}")
            told.append(losses)

        assert answers.classes is not None  # the first pass set them

        return torch.stack(told, dim=1).float(), answers.classes.float()


@dataclass(frozen=True)
class WeightNoiseKernel(TraceKernel):
    r"""Traces of losses under Gaussian noise on the weights of the later half of the blocks.

    .. math:: w_t = w^* + \rho\,\mathrm{rms}(W)\,\xi_t, \qquad \xi_t \sim N(0, I)

    with W the weight matrix (or vector) that a number belongs to. Needs no gradients. For small
    :math:`\rho` the covariance of two traces is the inner product of :class:`GradientKernel`,
    times :math:`\rho^2`.

    Attributes:
        draws: how many.
        scale: :math:`\rho`.
        seed: of the noise.

    References:
        Kreer et al., 2025 (the isotropic limit). https://arxiv.org/abs/2509.26544
    """

    draws: int = 32
    scale: float = 0.15
    seed: int = 0

    def moves(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        """Noise made parameter by parameter, from its seed."""
        _, weights = moving(model)
        sizes = {name: self.scale * size for name, size in spread(weights).items()}
        shapes = {name: weights[name].shape for name in sizes}
        for draw in range(self.draws):
            yield _Move(Noise(self.seed, draw), sizes, shapes)


@dataclass(frozen=True, eq=False)
class LangevinKernel(TraceKernel):
    """Traces of losses along a Langevin chain around the weights of the later half of the blocks.

    Every batch of prompts sees the same chain. Its draws are kept in bfloat16 where a quarter of
    the machine's memory holds them, and made again where not; the numbers are the same.

    Attributes:
        sampling: trusted batches whose own answers the chain keeps likely, one a step in turn.
        draws: how many.
        chain: how it moves.

    References:
        Keenan, Leckie, Erfani, 2026. https://arxiv.org/abs/2604.18970
    """

    sampling: Sequence[Batch]
    draws: int = 32
    chain: Langevin = Langevin()

    def moves(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        """The chain's draws, less the weights that it began at."""
        size = sum(2 * self.draws * weight.numel() for weight in moving(model)[1].values())
        if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE:
            yield from self._made(model)
            return
        key = (model.fingerprint, self.draws, self.chain, _digest(self.sampling))
        if _CHAINS.get(model, (None, []))[0] != key:
            _CHAINS[model] = key, list(self._made(model))
        yield from _CHAINS[model][1]

    def _made(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        start, weights = moving(model)
        sampling = [OwnAnswers(model, batch, start) for batch in self.sampling]
        for answers in sampling:
            _check(answers.losses(), answers.batch, "model as it is")

        def gradient(step: int, move: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with model.perturbed(move):
                return sampling[step % len(sampling)].gradient(tuple(weights))

        shapes = {name: weight.shape for name, weight in weights.items()}
        for move in self.chain.draws(gradient, shapes, self.draws):
            yield {name: x.to("cpu", torch.bfloat16) for name, x in move.items()}


@dataclass(frozen=True)
class GradientKernel(Kernel):
    r"""Sketched gradients of losses in the weights of the later half of the blocks.

    .. math:: \phi_b(x) = \sum_{i \equiv b} \epsilon_i\, \mathrm{rms}(W_i)\,
        \partial_i \ell(x), \qquad \epsilon_i = \pm 1

    over weights :math:`i` that share the bin b, so that inner products of rows estimate those of
    the gradients, without bias, with a standard error of about :math:`1/\sqrt{d}` of the product
    of their lengths. Weights are measured by the spread of their matrix, as
    :class:`WeightNoiseKernel` moves them.

    Attributes:
        width: d, the number of bins.
        seed: of the signs.

    References:
        Charikar, Chen, Farach-Colton, 2002 (count sketch). https://doi.org/10.1007/3-540-45465-9_59
        Pruthi et al., 2020 (gradient similarity). https://arxiv.org/abs/2002.08484
    """

    width: int = 4096
    seed: int = 0

    @property
    def passes(self) -> tuple[int, int]:
        """One of each."""
        return 1, 1

    def rows(
        self, model: Model, batch: Batch
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """The sketch of each prompt's gradient, prompt by prompt."""
        _, weights = moving(model)
        sizes = spread(weights)
        noise = Noise(self.seed, -1)
        signs = {
            name: noise.normals(name, 0, weights[name].numel()).sign_().to(model.device)
            for name in sizes
        }
        rows, classes = [], []
        for number in range(len(batch)):
            answers = OwnAnswers(model, batch.alone(number))
            grads = answers.gradient(tuple(sizes))
            row = sum(self.sketch(grad, signs[n]) * sizes[n] for n, grad in grads.items())
            assert isinstance(row, Tensor)
            assert answers.classes is not None  # the pass set them
            _check(row.sum()[None], answers.batch, "gradient")
            rows.append(row)
            classes.append(answers.classes)

        return torch.stack(rows), torch.cat(classes).float()

    def sketch(self, x: Tensor, signs: Tensor) -> Float[Tensor, " d"]:
        """One parameter's part of a row: its numbers with their signs, folded into the bins."""
        flat = x.reshape(-1).float() * signs
        whole = len(flat) // self.width * self.width
        row = flat[:whole].view(-1, self.width).sum(0)
        row[: len(flat) - whole] += flat[whole:]

        return row


@dataclass(frozen=True)
class _Move(Mapping[str, Tensor]):
    """Noise on weights, made one parameter at a time."""

    noise: Noise
    sizes: Mapping[str, float]
    shapes: Mapping[str, torch.Size]

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]

        return self.noise.normals(name, 0, shape.numel()).mul_(self.sizes[name]).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


_CHAINS: WeakKeyDictionary[Model, tuple[object, list[Mapping[str, Tensor]]]] = WeakKeyDictionary()


def moving(model: Model) -> tuple[int | None, dict[str, Tensor]]:
    """The first block of the later half, and the weights there.

    Raises:
        BadValue: none of them is a floating-point number.
    """
    start, names = later_half(model)
    weights = dict(model.module.named_parameters())
    found = {name: weights[name].detach() for name in names if weights[name].is_floating_point()}
    if not found:
        raise BadValue("none of its weights can be moved", where=f"model {model.name}",
                       mend="Load it with floating-point weights")  # fmt: skip

    return start, found


def spread(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Root mean square of each parameter that is not zero throughout.

    Raises:
        BadValue: all are.
    """
    sizes = {name: float(x.float().square().mean().sqrt()) for name, x in weights.items()}
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if not sizes:
        raise BadValue("all its weights are zero, so that nothing says how far to move them",
                       where="weight noise")  # fmt: skip

    return sizes


def _check(losses: Tensor, batch: Batch, where: str) -> None:
    if not bool(losses.isfinite().all()):
        row = int((~losses.isfinite()).nonzero()[0, 0])
        raise NonFinite(f"the loss is {losses[row].item()}",
                        where=f"{where}, prompt {batch.ids[row]}",
                        mend="Use a smaller scale, or load the model in float32")  # fmt: skip


def _digest(batches: Sequence[Batch]) -> str:
    hasher = sha256()
    for batch in batches:
        for value in (*batch.inputs.values(), batch.mask, batch.choices):
            if value is not None:
                hasher.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    return hasher.hexdigest()
