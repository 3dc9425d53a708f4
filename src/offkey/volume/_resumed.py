"""A decoder run from one of its blocks on, from the stored output of the earlier blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from offkey.data import Batch
from offkey.errors import BadValue
from offkey.models import Model

__all__ = ["ResumedForward"]


class ResumedForward:
    """Runs a decoder from one of its blocks on.

    Args:
        model: a decoder whose blocks were found.
        block: the first block that is run.

    Raises:
        BadValue: the model has no such block.
    """

    def __init__(self, model: Model, block: int) -> None:
        count = model.n_blocks or 0
        if not 1 <= block < count:
            raise BadValue(f"block {block} of {count} cannot be the first to run", where="start")
        assert model.wiring is not None
        self.model, self.block = model, block
        self.early = [part.module for part in model.wiring.blocks[:block]]
        self._given: dict[int, Any] = {}

    def first(self, number: int, batch: Batch, **extra: Any) -> Any:
        """The whole pass of a batch, which keeps what the earlier blocks gave."""

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._given[number] = output

        handle = self.early[-1].register_forward_hook(keep)
        try:
            return self.model.forward(batch, **extra)
        finally:
            handle.remove()

    def again(
        self, number: int, batch: Batch, keep: Bool[Tensor, " n"] | None = None, **extra: Any
    ) -> Any:
        """The pass of a batch, or of what is kept of it, without its earlier blocks."""
        given = self._given[number]
        if keep is not None:
            given = tree_map_only(Tensor, lambda part: part[keep.to(part.device)], given)
        with _replaced(self.early, given):
            return self.model.forward(batch, **extra)

    def later_parameters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some parameters that only the later blocks use."""
        wiring = self.model.wiring
        assert wiring is not None
        parts = [part.module for part in wiring.blocks[self.block :]]
        parts += [part for part in (wiring.final_norm, wiring.unembedding) if part is not None]
        late = {id(weight) for part in parts for weight in part.parameters()}
        late -= {id(weight) for weight in wiring.embedding.parameters()}
        known = dict(self.model.module.named_parameters())

        return tuple(name for name in names if id(known[name]) in late)


@contextmanager
def _replaced(blocks: list[nn.Module], output: Any) -> Iterator[None]:
    """Lets blocks give an output without computing it."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = cast(Any, lambda *_, **__: output)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own
