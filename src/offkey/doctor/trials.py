"""Trials of a model: hooks leave its output, gradients are right, padding does not matter."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from offkey.data import Batch
from offkey.models import ChoiceLogitDifference, Edit, Model, Site
from offkey.models.hooks import tensor_of
from offkey.models.proofs import Check, error_of, not_applicable

__all__ = ["rows_alone", "try_gradients", "try_hooks", "try_padding"]

_INSIDE = ("attn_in", "attn_out", "mlp_out", "mlp_act", "z", "q", "k", "v", "head_out")
"""The kinds of site whose gradients are tried inside one block."""

_RISE = 0.05
"""By how many nats a step in the gradient's direction should raise the metric."""


def try_hooks(model: Model, batch: Batch) -> Check:
    """With every site visited, outputs are bitwise those of the bare module, and no hook stays.

    Each visit puts back the tensor that it saw, as an edit would.
    """
    batch, before = batch.to(model.device), _hooks(model)
    sites = _reachable(model)
    with torch.no_grad():
        bare = tensor_of(model.forward(batch)).clone()
        with model.hooked(dict.fromkeys(sites, lambda x: x)):
            visited = tensor_of(model.forward(batch))

    error = error_of(visited, bare)
    if not torch.equal(visited, bare):
        return Check("hooks", "fail", error, 0.0, "the output is not bitwise that without hooks")
    if _hooks(model) != before:
        return Check("hooks", "fail", error, 0.0, "a hook is left on the module")
    return Check("hooks", "ok", error, 0.0, f"{len(sites)} sites visited, output bitwise the same")


def _reachable(model: Model) -> list[Site]:
    """The sites that the model's attention kernel shows."""
    kernel = model.wiring.port.kernel if model.wiring else "eager"
    hidden = set() if kernel == "eager" else {"pattern"}
    if "flash" in kernel or "flex" in kernel:
        hidden |= {"q", "k", "v"}
    return [site for site in model.sites if site.kind not in hidden]


def _hooks(model: Model) -> int:
    parts = model.module.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def try_gradients(model: Model, batch: Batch) -> Check:
    """Gradients at sites of three blocks agree with differences of the metric.

    A step along the gradient must raise the metric by the gradient's length times the step; the
    difference quotient is extrapolated from two step sizes, so that its own error is of fourth
    order.
    """
    batch = _with_choices(model, batch)
    sites = _chosen(model)
    grads = model.read(
        batch, (), positions="all", metric=ChoiceLogitDifference(), gradients=sites
    ).grads
    tolerance = 1e-2 if model.dtype == torch.float32 else 1e-4
    worst, worst_site = 0.0, ""
    for site in sites:
        length = float(grads[site].double().norm())
        if not length:
            return Check("gradients", "fail", 1.0, tolerance, f"the gradient at {site} is zero")
        error = abs(_slope(model, batch, site, grads[site] / length, _RISE / length) / length - 1)
        if not error <= worst:
            worst, worst_site = error, site.name
    detail = f"differences of the metric at {len(sites)} sites; furthest off at {worst_site}"
    return Check("gradients", "ok" if worst <= tolerance else "fail", worst, tolerance, detail)


def _chosen(model: Model) -> list[Site]:
    """The residual early, midway and late, and everything inside one block midway."""
    count = model.n_blocks or 1
    inside = {(kind, count // 2) for kind in _INSIDE}
    wanted = inside | {("resid_post", number) for number in (0, count // 2, count - 1)}
    return sorted(site for site in _reachable(model) if (site.kind, site.block) in wanted)


def _slope(model: Model, batch: Batch, site: Site, direction: Tensor, step: float) -> float:
    def value(size: float) -> float:
        move = Edit(site, lambda x, _: x + size * direction.to(x.dtype))
        metric = model.read(batch, (), edit=[move], metric=ChoiceLogitDifference()).metric
        return float(cast(Tensor, metric).double().sum())

    wide = (value(step) - value(-step)) / (2 * step)
    narrow = (value(step / 2) - value(-step / 2)) / step
    return (4 * narrow - wide) / 3


def _with_choices(model: Model, batch: Batch) -> Batch:
    """The batch with each row's two favourite next tokens as choices."""
    logits = cast(Tensor, model.read(batch, (), logits=True).logits)
    return replace(batch.to(model.device), choices=logits.topk(2).indices.flip(1), target=None)


def rows_alone(batch: Batch) -> list[Batch]:
    """Each row as a batch of its own, without padding; none where inputs have no tokens."""
    return [] if batch.mask is None else [batch.alone(row) for row in range(len(batch))]


def try_padding(model: Model, batch: Batch, alone: Sequence[Batch]) -> Check:
    """A row's values are those it has alone, whatever it is padded and packed with."""
    if not alone:
        return not_applicable("padding", "inputs have no tokens")
    names = ["resid_post.*", "final"] if model.wiring and model.wiring.final_norm else ["logits"]
    packed = model.read(batch, names, positions="last").values
    worst, where = 0.0, ""
    for number, row in enumerate(alone):
        single = model.read(row, names, positions="last").values
        for site, value in single.items():
            error = error_of(packed[site][number : number + 1], value)
            if not error <= worst:
                worst, where = error, f"{site}, row {number}"
    eps = float(torch.finfo(model.dtype).eps)
    tolerance = 512 * eps if eps < 1e-3 else 16 * eps
    detail = f"a row alone and in a padded batch; furthest off at {where or 'none'}"
    return Check("padding", "ok" if worst <= tolerance else "fail", worst, tolerance, detail)
