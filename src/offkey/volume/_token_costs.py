"""The two costs of a model: how far its answers move, and how much its loss rises."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from offkey.data import Batch
from offkey.errors import BadInput, BadValue
from offkey.models import Model
from offkey.volume._kl import anchored, divergence
from offkey.volume._model_costs import ModelCost, Reduce
from offkey.volume._outputs import Rows

__all__ = ["KLCost", "LossCost"]

NUMBERS = 1 << 22
"""Logits that are compared at once."""


class KLCost(ModelCost):
    r"""How far the outputs move, :math:`D(p_\theta \| p_{\theta + \delta})` in nats.

    Needs no labels; the anchor is a minimum.

    Args:
        model: whose weights move.
        batches: prompts, with their mask where they are texts.
        tokens: at ``"all"`` real tokens, or at the ``"last"`` alone.
        reduce: ``"mean"``, or ``"per_example"`` for :func:`radii`.
        start: a block of a decoder before which no parameter moves.

    Raises:
        BadInput: there are no batches.
        MissingMask: a batch of texts has no mask.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        tokens: Literal["all", "last"] = "all",
        reduce: Reduce = "mean",
        start: int | None = None,
    ) -> None:
        super().__init__(model, batches, reduce=reduce, start=start)
        if tokens not in ("all", "last"):
            raise BadValue(f"{tokens!r} is not known", where="tokens", mend="Use all or last")
        self.tokens = tokens

    @property
    def only_last(self) -> bool:
        """Whether only the last token counts."""
        return self.tokens == "last"

    def anchor(self, rows: Rows, batch: Batch) -> Tensor:
        """Log-probabilities."""
        return anchored(rows.logits)

    def compare(self, anchor: Tensor, rows: Rows, batch: Batch) -> Float[Tensor, " token"]:
        """Divergence at each token, some tokens at a time."""
        some = max(1, NUMBERS // anchor.shape[-1])
        pairs = zip(anchor.split(some), rows.logits.split(some), strict=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return torch.cat([divergence(a, b) for a, b in pairs])

    def fingerprint(self) -> dict[str, Any]:
        """Also which tokens."""
        return {**super().fingerprint(), "tokens": self.tokens}


class LossCost(ModelCost):
    r"""How much the loss rises, :math:`L(\theta + \delta) - L(\theta)` in nats.

    Cross-entropy of each next token of a text, or of ``batch.target`` for models without a token
    axis. May be negative where the anchor is no minimum, and need not be monotone.

    Args:
        model: whose weights move.
        batches: prompts with their mask, or arrays with targets.
        reduce: as in :class:`KLCost`.
        start: as in :class:`KLCost`.

    Raises:
        BadInput: there are no batches, or no targets where they are needed.
    """

    is_signed = True

    def anchor(self, rows: Rows, batch: Batch) -> Tensor:
        """The loss at each token."""
        return self._losses(rows, batch)

    def compare(self, anchor: Tensor, rows: Rows, batch: Batch) -> Float[Tensor, " token"]:
        """Its rise at each token."""
        return self._losses(rows, batch) - anchor

    def counted(self, rows: Rows, batch: Batch) -> Rows:
        """All but the last token of each text."""
        if batch.mask is None:
            return rows
        keep = np.ones(len(rows.logits), dtype=bool)
        keep[rows.counts.cumsum() - 1] = False

        return Rows(rows.logits[torch.from_numpy(keep)], rows.counts - 1)

    def _losses(self, rows: Rows, batch: Batch) -> Float[Tensor, " token"]:
        if batch.mask is None:
            target = batch.target
            lacks = [True] if target is None else (target < 0).tolist()
            if any(lacks) or target is None:
                raise BadInput("it has no target", where=f"prompt {batch.ids[lacks.index(True)]}",
                               mend="Give Batch(target=…)")  # fmt: skip
        else:
            if (rows.counts < 2).any():
                raise BadInput("it has one token, and so no next one",
                               where=f"prompt {batch.ids[int(rows.counts.argmin())]}")  # fmt: skip
            tokens = batch.inputs["input_ids"][batch.mask]
            following = Rows(tokens.roll(-1)[:, None], rows.counts)
            target = self.counted(following, batch).logits[:, 0]
        logits = self.counted(rows, batch).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))

        return nn.functional.cross_entropy(logits, target, reduction="none")
