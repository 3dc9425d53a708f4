"""Weights moved for a while, and put back bit by bit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from offkey.errors import BadValue, UnknownName
from offkey.models.hooks import Occupancy

__all__ = ["perturbed"]

ALIGNED = 64
"""Numbers that the place of each weight is a multiple of, as fast products want it."""


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
