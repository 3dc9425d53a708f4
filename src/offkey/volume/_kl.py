"""Divergence of next-token distributions, accurate also where it is tiny."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["anchored", "divergence"]

LEAST = -200.0
"""Log-probability below which a token has none."""


def anchored(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    """Log-probabilities to hold others against, in float32 or better."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))

    return wide.log_softmax(-1).clamp_(min=LEAST)


def divergence(
    anchor: Float[Tensor, "token vocab"], logits: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    r"""Kullback-Leibler divergence of each row from its anchor, in nats.

    With :math:`d` the logits less the anchor's log-probabilities, centred under p,

    .. math:: D(p \| q) = \ln\Big(1 + \sum_v p_v (e^{d_v} - 1 - d_v)\Big),

    a sum of what is not negative: exactly zero at the anchor, and without the cancellation that
    leaves nothing of small divergences in float32.
    """
    gap = (logits.to(anchor.dtype) - anchor).clamp_(min=-1e4)
    # A long sum of a large constant would round where p is spread thin.
    gap -= gap.gather(-1, anchor.argmax(-1, keepdim=True))
    p = anchor.exp()
    gap -= torch.einsum("tv,tv->t", p, gap)[:, None] / p.sum(-1, keepdim=True)
    small = torch.einsum("tv,tv->t", p, gap.expm1().sub_(gap)).log1p()
    if bool(small.isfinite().all()):
        return small
    large = (anchor + gap).logsumexp(-1)

    return torch.where(small.isinf(), large, small)
