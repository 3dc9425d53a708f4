"""The logit lens: the final norm and the unembedding, applied to a residual of any layer."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offkey.errors import UnmappedModel
from offkey.models import Model, Site, wide

__all__ = [
    "check_readable",
    "lens_choice_logits",
    "lens_logits",
    "promoted_tokens",
    "residual_sites",
    "top_tokens",
    "why_unreadable",
]


def lens_logits(model: Model, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
    r"""Logits of every token, read off residuals; in float32 or better, without gradients.

    .. math:: \ell = W_U \, \mathrm{norm}(h) + b

    with the soft cap that the model's own logits have.

    Raises:
        UnmappedModel: the model has no unembedding whose rows can be taken.

    References:
        nostalgebraist, 2020: interpreting GPT, the logit lens.
    """
    head = check_readable(model)
    with torch.no_grad():
        return wide(model.unembed(h.to(head.weight.device, head.weight.dtype)))


def lens_choice_logits(
    model: Model,
    residuals: Iterable[Float[Tensor, "batch d"]],
    choices: Int[Tensor, "batch choice"],
) -> Float[Tensor, "layer batch choice"]:
    r"""Logits of each prompt's choices, read off residuals; :math:`-\infty` where one is missing.

    In float32 or better; only the unembedding's rows of the choices are touched.

    Args:
        model: whose lens it is.
        residuals: those of each layer that is read.
        choices: tokens of the choices, -1 where a prompt has fewer.

    Raises:
        UnmappedModel: the model has no unembedding whose rows can be taken.
    """
    head = check_readable(model)
    device = head.weight.device
    choices = choices.to(device)
    tokens = choices.clamp(min=0)
    with torch.no_grad():
        h = torch.stack([residual.to(device) for residual in residuals])
        normed = wide(_normed(model, h))
        rows = head.weight[tokens].to(normed.dtype)
        logits = torch.einsum("lbd,bcd->lbc", normed, rows)
        if head.bias is not None:
            logits = logits + head.bias[tokens].to(normed.dtype)
        logits = model.wiring.capped(logits) if model.wiring else logits

    return logits.masked_fill(choices < 0, -torch.inf)


def top_tokens(
    model: Model, rows: Float[Tensor, "n d"], count: int
) -> list[tuple[tuple[str, float], ...]]:
    """The most probable tokens that the lens reads off each row, with their probabilities."""
    with torch.no_grad():
        best = lens_logits(model, rows.to(model.device)).softmax(-1).topk(count)

    return [
        tuple(
            (model.tokenizer.decode([token]), p) for token, p in zip(tokens, values, strict=True)
        )
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def promoted_tokens(
    model: Model, directions: Float[Tensor, "n d"], count: int
) -> list[tuple[str, ...]]:
    """The tokens that each direction, alone in the residual stream, raises most.

    Empty for a model that the lens cannot read.
    """
    if not len(directions) or why_unreadable(model):
        return [()] * len(directions)

    return [tuple(token for token, _ in best) for best in top_tokens(model, directions, count)]


def residual_sites(model: Model, sites: Sequence[str]) -> tuple[Site, ...]:
    """The residual to read for each site, in this order: the site itself, or its block's output.

    Sites outside the blocks have none.
    """
    residuals: list[Site] = []
    for name in sites:
        site = Site.parse(name)
        if site.block is None:
            continue
        residual = site if site.kind.startswith("resid") else Site("resid_post", site.block)
        if residual not in residuals:
            residuals.append(residual)

    return tuple(model.site(site) for site in residuals)


def why_unreadable(model: Model) -> str:
    """Why tokens cannot be read off this model's residuals; empty where they can."""
    if model.wiring is None or model.wiring.unembedding is None:
        return "the model has no unembedding to read residual streams through"
    if model.tokenizer is None:
        return "the model has no tokenizer to name tokens by"

    return ""


def check_readable(model: Model, who: str = "lens") -> nn.Linear:
    """The unembedding, whose rows are one token's each.

    Args:
        model: that is read.
        who: the feature that reads it, for messages.

    Raises:
        UnmappedModel: the model has no unembedding whose rows can be taken.
    """
    head = model.wiring.unembedding if model.wiring else None
    if type(head) is not nn.Linear:
        kind = "has none" if head is None else f"has a {type(head).__name__}"
        raise UnmappedModel(
            f"the lens needs a plain unembedding, and this model {kind}", where=f"feature {who}"
        )

    return head


def _normed(model: Model, h: Tensor) -> Tensor:
    """Residuals after the final norm, where there is one."""
    norm = model.wiring.final_norm if model.wiring else None

    return h if norm is None else norm(h)
