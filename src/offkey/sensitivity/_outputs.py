"""What a model answers at the last token."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadInput

__all__ = ["last_logits", "preferred"]


def preferred(
    logits: Float[Tensor, "batch vocab"], batch: Batch
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """The answer that each row prefers, and its number among the row's choices."""
    likeliest = logits.argmax(1)
    if batch.choices is None:
        return likeliest, likeliest
    exist = batch.choices >= 0
    among = logits.gather(1, batch.choices.clamp(min=0)).masked_fill(~exist, -torch.inf)
    number = among.argmax(1)
    answer = batch.choices.gather(1, number[:, None])[:, 0]
    some = exist.any(1)

    return torch.where(some, answer, likeliest), torch.where(some, number, likeliest)


def last_logits(raw: Any) -> Float[Tensor, "batch vocab"]:
    """Logits of the last token, or of a model without tokens, in what a module returned.

    Raises:
        BadInput: it returned something else.
    """
    found = raw if isinstance(raw, Tensor) else getattr(raw, "logits", None)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        raise BadInput(f"the model gives {type(raw).__name__}, not logits", where="own answers")

    return found[:, -1] if found.ndim == 3 else found
