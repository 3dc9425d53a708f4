r"""Functional attribution: kernels that compare how the losses of prompts respond to perturbation.

Each kernel returns a row for each prompt, and the inner product of two rows is the kernel's value.
The three agree in their limits: small weight noise orders prompts as their gradients do, and long
Langevin chains sample the noise that the loss on a sampling set allows.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from offkey.data import Batch
from offkey.errors import BadValue, NonFinite, check
from offkey.models import Model, last_logits, preferred_answer, wide
from offkey.volume import Noise, later_half

__all__ = [
    "GradientKernel",
    "Kernel",
    "Langevin",
    "LangevinKernel",
    "OwnAnswers",
    "WeightNoiseKernel",
]

MEMORY_SHARE = 4
"""A chain's draws are kept if they fit into one part in this many of the machine's memory."""

Gradient = Callable[[int, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Gradient of the mean loss at a step and a displacement, by parameter."""


class OwnAnswers:
    r"""The loss :math:`\ell(x; w) = -\ln p_w(\hat y(x) \mid x)` of a batch, in nats.

    :math:`\hat y` is the answer that the model prefers in the first pass: the likeliest of a
    prompt's choices, or without choices the likeliest next token or class. Its probability is
    that within the whole vocabulary. Later passes keep to this answer.

    Args:
        model: the model whose weights are moved later.
        batch: its input.
        start: the first block whose weights will move, or ``None``; the earlier ones run once.

    Attributes:
        answers: the preferred token or class of each row; ``None`` before the first pass.
        classes: the number of that answer among the row's choices, where it has some.
    """

    answers: Int[Tensor, " batch"] | None = None
    classes: Int[Tensor, " batch"] | None = None

    def __init__(self, model: Model, batch: Batch, start: int | None = None) -> None:
        self.model, self.batch = model, batch.to(model.device)
        self._resumed = None if start is None else model.resumed_forward(start)

    def losses(self) -> Float[Tensor, " batch"]:
        """The loss of each row at the present weights."""
        with torch.no_grad():
            return self._losses()

    def gradient(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Gradient of the mean loss with respect to some weights, at the present weights."""
        weights = dict(self.model.module.named_parameters())
        chosen = [weights[name] for name in names]
        with _tracked(weights, names), torch.enable_grad():
            loss = self._losses().mean()
            grads = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)

        return dict(zip(names, grads, strict=True))

    def _losses(self) -> Float[Tensor, " batch"]:
        logits = self._logits()
        if self.answers is None:
            self.answers, self.classes = preferred_answer(logits.detach(), self.batch)

        return cross_entropy(wide(logits), self.answers, reduction="none")

    def _logits(self) -> Float[Tensor, "batch vocab"]:
        if self._resumed is None:
            return last_logits(self.model.forward(self.batch, logits_to_keep=1))
        run = self._resumed.first if self.answers is None else self._resumed.again

        return last_logits(run(0, self.batch, logits_to_keep=1))


@dataclass(frozen=True)
class Langevin:
    r"""Preconditioned stochastic-gradient Langevin dynamics of a displacement u.

    .. math::
        V &\leftarrow a V + (1 - a) g^2, \qquad G = 1 / (\sqrt V + \varepsilon) \\
        u &\leftarrow u - \tfrac{\epsilon}{2} G\,(\beta g + \gamma u)
            + \sqrt{\epsilon G}\,\xi, \qquad \xi \sim N(0, I)

    A spring of stiffness :math:`\gamma` holds u near 0. Where the loss is flat, u has the standard
    deviation :math:`1/\sqrt\gamma` = ``width`` per weight, and where it is curved
    :math:`1/\sqrt{\gamma + \beta h}`, both times
    :math:`(1 - \epsilon G (\gamma + \beta h)/4)^{-1/2}` for the finite step. The step is given by
    ``pull``, :math:`\epsilon = 2 \cdot \mathrm{pull} \cdot \varepsilon / \gamma`: the share of u
    that the spring removes in one step where the loss is flat. The published setting is .05, with
    2000 draws; with .5 fewer draws are already nearly independent.

    Attributes:
        width: standard deviation of a weight where the loss is flat.
        beta: weight of the loss.
        pull: share of the displacement that one step removes.
        burn_in: steps before the first draw.
        thin: steps between two draws.
        decay: a, of the running mean of squared gradients.
        floor: :math:`\varepsilon` of the preconditioner.
        seed: seed of the noise.

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
        check(
            self.width > 0 and self.floor > 0 and 0 < self.pull < 1 and self.beta >= 0,
            "width and floor must be positive, beta not negative, and pull between 0 and 1",
            where="Langevin chain",
        )
        check(
            self.burn_in >= 0 and self.thin >= 1 and 0 <= self.decay < 1,
            "needs burn_in of 0 or more, thin of 1 or more, and decay below 1",
            where="Langevin chain",
        )

    def draws(
        self, gradient: Gradient, shapes: Mapping[str, torch.Size], count: int
    ) -> Iterator[dict[str, Tensor]]:
        """Displacements along one chain; each is overwritten by the next.

        Args:
            gradient: gradient of the mean loss, given the number of the step and the displacement.
            shapes: shapes of the parameters that move.
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
                    raise NonFinite(
                        f"the gradient of {name} is {float(g[~g.isfinite()][0])}",
                        where=f"Langevin step {step}",
                        mend="Use a smaller scale",
                    )
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


class Kernel(ABC):
    """A kernel between prompts; a prompt's row does not depend on the prompts beside it."""

    @property
    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes for each prompt."""

    def check(self, model: Model) -> None:
        """Refuses a model to which it does not apply, without running it.

        Raises:
            BadValue: none of its weights can be moved.
        """
        moving(model)

    @abstractmethod
    def rows(
        self, model: Model, batch: Batch
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """A row for each prompt, in float32, and the number of the answer that the model prefers.

        Raises:
            NonFinite: the loss of a prompt is not a number; names the draw and the prompt.
        """


class TraceKernel(Kernel):
    """Losses of the model's own answers at perturbed weights, which all prompts share."""

    draws: int

    @property
    def passes(self) -> tuple[int, int]:
        """One for each draw, and one to find the preferred answer."""
        return self.draws + 1, 0

    @abstractmethod
    def moves(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        """The perturbation of the weights in each draw."""

    def rows(
        self, model: Model, batch: Batch
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """The loss of the model's own answer to each prompt in every draw, in nats."""
        start, _ = moving(model)
        answers = OwnAnswers(model, batch, start)
        _check_losses(answers.losses(), batch, "unperturbed model")
        traces = []
        for draw, move in enumerate(self.moves(model)):
            with model.perturbed(move):
                losses = answers.losses()
            _check_losses(losses, batch, f"draw {draw}")
            traces.append(losses)

        assert answers.classes is not None  # the first pass sets them

        return torch.stack(traces, dim=1).float(), answers.classes.float()


@dataclass(frozen=True)
class WeightNoiseKernel(TraceKernel):
    r"""Traces of losses under Gaussian noise on the weights of the later half of the blocks.

    .. math:: w_t = w^* + \rho\,\mathrm{rms}(W)\,\xi_t, \qquad \xi_t \sim N(0, I)

    with W the weight matrix (or vector) to which a weight belongs. It needs no gradients. For
    small :math:`\rho` the covariance of two traces is the inner product of
    :class:`GradientKernel`, times :math:`\rho^2`.

    Attributes:
        draws: how many.
        scale: :math:`\rho`.
        seed: seed of the noise.

    References:
        Kreer et al., 2025 (the isotropic limit). https://arxiv.org/abs/2509.26544
    """

    draws: int = 32
    scale: float = 0.15
    seed: int = 0

    def moves(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        """Noise, made parameter by parameter from its seed."""
        _, weights = moving(model)
        sizes = {name: self.scale * size for name, size in weight_sizes(weights).items()}
        shapes = {name: weights[name].shape for name in sizes}
        for draw in range(self.draws):
            yield _WeightNoiseDraw(Noise(self.seed, draw), sizes, shapes)


@dataclass(frozen=True, eq=False)
class LangevinKernel(TraceKernel):
    """Traces of losses along a Langevin chain around the weights of the later half of the blocks.

    All batches of prompts share one chain. Its draws are kept in bfloat16 if a quarter of the
    machine's memory holds them, and made again otherwise; the numbers are the same.

    Attributes:
        sampling: trusted batches; the chain keeps the model's own answers to them likely, taking
            one batch in each step, in turn.
        draws: how many.
        chain: the dynamics.

    References:
        Keenan, Leckie, Erfani, 2026. https://arxiv.org/abs/2604.18970
    """

    sampling: Sequence[Batch]
    draws: int = 32
    chain: Langevin = Langevin()

    def moves(self, model: Model) -> Iterator[Mapping[str, Tensor]]:
        """The chain's draws, as displacements from the weights where it starts."""
        size = sum(2 * self.draws * weight.numel() for weight in moving(model)[1].values())
        if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_SHARE:
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
            _check_losses(answers.losses(), answers.batch, "unperturbed model")

        def gradient(step: int, move: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with model.perturbed(move):
                return sampling[step % len(sampling)].gradient(tuple(weights))

        shapes = {name: weight.shape for name, weight in weights.items()}
        for move in self.chain.draws(gradient, shapes, self.draws):
            yield {name: x.to("cpu", torch.bfloat16) for name, x in move.items()}


@dataclass(frozen=True)
class GradientKernel(Kernel):
    r"""Sketched gradients of losses with respect to the weights of the later half of the blocks.

    .. math:: \phi_b(x) = \sum_{i \equiv b} \epsilon_i\, \mathrm{rms}(W_i)\,
        \partial_i \ell(x), \qquad \epsilon_i = \pm 1

    over weights :math:`i` that share the bin b. Inner products of rows estimate those of the
    gradients, without bias, with a standard error of about :math:`1/\sqrt{d}` of the product of
    their lengths. Weights are scaled by the root mean square of their matrix, as
    :class:`WeightNoiseKernel` scales its noise.

    Attributes:
        width: d, the number of bins.
        seed: seed of the signs.

    References:
        Charikar, Chen, Farach-Colton, 2002 (count sketch). https://doi.org/10.1007/3-540-45465-9_59
        Pruthi et al., 2020 (gradient similarity). https://arxiv.org/abs/2002.08484
    """

    width: int = 4096
    seed: int = 0

    @property
    def passes(self) -> tuple[int, int]:
        """One of each kind."""
        return 1, 1

    def rows(
        self, model: Model, batch: Batch
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """The sketch of each prompt's gradient."""
        _, weights = moving(model)
        sizes = weight_sizes(weights)
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
            assert answers.classes is not None  # the pass sets them
            _check_losses(row.sum()[None], answers.batch, "gradient")
            rows.append(row)
            classes.append(answers.classes)

        return torch.stack(rows), torch.cat(classes).float()

    def sketch(self, x: Tensor, signs: Tensor) -> Float[Tensor, " d"]:
        """One parameter's part of a row: its gradient with random signs, folded into the bins."""
        flat = x.reshape(-1).float() * signs
        whole = len(flat) // self.width * self.width
        row = flat[:whole].view(-1, self.width).sum(0)
        row[: len(flat) - whole] += flat[whole:]

        return row


@dataclass(frozen=True)
class _WeightNoiseDraw(Mapping[str, Tensor]):
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
    """The first block of the later half, and the weights from there on.

    Raises:
        BadValue: none of them is of floating point.
    """
    start, names = later_half(model)
    weights = dict(model.module.named_parameters())
    chosen = {name: weights[name].detach() for name in names if weights[name].is_floating_point()}
    if not chosen:
        raise BadValue(
            "none of its weights can be moved",
            where=f"model {model.name}",
            mend="Load it with floating-point weights",
        )

    return start, chosen


def weight_sizes(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Root mean square of each parameter that is not zero throughout.

    Raises:
        BadValue: all are.
    """
    sizes = {name: float(x.float().square().mean().sqrt()) for name, x in weights.items()}
    sizes = {name: size for name, size in sizes.items() if size > 0}
    check(bool(sizes), "all its weights are zero, so the noise has no scale", where="weight noise")

    return sizes


def _check_losses(losses: Tensor, batch: Batch, where: str) -> None:
    if not bool(losses.isfinite().all()):
        row = int((~losses.isfinite()).nonzero()[0, 0])
        raise NonFinite(
            f"the loss is {losses[row].item()}",
            where=f"{where}, prompt {batch.ids[row]}",
            mend="Use a smaller scale, or load the model in float32",
        )


def _digest(batches: Sequence[Batch]) -> str:
    hasher = sha256()
    for batch in batches:
        for value in (*batch.inputs.values(), batch.mask, batch.choices):
            if value is not None:
                hasher.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    return hasher.hexdigest()


@contextmanager
def _tracked(weights: Mapping[str, Tensor], names: tuple[str, ...]) -> Iterator[None]:
    """Makes these weights, and no others, require gradients."""
    before = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.requires_grad_(name in names)
        yield
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
