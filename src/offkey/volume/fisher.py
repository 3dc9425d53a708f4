"""The Fisher information of a model's outputs: the curvature of a KL cost, for proposals."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from offkey.errors import check
from offkey.stats import named_rng
from offkey.volume.costs import ModelCost
from offkey.volume.rays import Space

__all__ = ["fisher_dense", "fisher_diagonal"]

LARGEST = 20_000
"""The most parameters of a dense matrix."""


def fisher_diagonal(
    cost: ModelCost, params: str | Sequence[str] = "*", *, draws: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information per token, from answers drawn from the model itself.

    Unbiased: the answers of different tokens are drawn independently, so the square of an
    example's summed gradient is, in expectation, the sum of the squares. It takes one backward
    pass for each example and draw.

    Args:
        cost: model and data.
        params: which parameters move.
        draws: number of answers drawn for each token.
        seed: seed of the answers.

    Returns:
        By parameter name, in the parameter's shape, in float32 or better, as
        :class:`~offkey.volume.Diagonal` takes it.
    """
    space = Space.of(cost.parameters, params)
    weights = [cost.parameters[name] for name in space.names]
    total = [
        torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for weight in weights
    ]
    generator = torch.Generator().manual_seed(int(named_rng(seed, "fisher").integers(2**63)))
    count = 0
    for logits in _outputs(cost, weights):
        count += len(logits)
        log_p = logits.log_softmax(-1)
        p = log_p.detach().double().softmax(-1).cpu()
        for draw in range(draws):
            answers = torch.multinomial(p, 1, generator=generator).to(log_p.device)
            likelihood = log_p.gather(-1, answers).sum()
            grads = torch.autograd.grad(
                likelihood, weights, retain_graph=draw + 1 < draws, allow_unused=True
            )
            for sum_, grad in zip(total, grads, strict=True):
                if grad is not None:
                    sum_ += grad.to(sum_.dtype) ** 2 / draws

    return {name: sum_ / count for name, sum_ in zip(space.names, total, strict=True)}


def fisher_dense(cost: ModelCost, params: str | Sequence[str] = "*") -> Float64[Tensor, "D D"]:
    r"""The whole Fisher information per token, :math:`E[J^\top (\mathrm{diag}\,p - pp^\top) J]`.

    Exact, and equal to the Hessian of the KL cost at the anchor. It takes one backward pass for
    each output of each token, so it suits small models with few classes.

    Raises:
        BadValue: more than 20,000 parameters.
    """
    space = Space.of(cost.parameters, params)
    check(
        space.dimensions <= LARGEST,
        f"{space.dimensions} parameters make too large a matrix",
        where="fisher_dense",
        mend="Use fisher_diagonal",
    )
    weights = [cost.parameters[name] for name in space.names]
    total = torch.zeros(space.dimensions, space.dimensions, dtype=torch.float64)
    rows: list[Tensor] = []
    count = 0
    for logits in _outputs(cost, weights):
        count += len(logits)
        for token in logits:
            log_p = token.log_softmax(-1)
            for value in log_p:
                grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
                flat = [
                    (torch.zeros_like(w) if g is None else g).reshape(-1)
                    for w, g in zip(weights, grads, strict=True)
                ]
                rows.append(torch.cat(flat).double().cpu() * float((value.detach() / 2).exp()))
            if len(rows) >= 1024:
                stacked = torch.stack(rows)
                total.addmm_(stacked.T, stacked)
                rows.clear()
    if rows:
        stacked = torch.stack(rows)
        total.addmm_(stacked.T, stacked)

    return total / count


def _outputs(cost: ModelCost, weights: list[Tensor]) -> Iterator[Tensor]:
    """Logits ``[token, vocab]`` of each example, with a graph back to the weights."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for batch in cost.batches:
                yield from cost.outputs(batch)
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)
