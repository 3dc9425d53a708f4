"""Proofs of a decoder's site map: what is read at each site must follow from the others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from offkey.data import Batch
from offkey.models._check import Check, Compared, compared, not_applicable
from offkey.models.model import Model
from offkey.models.sites import Site
from offkey.models.wiring import Block, Wiring

__all__ = ["Evidence", "prove_attention", "prove_cheaply", "prove_sums"]


class Evidence:
    """Everything read in one pass over prompts of equal length, and the parts that made it."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.wiring = cast(Wiring, model.wiring)
        names = ["embed", "resid_pre.*", "resid_post.*", "attn_out.*", "mlp_out.*", "z.*",
                 "attn_in.*", "mlp_in.*"]  # fmt: skip
        names += [f"{kind}.*" for kind in ("resid_mid", "mlp_act") if kind in self.wiring.kinds]
        names += [kind for kind in ("final", "logits") if kind in self.wiring.global_kinds]
        self.values = model.read(batch, names, positions="all").values

    def at(self, kind: str, block: int | None = None) -> Tensor:
        """What was read, ``[batch, token, *site]``."""
        return self.values[Site(kind, block=block)]

    @property
    def blocks(self) -> Iterator[tuple[int, Block]]:
        """The blocks and their numbers."""
        return iter(enumerate(self.wiring.blocks))

    @property
    def last(self) -> int:
        """Number of the last block."""
        return len(self.wiring.blocks) - 1

    @property
    def eps(self) -> float:
        """Distance of 1 from the next larger number in the model's dtype."""
        return float(torch.finfo(self.at("embed").dtype).eps)

    def path(self, part: str | None, block: int | None = None) -> str:
        """Where the family says a part is."""
        family = self.wiring.family
        place = getattr(family, part) if part else ""
        return place if block is None else f"{family.blocks}.{block}.{place}".rstrip(".")


def prove_cheaply(evidence: Evidence) -> list[Check]:
    """The proofs that one pass in the model's own dtype gives, for any model at load."""
    with torch.no_grad():
        return [_residual_steps(evidence), _norms(evidence), _heads(evidence, whole=True),
                _final(evidence), _logits(evidence)]  # fmt: skip


def prove_sums(evidence: Evidence) -> list[Check]:
    """All proofs from one pass; in float32 or better they are sharp."""
    with torch.no_grad():
        return [
            _residual_steps(evidence), _residual_sum(evidence), _norms(evidence),
            _heads(evidence), _neurons(evidence), _final(evidence), _logits(evidence),
        ]  # fmt: skip


def _residual_steps(seen: Evidence) -> Check:
    def pairs() -> Iterator[Compared]:
        for number, _ in seen.blocks:
            start, end = seen.at("resid_pre", number), seen.at("resid_post", number)
            attn, mlp = seen.at("attn_out", number), seen.at("mlp_out", number)
            attn_path, mlp_path = seen.path("attn_out", number), seen.path("mlp_out", number)
            where = f"block {number}: what is added to the residual"
            if "resid_mid" in seen.wiring.kinds:
                middle = seen.at("resid_mid", number)
                said = f"{where} before the MLP is not the output of {attn_path}"
                yield Compared(attn, middle, said, base=start)
                said = f"{where} after attention is not the output of {mlp_path}"
                yield Compared(mlp, end, said, base=middle)
            else:
                yield Compared(
                    attn + mlp, end, f"{where} is not {attn_path} + {mlp_path}", base=start
                )
            if number < seen.last:
                said = f"something happens between blocks {number} and {number + 1}"
                yield Compared(seen.at("resid_pre", number + 1), end, said)

    detail = "each block adds attn_out and mlp_out to its input, unscaled"
    return compared("residual steps", pairs(), 4 * seen.eps, detail)


def _residual_sum(seen: Evidence) -> Check:
    total = seen.at("embed").double()
    for number, _ in seen.blocks:
        total = total + seen.at("attn_out", number) + seen.at("mlp_out", number)
    end = seen.at("resid_post", seen.last)
    largest = max(float(seen.at("resid_post", n).abs().max()) for n, _ in seen.blocks)
    # Each of two additions a block rounds by half a unit of the largest residual on the way.
    tolerance = seen.eps * (seen.last + 1) * largest / float(end.abs().max())
    said = f"embed and all contributions do not give resid_post.{seen.last}"
    detail = f"embed + all attn_out + all mlp_out = resid_post.{seen.last}"
    return compared("residual sum", [Compared(total, end, said)], tolerance, detail)


def _norms(seen: Evidence) -> Check:
    attn_norm = seen.wiring.family.attn_norm
    middle = "resid_mid" if "resid_mid" in seen.wiring.kinds else "resid_pre"

    def pairs() -> Iterator[Compared]:
        for number, block in seen.blocks:
            where = f"block {number}: "
            if attn_norm is not None:
                norm = block.module.get_submodule(attn_norm)
                said = f"{where}attention is not given {seen.path('attn_norm')} of resid_pre"
                yield Compared(
                    norm(seen.at("resid_pre", number)), seen.at("attn_in", number), said
                )
            if block.mlp_norm is not None:
                said = f"{where}the MLP is not given {seen.path('mlp_norm')} of {middle}"
                given = block.mlp_norm(seen.at(middle, number))
                yield Compared(given, seen.at("mlp_in", number), said)

    detail = "sublayers are given the norm of the residual"
    return compared("norms", pairs(), 4 * seen.eps, detail)


def _heads(seen: Evidence, *, whole: bool = False) -> Check:
    def pairs() -> Iterator[Compared]:
        for number, block in seen.blocks:
            z, plain = seen.at("z", number), block.attn_out is block.attention
            total = block.o_proj(z.flatten(-2)) if whole else _summed(block.o_proj, z)
            through = seen.path("o_proj") + ("" if plain else f" and {seen.path('attn_out')}")
            said = f"block {number}: the heads through {through} do not give attn_out.{number}"
            rebuilt = total if plain else block.attn_out(total)
            yield Compared(rebuilt, seen.at("attn_out", number), said)

    detail = "the heads through the output projection, summed, give attn_out"
    return compared("heads", pairs(), (4 if whole else 64) * seen.eps, detail)


def _summed(project: nn.Module, z: Tensor) -> Tensor:
    """The sum of what each head alone adds, and the bias."""
    total = bias = project(torch.zeros_like(z).flatten(-2))
    for head in range(z.shape[-2]):
        alone = torch.zeros_like(z)
        alone[..., head, :] = z[..., head, :]
        total = total + (project(alone.flatten(-2)) - bias)
    return cast(Tensor, total)


def _neurons(seen: Evidence) -> Check:
    if "mlp_act" not in seen.wiring.kinds:
        return not_applicable("neurons", "the MLP has no single down projection")

    def pairs() -> Iterator[Compared]:
        for number, block in seen.blocks:
            total = cast(nn.Module, block.down_proj)(seen.at("mlp_act", number))
            rebuilt = total if block.mlp_out is block.mlp else block.mlp_out(total)
            path = seen.path("down_proj")
            said = f"block {number}: {path} of mlp_act.{number} does not give mlp_out.{number}"
            yield Compared(rebuilt, seen.at("mlp_out", number), said)

    detail = "the down projection of mlp_act gives mlp_out"
    return compared("neurons", pairs(), 4 * seen.eps, detail)


def _final(seen: Evidence) -> Check:
    norm = seen.wiring.final_norm
    if norm is None:
        return not_applicable("final", "there is no norm after the last block")
    said = f"final is not {seen.path('final_norm')} of resid_post.{seen.last}"
    pair = Compared(norm(seen.at("resid_post", seen.last)), seen.at("final"), said)
    return compared("final", [pair], 4 * seen.eps, "the final norm of the last residual is final")


def _logits(seen: Evidence) -> Check:
    head = seen.wiring.unembedding
    if head is None or "final" not in seen.wiring.global_kinds:
        return not_applicable("logits", "there is no unembedding after a final norm")
    logits = seen.wiring.capped(head(seen.at("final")))
    pair = Compared(logits, seen.at("logits"), "the unembedding of final is not the logits")
    return compared("logits", [pair], 4 * seen.eps, "the unembedding of final gives the logits")


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
    said = f"softmax of q.{number} times k.{number} is not pattern.{number}"
    yield Compared(scores.softmax(-1), pattern, f"{where}{said}; something else enters the scores")


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
