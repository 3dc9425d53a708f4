"""The sharp proofs of a site map: sums, heads and neurons one by one, and attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from offkey.data import Batch
from offkey.models import Model, Site
from offkey.models.proofs import (
    Check,
    Compared,
    Evidence,
    compared,
    not_applicable,
    prove_final,
    prove_heads,
    prove_logits,
    prove_norms,
    prove_residual_steps,
)
from offkey.models.wiring import Block, Wiring

__all__ = ["prove_attention", "prove_sums"]


def prove_sums(evidence: Evidence) -> list[Check]:
    """All proofs from one pass; in float32 or better they are sharp."""
    with torch.no_grad():
        return [
            prove_residual_steps(evidence),
            _residual_sum(evidence),
            prove_norms(evidence),
            prove_heads(evidence),
            _neurons(evidence),
            prove_final(evidence),
            prove_logits(evidence),
        ]


def _residual_sum(evidence: Evidence) -> Check:
    total = evidence.at("embed").double()
    for number, _ in evidence.blocks:
        total = total + evidence.at("attn_out", number) + evidence.at("mlp_out", number)
    end = evidence.at("resid_post", evidence.last)
    largest = max(float(evidence.at("resid_post", n).abs().max()) for n, _ in evidence.blocks)
    # Each of two additions a block rounds by half a unit of the largest residual on the way.
    tolerance = evidence.eps * (evidence.last + 1) * largest / float(end.abs().max())
    meaning = f"embed and all contributions do not give resid_post.{evidence.last}"
    detail = f"embed + all attn_out + all mlp_out = resid_post.{evidence.last}"
    return compared("residual sum", [Compared(total, end, meaning)], tolerance, detail)


def _neurons(evidence: Evidence) -> Check:
    if "mlp_act" not in evidence.wiring.kinds:
        return not_applicable("neurons", "the MLP has no single down projection")

    def pairs() -> Iterator[Compared]:
        for number, block in evidence.blocks:
            total = cast(nn.Module, block.down_proj)(evidence.at("mlp_act", number))
            rebuilt = total if block.mlp_out is block.mlp else block.mlp_out(total)
            path = evidence.path("down_proj")
            meaning = f"block {number}: {path} of mlp_act.{number} does not give mlp_out.{number}"
            yield Compared(rebuilt, evidence.at("mlp_out", number), meaning)

    detail = "the down projection of mlp_act gives mlp_out"
    return compared("neurons", pairs(), 4 * evidence.eps, detail)


def prove_attention(model: Model, batch: Batch) -> Check:
    """Patterns follow from q and k, sum to one, look back only, and give z from v."""
    wiring = cast(Wiring, model.wiring)
    if "pattern" not in wiring.kinds:
        why = "attention does not go through the attention interface of transformers"
        return not_applicable("attention", why)
    with _eager(wiring), torch.no_grad():
        kinds = ("q", "k", "v", "z", "pattern")
        values = model.read(batch, [f"{kind}.*" for kind in kinds], positions="all").values
        pairs = [
            pair
            for number, block in enumerate(wiring.blocks)
            for pair in _attended(number, block, values)
        ]
    # exp() of a score multiplies the score's rounding, which grows with the score.
    tolerance = 256 * float(torch.finfo(model.dtype).eps)
    detail = "patterns sum to 1, look back only, follow from q and k, and give z from v"
    return compared("attention", pairs, tolerance, detail)


def _attended(number: int, block: Block, values: Mapping[Site, Tensor]) -> Iterator[Compared]:
    q, k, v, z, pattern = (
        values[Site(kind, block=number)] for kind in ("q", "k", "v", "z", "pattern")
    )
    where, groups = f"block {number}: ", q.shape[-2] // k.shape[-2]
    k, v = (x.repeat_interleave(groups, dim=-2) for x in (k, v))
    ahead = torch.ones(pattern.shape[1], pattern.shape[3], dtype=torch.bool).triu(1)
    future = pattern.permute(0, 2, 1, 3)[..., ahead.to(pattern.device)]
    rows = pattern.sum(-1)

    yield Compared(rows, torch.ones_like(rows), where + "rows of the pattern do not sum to 1")
    yield Compared(future, torch.zeros_like(future), where + "a token attends to later ones")
    mixed = torch.einsum("bqhk,bkhd->bqhd", pattern, v)
    yield Compared(mixed, z, where + f"pattern.{number} times v.{number} is not z.{number}")

    scale: Any = getattr(block.attention, "scaling", q.shape[-1] ** -0.5)
    scores = torch.einsum("bqhd,bkhd->bqhk", q, k) * scale
    cap: Any = getattr(block.attention, "attn_logit_softcapping", None)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(pattern == 0, -torch.inf)
    meaning = f"softmax of q.{number} times k.{number} is not pattern.{number}"
    yield Compared(
        scores.softmax(-1), pattern, f"{where}{meaning}; something else enters the scores"
    )


@contextmanager
def _eager(wiring: Wiring) -> Iterator[None]:
    """Patterns exist under the eager kernel only."""
    top = cast(Any, wiring.top)
    kernel = wiring.port.kernel
    if kernel == "eager":
        yield
        return
    top.set_attn_implementation("eager")
    try:
        yield
    finally:
        top.set_attn_implementation(kernel)
