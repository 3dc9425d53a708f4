"""One forward pass whose graph is kept, for several gradients through it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch
from offkey.errors import NonFinite
from offkey.models import Model, Site

__all__ = ["Graph", "run_graph"]


@dataclass(frozen=True)
class Graph:
    """Tensors of one pass that still know how they came about.

    Attributes:
        batch: what the model was given.
        tensors: ``[batch, token, *site]`` at each site.
        logits: ``[batch, vocab]`` at the last token.
    """

    batch: Batch
    tensors: dict[Site, Tensor]
    logits: Float[Tensor, "batch vocab"]

    def last(self, site: Site) -> Tensor:
        """The values at the last token."""
        return self.tensors[site][:, -1].detach()

    def gradients(
        self, of: Tensor, at: Sequence[Site], cotangent: Tensor | None = None
    ) -> dict[Site, Tensor]:
        """Gradients at sites, all tokens, of the sum of ``of``, or of its product with another.

        Raises:
            NonFinite: a gradient is NaN or infinite; names site and prompt.
        """
        weight = torch.ones_like(of) if cotangent is None else cotangent
        found = torch.autograd.grad(
            of, [self.tensors[site] for site in at], weight, retain_graph=True
        )
        grads = dict(zip(at, found, strict=True))
        for site, grad in grads.items():
            self.check(grad[:, -1], f"gradient at {site}")

        return grads

    def check(self, x: Tensor, what: str) -> None:
        """Refuses NaN and infinity.

        Raises:
            NonFinite: names the prompt.
        """
        fine = x.detach().flatten(1).isfinite().all(1)
        if not bool(fine.all()):
            raise NonFinite(
                "NaN or infinity",
                where=f"{what}, prompt {self.batch.ids[int(fine.int().argmin())]}",
                mend="Load the model in float32",
            )


def run_graph(model: Model, batch: Batch, sites: Sequence[Site]) -> Graph:
    """Runs the model once and keeps the graph from the first of the sites on.

    Args:
        model: a language model whose sites are known.
        batch: prompts, padded on the left.
        sites: where gradients will be wanted.
    """
    batch = batch.to(model.device)
    tensors: dict[Site, Tensor] = {}

    def keep(site: Site, x: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        tensors[site] = x if x.requires_grad else x.detach().requires_grad_()
        return tensors[site]

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for site in sites:
            handle = model.attach(site, lambda x, site=site: keep(site, x))
            stack.callback(handle.remove)
        logits = model.forward(batch, logits_to_keep=1).logits[:, -1]
    graph = Graph(batch, tensors, logits)
    graph.check(logits, "the logits")

    return graph
