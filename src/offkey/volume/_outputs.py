"""Logits of the tokens that count, out of whatever a model returns."""

from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadInput, MissingMask

__all__ = ["Rows", "logits_of"]

Array = np.ndarray


class Rows(NamedTuple):
    """The tokens of a batch that count, one after the other.

    Attributes:
        logits: of each token; of each example where there is no token axis.
        counts: how many tokens each example has.
    """

    logits: Float[Tensor, "token vocab"]
    counts: Int64[Array, " n"]

    @classmethod
    def of(cls, logits: Tensor, batch: Batch, *, only_last: bool) -> Self:
        """Leaves out padding, and all but the last token if only that one counts.

        Raises:
            MissingMask: which tokens are padding is not known.
        """
        ones = np.ones(len(logits), dtype=np.int64)
        if logits.ndim == 2:
            return cls(logits, ones)
        if batch.mask is None:
            raise MissingMask("which of its tokens are padding is not known",
                              where=f"batch of prompt {batch.ids[0]}",
                              mend="Give Batch(mask=…), all True where nothing is")  # fmt: skip
        if only_last:
            return cls(logits[:, -1], ones)
        whole = bool(batch.mask.all())
        real = logits.flatten(0, 1) if whole else logits[batch.mask]

        return cls(real, batch.mask.sum(1).cpu().numpy())

    def owner(self, row: int) -> int:
        """The example that a row belongs to."""
        return int(np.searchsorted(self.counts.cumsum(), row, side="right"))


def logits_of(raw: Any) -> Tensor:
    """The logits of what a model returned.

    Raises:
        BadInput: there are none.
    """
    found = raw if isinstance(raw, Tensor) else getattr(raw, "logits", None)
    if not isinstance(found, Tensor):
        raise BadInput(f"the model gives {type(raw).__name__}, not logits", where="cost")

    return found
