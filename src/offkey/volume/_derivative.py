"""How a model's outputs begin to move along a direction: one forward-mode derivative."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offkey.data import Batch
from offkey.errors import BadValue
from offkey.models import Model
from offkey.volume._outputs import Rows, logits_of

__all__ = ["bending"]


def bending(
    model: Model,
    batch: Batch,
    weights: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    *,
    only_last: bool,
) -> tuple[float, int]:
    r"""Sum over tokens of :math:`\mathrm{Var}_p(J\delta)`, and how many tokens there are.

    Args:
        model: whose outputs move.
        batch: what it is given.
        weights: at the anchor, by name.
        delta: the direction.
        only_last: whether only the last token counts.

    Raises:
        BadValue: a part of the model has no forward-mode derivative.
    """
    wrapper = _Forward(model, batch)
    moved = {f"module.{name}": weights[name].detach() for name in delta}
    tangents = {f"module.{name}": value for name, value in delta.items()}

    def outputs(given: Any) -> Tensor:
        return torch.func.functional_call(wrapper, given, ())  # type: ignore[no-any-return]

    try:
        logits, moving = torch.func.jvp(outputs, (moved,), (tangents,))
    except RuntimeError as error:
        raise BadValue(
            "a part of the model has no forward-mode derivative",
            where="search start jvp",
            mend="Load it with attn_implementation='eager', or use start='median'",
        ) from error
    p = Rows.of(logits.detach(), batch, only_last=only_last).logits.double().softmax(-1)
    change = Rows.of(moving.detach(), batch, only_last=only_last).logits.double()
    mean = (p * change).sum(-1, keepdim=True)

    return float((p * (change - mean) ** 2).sum()), len(p)


class _Forward(nn.Module):
    """The model on one batch, as a module whose parameters can be put in its place."""

    def __init__(self, model: Model, batch: Batch) -> None:
        super().__init__()
        self.module = model.module
        self._model, self._batch = [model], batch

    def forward(self) -> Tensor:
        return logits_of(self._model[0].forward(self._batch))
