"""The normal density and distribution, of one variable and of two, in float64."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import owens_t, roots_legendre
from torch import Tensor

__all__ = [
    "normal_pdf",
    "normal_cdf",
    "bivariate_normal_pdf",
    "bivariate_normal_cdf",
    "together",
    "chunks",
    "excess",
    "conditional",
    "nodes_on_unit",
]

_FAR = 40.0
"""Beyond this many standard deviations a tail is 0 in float64."""
_STEEP = 0.925
"""Correlations above this are steep: quadrature over the angle needs too many nodes."""
_BANDS = ((0.3, 6), (0.75, 12), (_STEEP, 20))
"""Largest correlation, and the Gauss-Legendre nodes that keep 15 digits up to it (Genz, 2004)."""
_CHUNK = 1 << 17
"""Pairs at a time, so that the values of all nodes stay in the cache."""


def normal_pdf(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Standard normal density :math:`\varphi`."""
    density: Tensor = (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)

    return density


def normal_cdf(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Standard normal distribution :math:`\Phi`, accurate in the lower tail as well."""
    # torch.special.ndtr loses the lower tail: it is 0 at -12
    distribution: Tensor = torch.special.erfc(-x / math.sqrt(2)) / 2

    return distribution


def bivariate_normal_pdf(
    h: Float[Tensor, "*shape"], k: Float[Tensor, "*shape"], rho: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Density :math:`\varphi_2(h, k; \rho)` of two standard normals; :math:`|\rho| < 1`."""
    q2 = (1 - rho) * (1 + rho)
    density: Tensor = (-(h * h - 2 * rho * h * k + k * k) / (2 * q2)).exp()

    return density / (2 * math.pi * q2.sqrt())


def bivariate_normal_cdf(
    h: Float[Tensor, "*shape"], k: Float[Tensor, "*shape"], rho: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Probability that two standard normals of correlation :math:`\rho` are below h and k.

    Gauss-Legendre quadrature of Plackett's integral over the angle up to :math:`|\rho| = .925`,
    Owen's T above; the absolute error is about 1e-15, also next to and at :math:`\pm 1`. The
    arguments broadcast. It can be differentiated in all three, where :math:`|\rho| < 1`.

    Args:
        h: upper limit of the first; may be infinite.
        k: upper limit of the second.
        rho: correlation, from -1 to 1; values outside by rounding are clamped.

    References:
        Genz, 2004: Numerical computation of rectangular bivariate and trivariate normal and t
        probabilities. https://doi.org/10.1023/B:STCO.0000035304.20635.31
        Owen, 1956. https://doi.org/10.1214/aoms/1177728074
    """
    h, k, rho = together(*(torch.as_tensor(x, dtype=torch.float64) for x in (h, k, rho)))

    value: Tensor = normal_cdf(h) * normal_cdf(k) + excess(h, k, rho)

    return value


def together(*given: Tensor) -> tuple[Tensor, ...]:
    """Broadcasts tensors to one shape."""
    made: tuple[Tensor, ...] = torch.broadcast_tensors(*given)  # type: ignore[no-untyped-call] # torch gives it no types

    return made


def chunks(size: int, *given: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits vectors of equal length into chunks."""
    for start in range(0, len(given[0]), size):
        yield tuple(x[start : start + size] for x in given)


def excess(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    r""":math:`\Phi_2(h, k; \rho) - \Phi(h) \Phi(k)`, accurate also where it is small."""
    h, k, rho = together(h, k, rho)
    value: Tensor = _Excess.apply(h.clamp(-_FAR, _FAR), k.clamp(-_FAR, _FAR), rho.clamp(-1, 1))  # type: ignore[no-untyped-call]

    return value


def conditional(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    r""":math:`(k - \rho h) / \sqrt{1 - \rho^2}`, without cancellation next to 1 and -1."""
    rest = 1 - rho.abs()
    over = torch.where(rho > 0, (k - h) + rest * h, (k + h) - rest * h)
    over = torch.where(rho.abs() < 0.5, k - rho * h, over)

    return (over / ((1 - rho) * (1 + rho)).sqrt()).nan_to_num(nan=0.0)


class _Excess(torch.autograd.Function):
    """The excess with its derivatives, which are elementary."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
        ctx.save_for_backward(h, k, rho)
        flat = [x.reshape(-1) for x in (h, k, rho)]
        parts = [_values(*chunk) for chunk in chunks(_CHUNK, *flat)]

        return torch.cat(parts).view(h.shape) if parts else h.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, k, rho = ctx.saved_tensors
        to_h = normal_pdf(h) * (normal_cdf(conditional(h, k, rho)) - normal_cdf(k))
        to_k = normal_pdf(k) * (normal_cdf(conditional(k, h, rho)) - normal_cdf(h))

        return grad * to_h, grad * to_k, grad * bivariate_normal_pdf(h, k, rho)


def _values(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    size = rho.abs()
    result = torch.empty_like(h)
    low = 0.0
    for high, nodes in _BANDS:
        band = (size <= high) if low == 0.0 else (size > low) & (size <= high)
        result = _fill(result, band, partial(_by_angle, nodes), h, k, rho)
        low = high

    return _fill(result, size > _STEEP, _by_owen, h, k, rho)


def _fill(result: Tensor, where: Tensor, rule: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Evaluates a rule where the mask holds."""
    if bool(where.all()):
        return rule(*given)
    chosen = where.nonzero().squeeze(-1)
    if len(chosen):
        result[chosen] = rule(*(x[chosen] for x in given))

    return result


def nodes_on_unit(count: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = roots_legendre(count)

    return ((x + 1) / 2).tolist(), (w / 2).tolist()


def _by_angle(nodes: int, h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    angle = rho.asin()
    half, hk = -(h * h + k * k) / 2, h * k
    total = torch.zeros_like(h)
    for node, weight in zip(*nodes_on_unit(nodes), strict=True):
        sine = (angle * node).sin()
        total += weight * ((half + hk * sine) / (1 - sine * sine)).exp()

    return total * angle / (2 * math.pi)


def _by_owen(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    slope = ((1 - rho) / (1 + rho)).sqrt()
    t = _owen(h, _slope(h, k, rho, slope)) + _owen(k, _slope(k, h, rho, slope))
    product = h * k
    opposite = (product < 0) | ((product == 0) & (h + k < 0))
    value = (normal_cdf(h) + normal_cdf(k)) / 2 - t - opposite.double() / 2
    value = torch.where(rho >= 1, normal_cdf(torch.minimum(h, k)), value)
    value = torch.where(rho <= -1, normal_cdf(h) - normal_cdf(-k), value)

    return value.clamp(0, 1) - normal_cdf(h) * normal_cdf(k)


def _slope(h: Tensor, k: Tensor, rho: Tensor, at_zero: Tensor) -> Tensor:
    """Owen's second argument; its limit where both limits are 0."""
    h = torch.where(h == 0, torch.zeros_like(h), h)  # no negative zero
    slope = conditional(h, k, rho) / h

    return torch.where((h == 0) & (k == 0), at_zero, slope).nan_to_num(nan=0.0)


def _owen(h: Tensor, a: Tensor) -> Tensor:
    values: np.ndarray = owens_t(h.detach().cpu().numpy(), a.detach().cpu().numpy())

    return torch.from_numpy(np.asarray(values)).to(h.device)
