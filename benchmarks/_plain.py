"""Plain passes over prompts: the least they can cost, against which ours are measured."""

from typing import Any

import torch
from torch import nn

from offkey.data import Batch, Prompts, pack
from offkey.models import ChoiceLogitDifference, Model
from offkey.passes import budget_for

__all__ = ["Plain"]


class Plain:
    """Plain passes of a model over some prompts."""

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self.model = model
        self.batches = pack(prompts, model.tokenizer, token_budget=budget_for(model.device))

    def forward(self) -> None:
        """One forward pass over every prompt, with logits at its last token."""
        for batch in self.batches:
            self._logits(batch)

    def both(self) -> None:
        """Forward, then backward to the embeddings and to no weight."""
        metric, leaves = ChoiceLogitDifference(), []

        def keep(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        handle = self.model.module.get_input_embeddings().register_forward_hook(keep)
        for batch in self.batches:
            torch.autograd.grad(metric(self._logits(batch), batch).sum(), leaves.pop())
        handle.remove()

    def _logits(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.model.forward(batch, logits_to_keep=1).logits

        return logits[:, -1]
