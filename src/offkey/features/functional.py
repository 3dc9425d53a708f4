"""How a prompt's answer responds to disturbed weights, for comparison with trusted prompts."""

from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch
from offkey.errors import check, check_choice
from offkey.features._sample import TrustedSample, batch_from_state, batch_state, joined
from offkey.features.feature import Feature, Learner
from offkey.models import Model, Reading, Site
from offkey.passes import Plan
from offkey.sensitivity import (
    GradientKernel,
    Kernel,
    Langevin,
    LangevinKernel,
    WeightNoiseKernel,
)

__all__ = ["ANSWER", "Functional"]

LOGITS = Site("logits")
ANSWER = Site("module", path="answer")
"""The site of the number of the preferred answer, if it is asked for."""
ROWS = 8
"""Trusted prompts in one step of a chain."""

KernelName = Literal["weight-noise", "sgld", "gradients"]


class Functional(Feature):
    r"""The vector by which functional attribution compares prompts.

    With the kernels ``"weight-noise"`` and ``"sgld"`` it is the prompt's trace: the loss, in nats,
    of the answer that the undisturbed model prefers, at each of several draws of the weights,
    which all prompts share. With ``"gradients"`` it is a sketch of the gradient of that loss, to
    which traces under small noise are equivalent. The weights of the later half of the blocks
    move. A prompt whose answer comes about as those of trusted prompts responds to the draws as
    they do: the scores ``functional-mean``, ``functional-mean-ccc``, ``functional-top-ccc`` and
    ``functional-class-ccc`` measure how little it does.

    A chain (``"sgld"``) is held to the own answers of trusted prompts; each of its steps costs a
    forward and a backward pass over eight of them, besides the passes a prompt that the plan
    declares.

    Args:
        kernel: how weights are disturbed.
        draws: how many times; the length of a trace.
        scale: of the noise; root mean square of a weight's matrix = 1 for ``"weight-noise"`` (.15
            if left out), in weights for ``"sgld"`` (.01).
        width: length of a sketch.
        sampling: how many trusted prompts a chain is held to, at most.
        answers: also give the number of the preferred answer, at the site ``module:answer``, for
            ``functional-class-ccc`` alone.
        seed: of draws and sketch.

    References:
        Keenan, Leckie, Erfani, 2026. https://arxiv.org/abs/2604.18970
    """

    name: ClassVar[str] = "functional"
    default_score: ClassVar[str] = "functional-top-ccc"
    sampled_: list[dict[str, Any]]

    def __init__(
        self,
        kernel: KernelName = "weight-noise",
        draws: int = 32,
        scale: float | None = None,
        width: int = 4096,
        sampling: int = 64,
        answers: bool = False,
        seed: int = 0,
    ) -> None:
        check_choice(f"feature {self.name}, kernel", kernel, get_args(KernelName))
        check(
            draws >= 2 and width >= 2 and sampling >= 1 and (scale is None or scale > 0),
            "needs two draws, a width of two, a sampling prompt, a positive scale",
            where=f"feature {self.name}",
        )
        self.kernel, self.draws, self.scale, self.width = kernel, draws, scale, width
        self.sampling, self.answers, self.seed = sampling, answers, seed
        self.learns = kernel == "sgld"

    def plan(self, model: Model) -> Plan:
        """The extra passes of the kernel.

        Raises:
            BadValue: no weight of the model can be moved.
        """
        kernel = self._kernel()
        kernel.check(model)
        forwards, backwards = kernel.passes

        return Plan(extra_forwards=forwards, extra_backwards=backwards)

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits, and the answer where it is asked for."""
        return (LOGITS, ANSWER) if self.answers else (LOGITS,)

    def learner(self, model: Model) -> Learner:
        """Keeps trusted prompts, as many as are asked for, those of like length together.

        Raises:
            NotEnoughData: there are none.
        """
        sample = TrustedSample(self.name, self.sampling)
        while (reading := (yield)) is not None:
            sample.add(reading.batch)
        self.sampled_ = [batch_state(batch) for batch in _packed(sample.rows())]

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The trace or sketch of each prompt.

        Raises:
            BadValue: a chain that has seen no trusted prompts.
            NonFinite: a loss or a chain is no longer a number; names the draw or the step.
        """
        if self.learns:
            self.need_learned()
        rows, answers = self._kernel().rows(model, reading.batch)

        return {LOGITS: rows, ANSWER: answers[:, None]} if self.answers else {LOGITS: rows}

    def _kernel(self) -> Kernel:
        if self.kernel == "gradients":
            return GradientKernel(self.width, self.seed)
        if self.kernel == "weight-noise":
            return WeightNoiseKernel(self.draws, self.scale or 0.15, self.seed)

        chain = Langevin(width=self.scale or 0.01, seed=self.seed)

        sampled = self.learned().get("sampled_", [])

        return LangevinKernel(tuple(map(batch_from_state, sampled)), self.draws, chain)


def _packed(rows: list[Batch]) -> list[Batch]:
    def length(row: Batch) -> tuple[int, str]:
        return 0 if row.mask is None else row.mask.shape[1], row.ids[0]

    ordered = sorted(rows, key=length)

    return [joined(ordered[n : n + ROWS]) for n in range(0, len(ordered), ROWS)]
