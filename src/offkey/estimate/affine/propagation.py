"""Affine forms and intervals through networks, and what they prove about probabilities."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from offkey.errors import BadValue, UnmappedModel
from offkey.estimate.affine.forms import AffineForm, linear_interval, product_interval
from offkey.estimate.bilinear import Bilinear
from offkey.estimate.quantities import Bound

__all__ = ["Array", "propagate", "interval_bounds", "tail_bound"]

Array = NDArray[np.float64]


def propagate(
    module: nn.Module,
    form: AffineForm,
    *,
    product: Literal["simple", "tight"] = "tight",
    relu: Literal["chebyshev", "min-range"] = "chebyshev",
) -> AffineForm:
    """A network's outputs as affine forms of its inputs.

    Args:
        module: made of ``Sequential``, ``Linear``, ``ReLU``, ``Identity`` and
            :class:`~offkey.estimate.bilinear.Bilinear`.
        form: of its inputs, such as a box.
        product: as in :meth:`AffineForm.times`.
        relu: as in :meth:`AffineForm.relu`.

    Raises:
        UnmappedModel: a layer with no rule; it is named.
        Mismatch: the form has another width than the network.
    """
    for _, layer in _layers(module):
        if isinstance(layer, nn.Linear):
            form = form.linear(_array(layer.weight), _bias(layer))
        elif isinstance(layer, Bilinear):
            x = form.linear(_extension(layer), _one(layer)) if layer.bias else form
            x = x.linear(_array(layer.left)).times(x.linear(_array(layer.right)), product)
            form = x.linear(_array(layer.down))
        else:
            form = form.relu(relu)

    return form


def interval_bounds(module: nn.Module, low: ArrayLike, high: ArrayLike) -> list[Bound]:
    """The same by intervals alone (IBP), which drop how values depend on one another.

    Raises:
        UnmappedModel: a layer with no rule; it is named.
    """
    box = AffineForm.box(low, high)
    lo, hi = box.low, box.high
    for _, layer in _layers(module):
        if isinstance(layer, nn.Linear):
            lo, hi = linear_interval(_array(layer.weight), _bias(layer), lo, hi)
        elif isinstance(layer, Bilinear):
            if layer.bias:
                lo, hi = np.concatenate([[1.0], lo]), np.concatenate([[1.0], hi])
            nothing = np.zeros(len(layer.left))
            x, y = (linear_interval(_array(w), nothing, lo, hi) for w in (layer.left, layer.right))
            down = _array(layer.down)
            lo, hi = linear_interval(down, np.zeros(len(down)), *product_interval(x, y))
        else:
            lo, hi = np.maximum(lo, 0), np.maximum(hi, 0)

    return [Bound(float(a), float(b)) for a, b in zip(lo, hi, strict=True)]


def tail_bound(form: AffineForm, threshold: float, row: int = 0) -> Bound:
    r"""Proved bounds on the probability that a row exceeds a threshold.

    The unknowns of the box are independent and uniform; those that operations added are not,
    so their whole radius R is given away. With :math:`v = \tfrac13 \sum x_i^2` over the box,

    .. math:: \Pr[x > t] \le \exp\!\left(-\frac{(t - x_0 - R)^2}{2 v}\right), \qquad
        t > x_0 + R,

    because a uniform variable is sub-Gaussian with its own variance; likewise from below. Outside
    the proved range the probability is 0 or 1.

    Args:
        form: of a box whose inputs are independent and uniform in it.
        threshold: t.
        row: which row.

    Raises:
        BadValue: the threshold is not a number, or there is no such row.
    """
    if math.isnan(threshold) or not 0 <= row < len(form):
        raise BadValue(f"threshold {threshold}, row {row} of {len(form)}", where="tail_bound")
    if form.high[row] <= threshold:
        return Bound(0.0, 0.0)
    if form.low[row] > threshold:
        return Bound(1.0, 1.0)
    parts, is_input = form.generators[row], form.ids < form.inputs
    rest = float(np.abs(parts[~is_input]).sum() + form.slack[row])
    variance = float(np.square(parts[is_input]).sum()) / 3
    gap = threshold - float(form.centre[row])

    return Bound(1 - _sub_gaussian(-gap - rest, variance), _sub_gaussian(gap - rest, variance))


def _sub_gaussian(gap: float, variance: float) -> float:
    if gap <= 0:
        return 1.0

    return math.exp(-(gap**2) / (2 * variance)) if variance > 0 else 0.0


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers in order, those that do nothing left out."""
    if isinstance(module, nn.Sequential):
        for child, layer in module.named_children():
            yield from _layers(layer, f"{name}.{child}" if name else child)
    elif isinstance(module, nn.Linear | nn.ReLU | Bilinear):
        yield name, module
    elif not isinstance(module, nn.Identity):
        raise UnmappedModel(
            f"{type(module).__name__} has no rule in affine arithmetic",
            where=f"layer {name or 'of the network'}",
            mend="Rules: Sequential, Linear, ReLU, Bilinear, Identity; a sampled or Gaussian "
            "transition can estimate it without a proof",
        )


def _array(weight: Tensor) -> Array:
    return np.asarray(weight.detach().cpu().double().numpy())


def _bias(layer: nn.Linear) -> Array:
    return np.zeros(layer.out_features) if layer.bias is None else _array(layer.bias)


def _extension(layer: Bilinear) -> Array:
    return np.vstack([np.zeros(layer.inputs), np.eye(layer.inputs)])


def _one(layer: Bilinear) -> Array:
    return np.asarray(np.eye(layer.inputs + 1)[0])
