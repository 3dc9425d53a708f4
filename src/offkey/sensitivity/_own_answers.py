"""Losses of the answers that a model itself prefers, while its weights are elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from offkey.data import Batch
from offkey.errors import BadInput
from offkey.models import Model
from offkey.volume import Tail

__all__ = ["OwnAnswers", "last_logits", "preferred"]


class OwnAnswers:
    r"""The loss :math:`\ell(x; w) = -\ln p_w(\hat y(x) \mid x)` of a batch, in nats.

    :math:`\hat y` is the answer that the model prefers at the first pass: the likeliest of a
    prompt's choices, against the whole vocabulary; without choices the likeliest next token, or
    the likeliest class. Later passes hold to it.

    Args:
        model: whose weights are moved later.
        batch: what it is given.
        start: the first block whose weights will move, or ``None``; the earlier ones are run
            once.

    Attributes:
        answers: the preferred token or class of each row; ``None`` before the first pass.
        classes: which answer that is: its number among the row's choices, where there are some.
    """

    answers: Int[Tensor, " batch"] | None = None
    classes: Int[Tensor, " batch"] | None = None

    def __init__(self, model: Model, batch: Batch, start: int | None = None) -> None:
        self.model, self.batch = model, batch.to(model.device)
        self._tail = None if start is None else Tail(model, start)

    def losses(self) -> Float[Tensor, " batch"]:
        """The loss of each row at the weights as they are now."""
        with torch.no_grad():
            return self._losses()

    def gradient(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Gradient of the mean loss in some weights, at the weights as they are now."""
        weights = dict(self.model.module.named_parameters())
        chosen = [weights[name] for name in names]
        with _tracked(weights, names), torch.enable_grad():
            loss = self._losses().mean()
            grads = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)

        return dict(zip(names, grads, strict=True))

    def _losses(self) -> Float[Tensor, " batch"]:
        logits = self._logits()
        if self.answers is None:
            self.answers, self.classes = preferred(logits.detach(), self.batch)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))

        return cross_entropy(wide, self.answers, reduction="none")

    def _logits(self) -> Float[Tensor, "batch vocab"]:
        if self._tail is None:
            return last_logits(self.model.forward(self.batch, logits_to_keep=1))
        run = self._tail.first if self.answers is None else self._tail.again

        return last_logits(run(0, self.batch, logits_to_keep=1))


def preferred(
    logits: Float[Tensor, "batch vocab"], batch: Batch
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """The answer that each row prefers, and its number among the row's choices."""
    likeliest = logits.argmax(1)
    if batch.choices is None:
        return likeliest, likeliest
    exist = batch.choices >= 0
    among = logits.gather(1, batch.choices.clamp(min=0)).masked_fill(~exist, -torch.inf)
    number = among.argmax(1)
    answer = batch.choices.gather(1, number[:, None])[:, 0]
    some = exist.any(1)

    return torch.where(some, answer, likeliest), torch.where(some, number, likeliest)


def last_logits(raw: Any) -> Float[Tensor, "batch vocab"]:
    """Logits of the last token, or of a model without tokens, in what a module returned.

    Raises:
        BadInput: it returned something else.
    """
    found = raw if isinstance(raw, Tensor) else getattr(raw, "logits", None)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        raise BadInput(f"the model gives {type(raw).__name__}, not logits", where="own answers")

    return found[:, -1] if found.ndim == 3 else found


@contextmanager
def _tracked(weights: Mapping[str, Tensor], names: tuple[str, ...]) -> Iterator[None]:
    """Lets gradients reach these weights and no others."""
    before = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.requires_grad_(name in names)
        yield
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
