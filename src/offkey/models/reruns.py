"""A part of a pass again and again: the later blocks, or the last token alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from offkey.data import Batch
from offkey.errors import BadInput, UnmappedModel, check
from offkey.models.edits import Edit, PassContext
from offkey.models.hooks import HookSet
from offkey.models.network import Network, check_block
from offkey.models.passing import Pass, Reading, Sites

__all__ = ["CachedPrefix", "ResumedForward"]


class ResumedForward:
    """Runs a decoder from one of its blocks on, on several batches again and again.

    Args:
        network: a decoder whose blocks were found.
        block: the first block that is run.

    Raises:
        BadValue: the model has no such block.
    """

    def __init__(self, network: Network, block: int) -> None:
        check_block(block, network.n_blocks or 0)
        self.network, self.block = network, block
        self._residuals: dict[int, Tensor] = {}

    def first(self, number: int, batch: Batch, **extra: Any) -> Any:
        """The whole pass of a batch, which keeps what the earlier blocks gave.

        Args:
            number: what the batch is called in later passes.
            batch: what the model is given.
            extra: arguments of :meth:`Network.forward`.
        """

        def keep(x: Tensor) -> None:
            self._residuals[number] = x

        hooks = HookSet()
        self.network.keep_residual(hooks, self.block, keep)

        return self.network.call(batch, hooks, **extra)

    def again(
        self, number: int, batch: Batch, keep: Bool[Tensor, " n"] | None = None, **extra: Any
    ) -> Any:
        """The pass of a batch without its earlier blocks; gradients and their absence as set.

        Args:
            number: as in :meth:`first`.
            batch: the batch, or those of its rows that are kept.
            keep: which rows of the first pass those are; ``None`` for all.
            extra: arguments of :meth:`Network.forward`.
        """
        residual = self._residuals[number]
        if keep is not None:
            residual = residual[keep.to(residual.device)]
        hooks = HookSet()
        hooks.outputs = self.network.resumed_at(self.block, residual)

        return self.network.call(batch, hooks, **extra)

    def later_parameters(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of some parameters whose moving changes nothing before the block."""
        wiring = self.network.wiring
        assert wiring is not None
        parts = [part.module for part in wiring.blocks[self.block :]]
        parts += [part for part in (wiring.final_norm, wiring.unembedding) if part is not None]
        late = {id(weight) for part in parts for weight in part.parameters()}
        late -= {id(weight) for weight in wiring.embedding.parameters()}
        known = dict(self.network.module.named_parameters())

        return tuple(name for name in names if id(known[name]) in late)


class CachedPrefix:
    """Runs the last token of a batch many times, each time with other edits there.

    Nothing that is done at the last token can reach the tokens before it, so their keys and values
    are computed once. A run then costs one token a prompt.

    Args:
        network: a language model whose sites are known.
        batch: prompts of two tokens or more, padded on the left.

    Raises:
        UnmappedModel: it is none.
        BadInput: no prompt has two tokens.
    """

    def __init__(self, network: Network, batch: Batch) -> None:
        if network.wiring is None or batch.mask is None or batch.positions is None:
            raise UnmappedModel(
                "only a mapped language model runs its last token alone",
                where=f"model {network.name}",
            )
        self.network, self.batch = network, batch.to(network.device)
        tokens, mask, positions = (
            self.batch.inputs["input_ids"],
            self.batch.mask,
            self.batch.positions,
        )
        assert mask is not None
        assert positions is not None
        check(
            tokens.shape[1] > 1,
            "it has one token, and so none before the last",
            where=f"prompt {batch.ids[0]}",
            error=BadInput,
        )
        self._cache = DynamicCache(config=network.wiring.config)
        self._last = Batch(
            {"input_ids": tokens[:, -1:]}, batch.ids, mask=mask, positions=positions[:, -1:]
        )
        head = Batch(
            {"input_ids": tokens[:, :-1]},
            batch.ids,
            mask=mask[:, :-1],
            positions=positions[:, :-1],
        )
        with torch.no_grad():
            network.forward(head, logits_to_keep=1, past_key_values=self._cache, use_cache=True)
        self._kept = [_stored(layer) for layer in self._cache.layers]

    def run(self, sites: Sites = (), edits: Sequence[Edit] = ()) -> Reading:
        """Runs the last token, with the edits made there and nowhere else.

        Args:
            sites: what to read at the last token.
            edits: changes at the last token; their ``positions`` are ``"all"``, ``"last"`` or −1.

        Returns:
            Its values, and its logits.
        """
        context = PassContext.of(self._last, rows=self.batch)
        extra = {"past_key_values": self._cache, "use_cache": True}
        here = [
            replace(each, positions="last") if each.positions == "all" else each for each in edits
        ]
        try:
            with Pass(self.network, self._last, here, context=context, extra=extra) as p:
                return p.run(sites, logits=True, allow_nonfinite=True)
        finally:
            for layer, kept in zip(self._cache.layers, self._kept, strict=True):
                vars(layer).update(kept)

    def logits(self, edits: Sequence[Edit] = ()) -> Float[Tensor, "batch vocab"]:
        """Logits at the last token, with the edits made there and nowhere else."""
        logits = self.run((), edits).logits
        assert logits is not None

        return logits


_STORED = ("keys", "values", "cumulative_length")


def _stored(layer: Any) -> dict[str, Any]:
    """What one layer's cache holds; runs replace it and do not write into it."""
    return {name: getattr(layer, name) for name in _STORED if hasattr(layer, name)}
