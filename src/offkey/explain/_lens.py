"""What the logit lens reads off a residual stream."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.explain.explanation import ReadOut, Token
from offkey.features.lens import lens_logits
from offkey.models import Model, Site

__all__ = ["can_read", "promoted", "read_out", "streams"]


def can_read(model: Model) -> str:
    """Why the lens cannot read this model; empty where it can."""
    if model.wiring is None or model.wiring.unembedding is None:
        return "the model has no unembedding to read residual streams through"
    if model.tokenizer is None:
        return "the model has no tokenizer to name tokens by"

    return ""


def streams(model: Model, sites: Sequence[str]) -> tuple[Site, ...]:
    """The residual streams to read for sites, in this order: each one's own or its block's.

    Sites outside the blocks have none.
    """
    found: list[Site] = []
    for name in sites:
        site = Site.parse(name)
        if site.block is None:
            continue
        stream = site if site.kind.startswith("resid") else Site("resid_post", site.block)
        if stream not in found:
            found.append(stream)

    return tuple(model.site(site) for site in found)


def tokens_of(model: Model, rows: Float[Tensor, "n d"], count: int) -> list[tuple[Token, ...]]:
    """The most probable tokens of each residual row."""
    with torch.no_grad():
        best = lens_logits(model, rows.to(model.device)).softmax(-1).topk(count)

    return [
        tuple(
            Token(token=model.tokenizer.decode([token]), probability=p)
            for token, p in zip(tokens, values, strict=True)
        )
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def read_out(
    model: Model,
    site: Site,
    row: Float[Tensor, " d"],
    others: Float[Tensor, "k d"],
    count: int,
) -> ReadOut:
    """The read-out of a row beside those of others."""
    first, *others_told = tokens_of(model, torch.cat([row[None], others]), count)

    return ReadOut(site=str(site), tokens=first, beside=tuple(others_told))


def promoted(model: Model, directions: Float[Tensor, "n d"], count: int) -> list[tuple[str, ...]]:
    """The tokens that each direction, alone in the stream, raises most."""
    if not len(directions) or can_read(model):
        return [()] * len(directions)

    return [tuple(t.token for t in told) for told in tokens_of(model, directions, count)]
