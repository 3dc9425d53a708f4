"""Heads and latents of a prompt against trusted prompts."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.dictionaries import Dictionary
from offkey.explain.explanation import HeadShare, LatentShare
from offkey.lenses import promoted_tokens
from offkey.models import Model, Site

__all__ = ["head_shares", "latent_shares"]

TO_DEVIATION = 1.4826
"""Ratio of a normal law's standard deviation to its median absolute deviation."""


def head_shares(
    effects: Mapping[Site, Float[Tensor, " head"]],
    trusted: Mapping[Site, Float[Tensor, "m head"]],
    count: int,
) -> tuple[HeadShare, ...]:
    """The heads whose effect on the answer differs most, in nats, from its trusted median.

    Args:
        effects: attribution of each head, by block.
        trusted: the same on trusted prompts.
        count: most heads told.
    """
    told = []
    for site, row in effects.items():
        x, usual = row.double().numpy(), trusted[site].double().numpy()
        centre = np.median(usual, axis=0)
        spread = TO_DEVIATION * np.median(np.abs(usual - centre), axis=0)
        told += [
            HeadShare(
                site=str(site),
                head=head,
                effect=float(x[head]),
                usual=float(centre[head]),
                standardised=_over(x[head] - centre[head], spread[head]),
            )
            for head in range(len(x))
        ]

    return tuple(sorted(told, key=lambda row: -abs(row.effect - row.usual))[:count])


def latent_shares(
    model: Model,
    dictionary: Dictionary,
    active: Float[Tensor, " latent"],
    trusted: Float[Tensor, "m latent"],
    *,
    rare: float,
    count: int,
) -> tuple[LatentShare, ...]:
    """Latents active here and on few trusted prompts or none, the rarest first.

    Args:
        model: the model, through which a latent's direction is read out.
        dictionary: the latents' dictionary.
        active: latents of the prompt.
        trusted: latents of trusted prompts.
        rare: largest share of trusted prompts.
        count: most latents told.
    """
    often = (trusted > 0).double().mean(0)
    found = ((active > 0) & (often <= rare)).nonzero()[:, 0].tolist()
    found = sorted(found, key=lambda n: (float(often[n]), -float(active[n])))[:count]
    directions = dictionary.decoder[torch.tensor(found, dtype=torch.long)].cpu()
    promoted = promoted_tokens(model, directions, 3)

    return tuple(
        LatentShare(
            site=dictionary.site,
            latent=n,
            activation=float(active[n]),
            trusted=float(often[n]),
            promotes=tokens,
        )
        for n, tokens in zip(found, promoted, strict=True)
    )


def _over(difference: float, spread: float) -> float | None:
    return float(difference / spread) if spread > 0 else None
