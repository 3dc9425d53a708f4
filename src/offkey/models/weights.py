"""Weights moved for a while and put back bit by bit, and who may use a module meanwhile."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from offkey.errors import BadValue, ModelBusy, UnknownName

__all__ = ["Occupancy", "perturbed"]

ALIGNED = 64
"""Numbers that the place of each weight is a multiple of, as fast products want it."""

_LOCK = threading.RLock()


class Occupancy:
    """Which threads run a module, and which one has its weights moved.

    Passes of several threads may be open at once, but none beside weights that another thread has
    moved. It is shared by all models of one module.
    """

    def __init__(self) -> None:
        self.passes: Counter[int] = Counter()
        self.owner: int | None = None
        self.depth = 0

    @classmethod
    def of(cls, top: nn.Module) -> "Occupancy":
        """The one that belongs to a module."""
        with _LOCK:
            return _OCCUPANCIES.setdefault(top, cls())

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While this is open, no other thread moves the weights.

        Raises:
            ModelBusy: another thread has moved them.
        """
        thread = threading.get_ident()
        with _LOCK:
            if self.owner not in (None, thread):
                raise ModelBusy(
                    "another thread has its weights perturbed",
                    where="model",
                    mend="Close its context first, or give each thread a copy of the model",
                )
            self.passes[thread] += 1
        try:
            yield
        finally:
            with _LOCK:
                self.passes[thread] -= 1
                self.passes += Counter()  # drops threads without a pass

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While this is open, no other thread runs the module.

        Raises:
            ModelBusy: another thread has a pass open, or the weights moved.
        """
        thread = threading.get_ident()
        with _LOCK:
            others = [each for each in self.passes if each != thread]
            if others or self.owner not in (None, thread):
                raise ModelBusy(
                    "its weights cannot be perturbed while another thread runs it",
                    where="model",
                    mend="Close the other thread's pass first, or give each thread a copy",
                )
            self.owner, self.depth = thread, self.depth + 1
        try:
            yield
        finally:
            with _LOCK:
                self.depth -= 1
                self.owner = self.owner if self.depth else None


_OCCUPANCIES: WeakKeyDictionary[nn.Module, Occupancy] = WeakKeyDictionary()


@contextmanager
def perturbed(module: nn.Module, top: nn.Module, delta: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds ``delta`` to the named parameters while it is open.

    The sums stand in for the weights, which are not written to: they come back as they were, and
    weights that are mapped from a file take no memory.

    Args:
        module: the model, whose parameter names count.
        top: the model without an adapter's wrapping, whose names count too.
        delta: what to add, by parameter name; each is asked for once, when it is added, so a
            mapping that makes them on the way holds one at a time.

    Raises:
        UnknownName: there is no such parameter.
        BadValue: a shape does not fit.
        ModelBusy: another thread runs the model.
    """
    known = {**dict(top.named_parameters()), **dict(module.named_parameters())}
    for name in delta:
        if name not in known:
            raise UnknownName("parameter", name, known)

    weights = {name: known[name] for name in delta}
    before: list[tuple[nn.Parameter, Tensor]] = []
    with Occupancy.of(top).exclusive():
        try:
            with torch.inference_mode(False), torch.no_grad():
                places = _places(weights)
                for name, change in delta.items():
                    weight = weights[name]
                    _check_shape(name, weight, change)
                    moved = places[name].copy_(weight.data)
                    moved.add_(change.to(weight.device, weight.dtype))
                    before.append((weight, weight.data))
                    weight.data = moved
            yield
        finally:
            for weight, old in reversed(before):
                weight.data = old


def _check_shape(name: str, weight: Tensor, change: Tensor) -> None:
    if change.shape != weight.shape:
        given, has = tuple(change.shape), tuple(weight.shape)
        raise BadValue(f"a change of shape {given} for {has}", where=f"parameter {name}")


def _places(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Room for each weight, in one block of memory a device and dtype, without gaps."""
    places: dict[str, Tensor] = {}
    for kind in {(w.device, w.dtype) for w in weights.values()}:
        alike = {name: w for name, w in weights.items() if (w.device, w.dtype) == kind}
        sizes = [-(-w.numel() // ALIGNED) * ALIGNED for w in alike.values()]
        block = torch.empty(sum(sizes), device=kind[0], dtype=kind[1])
        starts = accumulate(sizes, initial=0)
        for (name, weight), start in zip(alike.items(), starts, strict=False):
            places[name] = block[start : start + weight.numel()].view(weight.shape)

    return places
