"""Functions of one variable under a Gaussian: the contract, quadrature, and whole layers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue
from offkey.estimate.gaussian.distribution import (
    chunks,
    normal_pdf,
    together,
)
from offkey.estimate.gaussian.normal import Normal

__all__ = [
    "Array",
    "Elementwise",
    "GELUTanh",
    "Method",
    "SiLU",
    "Sigmoid",
    "Smooth",
    "Tanh",
    "check_order",
    "correlation",
    "covariance_of",
    "doubles",
    "hermite_rows",
    "impossible_pairs",
    "through",
]

_POLE = 0.17
"""Step of the trapezoidal rule as a share of the distance to the nearest pole: 16 digits."""
_FINEST = 5e-4
"""Smallest step; functions are resolved up to about 300 standard deviations a unit."""
_SAMPLES = 1 << 22
"""Function values held at a time."""
_ROUNDING = 1e-13
"""Share of the standard deviations that a truncated series may leave out of a covariance."""
Array = Float[Tensor, "*shape"]
"""Numbers of any shape, in float64."""
Method = Literal["exact", "series"]
"""How pairs go through a function: exactly, or by a series that stops."""
_EXACT = 1e-13
"""What the exact method may leave out, as a share of the outputs' standard deviations."""
_LONGEST = 120
"""Terms of the series at most; pairs that need more are computed one by one."""
_STRIP = 1 << 14
"""Entries in a strip: three such arrays stay in the cache."""


class Elementwise(ABC):
    r"""A function of one variable, and its moments where the variable is Gaussian.

    All arguments broadcast; all results are float64. ``m`` and ``v`` are mean and variance of the
    variable. Instances have no state. Results are differentiable where closed forms or quadrature
    make them so.
    """

    name: str

    @abstractmethod
    def __call__(self, x: Array) -> Array:
        """The function."""

    @abstractmethod
    def derivative(self, k: int, m: Array, v: Array) -> Array:
        r""":math:`c_k = E f^{(k)}(x)`, the mean of the k-th derivative; k = 0 is the mean.

        Raises:
            BadValue: k is negative.
        """

    @abstractmethod
    def second_moment(self, m: Array, v: Array) -> Array:
        r""":math:`E f(x)^2`."""

    @abstractmethod
    def coefficients(self, order: int, m: Array, v: Array) -> Float[Tensor, "rows ..."]:
        r"""Normalised Hermite coefficients :math:`\sigma^k c_k / \sqrt{k!}` from 0 to ``order``.

        Their products are the terms of a covariance, :math:`\sum_{k \ge 1} \rho^k b_k(x) b_k(y)`,
        and their squares from k = 1 on add up to the variance.
        """

    @abstractmethod
    def covariance(
        self,
        mx: Array,
        my: Array,
        vx: Array,
        vy: Array,
        c: Array,
    ) -> Array:
        """Covariance of f(x) and f(y), where x and y have covariance ``c``; exact to rounding."""

    def mean(self, m: Array, v: Array) -> Array:
        r""":math:`E f(x)`."""
        return self.derivative(0, m, v)

    def variance(self, m: Array, v: Array) -> Array:
        """Variance of f(x), never negative."""
        m, v = doubles(m, v)
        value: Tensor = (self.second_moment(m, v) - self.mean(m, v).square()).clamp(min=0)

        return value

    def product(
        self,
        mx: Array,
        my: Array,
        vx: Array,
        vy: Array,
        c: Array,
    ) -> Array:
        r""":math:`E f(x) f(y)`, exact to rounding for any covariance ``c`` of x and y."""
        return self.covariance(mx, my, vx, vy, c) + self.mean(mx, vx) * self.mean(my, vy)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class Smooth(Elementwise):
    r"""A function that is analytic near the real line, by quadrature.

    The trapezoidal rule over :math:`m + \sigma z` converges exponentially for such functions: its
    step follows the nearest pole and the largest standard deviation given, and 14 digits are kept
    up to standard deviations of some hundreds. Pairs use the Hermite series where its remainder
    is below rounding, and the rule in two dimensions where it is not.

    Args:
        name: of the function.
        pole: distance from the real line to its nearest pole.
    """

    name: str
    pole: float

    @abstractmethod
    def of_order(self, k: int, x: Array) -> Array:
        """The k-th derivative at x."""

    def __call__(self, x: Array) -> Array:
        """The function."""
        return self.of_order(0, x)

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative."""
        check_order(k)
        m, v = doubles(m, v)
        return self._expected(lambda x: self.of_order(k, x), m, v, k)

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        m, v = doubles(m, v)
        return self._expected(lambda x: self(x).square(), m, v)

    def variance(self, m: Array, v: Array) -> Array:
        """Variance, about the mean, so that small ones are accurate."""
        m, v = doubles(m, v)
        z, weights = self._rule(v, 0)
        parts = []
        for part_m, part_v in _parts(m, v, len(z)):
            values = self(part_m[:, None] + part_v.sqrt()[:, None] * z)
            values = values - self(part_m)[:, None]
            parts.append((values - (values @ weights)[:, None]).square() @ weights)

        return torch.cat(parts).view(m.shape) if parts else m.clone()

    def coefficients(self, order: int, m: Array, v: Array) -> Float[Tensor, "rows ..."]:
        """Normalised Hermite coefficients."""
        check_order(order)
        m, v = doubles(m, v)
        z, weights = self._rule(v, order)
        rows = hermite_rows(order, z) * weights
        parts = []
        for part_m, part_v in _parts(m, v, len(z)):
            at_mean = self(part_m)
            values = self(part_m[:, None] + part_v.sqrt()[:, None] * z) - at_mean[:, None]
            projected = values @ rows.T
            parts.append(torch.cat([projected[:, :1] + at_mean[:, None], projected[:, 1:]], dim=1))
        flat = torch.cat(parts) if parts else m.new_zeros(0, order + 1)

        return flat.T.reshape(order + 1, *m.shape)

    def covariance(
        self,
        mx: Array,
        my: Array,
        vx: Array,
        vy: Array,
        c: Array,
    ) -> Array:
        """Covariance of f(x) and f(y)."""
        mx, my, vx, vy, c = doubles(mx, my, vx, vy, c)
        flat = [x.reshape(-1) for x in (mx, my, vx, vy, c)]
        if not len(flat[0]):
            return c.clone()
        covariances, left = self._by_series(flat)
        worst = left.nonzero().squeeze(-1)
        if len(worst):
            covariances = covariances.index_put(
                (worst,), self._by_quadrature(*(x[worst] for x in flat))
            )

        return covariances.view(c.shape)

    def _by_series(self, given: list[Tensor], order: int = 40) -> tuple[Tensor, Tensor]:
        """The series up to an order, and the pairs whose remainder is above rounding."""
        mx, my, vx, vy, c = given
        rho = correlation(vx, vy, c)
        bx, by = self.coefficients(order, mx, vx), self.coefficients(order, my, vy)
        total = torch.zeros_like(c)
        for k in range(order, 0, -1):
            total = (total + bx[k] * by[k]) * rho
        sizes = (bx[1:].square().sum(0), by[1:].square().sum(0))
        ends = [
            (whole - kept).clamp(min=0) + whole * 1e-16
            for whole, kept in zip(
                (self.variance(mx, vx), self.variance(my, vy)), sizes, strict=True
            )
        ]
        remainder = rho.abs().pow(order + 1) * (ends[0] * ends[1]).sqrt()

        return total, remainder > _ROUNDING * (sizes[0] * sizes[1]).sqrt()

    def _by_quadrature(self, mx: Tensor, my: Tensor, vx: Tensor, vy: Tensor, c: Tensor) -> Tensor:
        rho = correlation(vx, vy, c)
        q = ((1 - rho) * (1 + rho)).clamp(min=0).sqrt()
        z, weights = self._rule(torch.maximum(vx, vy), 0)
        centre_x, centre_y = self.mean(mx, vx), self.mean(my, vy)
        parts = []
        size = max(1, _SAMPLES // len(z) ** 2)
        given = (mx, my, vx.sqrt(), vy.sqrt(), rho, q, centre_x, centre_y)
        for x in chunks(size, *given):
            m1, m2, s1, s2, r, rest, c1, c2 = (t[:, None, None] for t in x)
            first = self(m1 + s1 * z[:, None]) - c1
            second = self(m2 + s2 * (r * z[:, None] + rest * z)) - c2
            parts.append(((first * second) @ weights) @ weights)

        return torch.cat(parts)

    def _rule(self, v: Tensor, order: int, sharper: int = 0) -> tuple[Tensor, Tensor]:
        """Nodes, and weights with the density; a derivative's poles are of higher order."""
        widest = float(v.detach().amax().sqrt()) if v.numel() else 0.0
        step = min(0.15, _POLE * self.pole / max(widest, 1e-9) / (1 + sharper / 8))
        reach = 9.0 + 2 * math.sqrt(order)
        count = math.ceil(reach / max(step, _FINEST))
        z = torch.arange(-count, count + 1, dtype=torch.float64, device=v.device) * reach / count

        return z, normal_pdf(z) * reach / count

    def _expected(
        self, f: Callable[[Tensor], Tensor], m: Tensor, v: Tensor, sharper: int = 0
    ) -> Tensor:
        z, weights = self._rule(v, 0, sharper)
        parts = [
            f(part_m[:, None] + part_v.sqrt()[:, None] * z) @ weights
            for part_m, part_v in _parts(m, v, len(z))
        ]

        return torch.cat(parts).view(m.shape) if parts else m.clone()


@dataclass(frozen=True, repr=False)
class Sigmoid(Smooth):
    """The logistic function."""

    name: str = "sigmoid"
    pole: float = math.pi

    def of_order(self, k: int, x: Array) -> Array:
        """The k-th derivative, a polynomial in the function itself."""
        return _horner(_polynomial("sigmoid", k), torch.sigmoid(x))


@dataclass(frozen=True, repr=False)
class Tanh(Smooth):
    """The hyperbolic tangent."""

    name: str = "tanh"
    pole: float = math.pi / 2

    def of_order(self, k: int, x: Array) -> Array:
        """The k-th derivative, a polynomial in the function itself."""
        return _horner(_polynomial("tanh", k), torch.tanh(x))


@dataclass(frozen=True, repr=False)
class SiLU(Smooth):
    r""":math:`x / (1 + e^{-x})`, also called swish."""

    name: str = "silu"
    pole: float = math.pi

    def of_order(self, k: int, x: Array) -> Array:
        """The k-th derivative."""
        s = torch.sigmoid(x)
        value = x * _horner(_polynomial("sigmoid", k), s)

        return value + k * _horner(_polynomial("sigmoid", k - 1), s) if k else value


@dataclass(frozen=True, repr=False)
class GELUTanh(Smooth):
    """ExactGELU with the tangent that many models compute in place of the normal distribution."""

    name: str = "gelu_tanh"
    pole: float = 2.0

    def of_order(self, k: int, x: Array) -> Array:
        """The k-th derivative, by differentiating k times."""
        if k == 0:
            return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            value = self.of_order(0, point)
            for _ in range(k):
                (value,) = torch.autograd.grad(value.sum(), point, create_graph=True)

        return value if x.requires_grad else value.detach()


@cache
def _polynomial(name: str, k: int) -> tuple[int, ...]:
    """Coefficients, from power 0, of the k-th derivative as a polynomial in the function."""
    if k == 0:
        return (0, 1)
    slope = (0, 1, -1) if name == "sigmoid" else (1, 0, -1)
    before = _polynomial(name, k - 1)
    product = [0] * (len(before) + 1)
    for i, a in enumerate(before[1:]):
        for j, b in enumerate(slope):
            product[i + j] += (i + 1) * a * b

    return tuple(product)


def _horner(coefficients: tuple[int, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, float(coefficients[-1]))
    for c in reversed(coefficients[:-1]):
        total = total * x + float(c)

    return total


def hermite_rows(order: int, x: Array) -> Float[Tensor, "rows ..."]:
    r"""Probabilists' Hermite polynomials :math:`He_k(x) / \sqrt{k!}`, k from 0 to ``order``."""
    rows = [torch.ones_like(x)]
    if order >= 1:
        rows.append(x)
    for k in range(1, order):
        rows.append((x * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))

    return torch.stack(rows[: order + 1])


def doubles(*given: Tensor | float) -> tuple[Tensor, ...]:
    """Converts to float64 and broadcasts to one shape."""
    return together(*(torch.as_tensor(x, dtype=torch.float64) for x in given))


def check_order(k: int) -> None:
    """Refuses an order below 0."""
    if k < 0:
        raise BadValue(f"the order {k} is negative", where="derivative")


def correlation(vx: Tensor, vy: Tensor, c: Tensor) -> Tensor:
    """Correlation from variances and covariance; 0 where a variance is 0."""
    scale = vx.sqrt() * vy.sqrt()
    rho: Tensor = torch.where(scale > 0, c / scale, torch.zeros_like(c)).clamp(-1, 1)

    return rho


def _parts(m: Tensor, v: Tensor, nodes: int) -> Iterator[tuple[Tensor, ...]]:
    return chunks(max(1, _SAMPLES // nodes), m, v)


def through(f: Elementwise, normal: Normal, *, method: Method = "exact", order: int = 8) -> Normal:
    r"""Mean and covariance of f(x) for Gaussian x: the Gaussian nearest to it.

    The exact method is exact to about 13 digits of the standard deviations: a pair of correlation
    :math:`\rho` takes as many terms of :math:`\sum_k \rho^k b_k(i) b_k(j)` as its remainder, which
    is at most :math:`|\rho|^{K+1}` times the variance left, requires; pairs of high correlation
    take the closed form or quadrature instead. ``series`` stops at ``order`` everywhere. Means and
    variances are exact in both. A diagonal Gaussian stays diagonal. Where the inputs
    require gradients the result has them, at the cost of memory.

    A masked state may contain covariances that no two variables can have; they count as
    correlations of 1 or -1, and :func:`impossible_pairs` counts them.

    Args:
        f: the function.
        normal: the inputs.
        method: ``"exact"`` or ``"series"``.
        order: last term of ``series``; 1 keeps the linear part.

    Raises:
        BadValue: another method, or an order below 1.

    References:
        Wright et al., 2024. https://arxiv.org/abs/2403.16163
    """
    mean, variance = f.mean(normal.mean, normal.variance), f.variance(normal.mean, normal.variance)
    if normal.is_diagonal:
        return Normal(mean, variance)

    return Normal(mean, covariance_of(f, normal, method=method, order=order))


def covariance_of(
    f: Elementwise, normal: Normal, *, method: Method = "exact", order: int = 8
) -> Float[Tensor, "d d"]:
    """Covariance of f(x); see :func:`through`."""
    if method not in ("exact", "series"):
        raise BadValue(
            f"there is no method {method!r}", where="through", mend="Use 'exact' or 'series'"
        )
    if order < 1:
        raise BadValue(f"the order is {order}", where="through", mend="Use 1 or more")
    terms = order if method == "series" else None
    if normal.mean.requires_grad or normal.covariance.requires_grad:
        return _differentiable(f, normal, terms)

    return _Pairs(f, normal, terms).all()


def impossible_pairs(normal: Normal) -> int:
    """How many pairs have a covariance above the product of their standard deviations."""
    if normal.is_diagonal:
        return 0
    sigma = normal.variance.sqrt()
    over = normal.covariance.abs() > sigma[:, None] * sigma * (1 + 1e-9)

    return int(over.triu(1).sum())


class _Pairs:
    """The pairs of one layer, taken strip by strip through the upper triangle."""

    def __init__(self, f: Elementwise, normal: Normal, order: int | None) -> None:
        self.f, self.normal, self.order = f, normal, order
        m, v = normal.mean, normal.variance
        self.rate = torch.where(v > 0, v.rsqrt(), torch.zeros_like(v))
        self.variance = f.variance(m, v)
        self.terms = f.coefficients(order or _LONGEST, m, v)[1:]
        kept = self.terms.square().cumsum(0)
        safe = self.variance.clamp(min=1e-300)
        left = ((self.variance - kept).clamp(min=0) / safe).amax(1).clamp(min=1e-15)
        self.reach = (_EXACT / left) ** (1 / torch.arange(2, len(left) + 2))
        """Largest correlation for which so many terms suffice."""

    def all(self) -> Tensor:
        """The covariance of the outputs."""
        width = len(self.normal.mean)
        out = torch.empty(width, width, dtype=torch.float64, device=self.normal.mean.device)
        start = 0
        while start < width:
            stop = min(width, start + max(1, _STRIP // (width - start)))
            self._strip(out, start, stop)
            start = stop
        out.diagonal().copy_(self.variance)

        return out

    def _strip(self, out: Tensor, start: int, stop: int) -> None:
        """Rows from ``start`` to ``stop``, from the diagonal on, and their mirror image."""
        rho = self.normal.covariance[start:stop, start:] * self.rate[start:stop, None]
        rho = rho.mul_(self.rate[start:]).clamp_(-1, 1)
        rho.diagonal().zero_()
        last, steep = self._terms_for(rho)
        if steep is not None:
            rho = rho.masked_fill(steep, 0.0)
        total = torch.zeros_like(rho)
        for k in range(last - 1, -1, -1):
            total.addr_(self.terms[k, start:stop], self.terms[k, start:]).mul_(rho)
        if steep is not None:
            rows, columns = steep.nonzero(as_tuple=True)
            total[rows, columns] = self._each(rows + start, columns + start)
        out[start:stop, start:] = total
        out[start:, start:stop] = total.T
        square = total[:, : stop - start]
        out[start:stop, start:stop] = square.triu() + square.triu(1).T

    def _terms_for(self, rho: Tensor) -> tuple[int, Tensor | None]:
        """How many terms this strip needs, and which pairs the series is too slow for."""
        if self.order is not None:
            return self.order, None
        longest = float(self.reach.amax())
        largest = _largest(rho)
        steep = None
        if largest > longest:
            steep = rho.abs() > longest
            largest = _largest(rho.masked_fill(steep, 0.0))
        enough = (self.reach >= largest).nonzero()

        return int(enough[0, 0]) + 1 if len(enough) else len(self.terms), steep

    def _each(self, rows: Tensor, columns: Tensor) -> Tensor:
        m, v, s = self.normal.mean, self.normal.variance, self.normal.covariance

        return self.f.covariance(m[rows], m[columns], v[rows], v[columns], s[rows, columns])


def _differentiable(f: Elementwise, normal: Normal, order: int | None) -> Tensor:
    """The same without strips, for gradients on small layers."""
    m, v = normal.mean, normal.variance
    apart = ~torch.eye(len(m), dtype=torch.bool, device=m.device)
    c = torch.where(apart, normal.full, torch.zeros_like(normal.full))
    if order is None:
        pairs = f.covariance(m[:, None], m, v[:, None], v, c)
    else:
        terms = f.coefficients(order, m, v)[1:]
        rate = torch.where(v > 0, v.clamp(min=1e-300).rsqrt(), torch.zeros_like(v))
        rho = c * rate[:, None] * rate
        pairs = torch.zeros_like(c)
        for k in range(order - 1, -1, -1):
            pairs = (pairs + terms[k][:, None] * terms[k]) * rho

    return torch.where(apart, (pairs + pairs.T) / 2, torch.diag_embed(f.variance(m, v)))


def _largest(rho: Tensor) -> float:
    low, high = torch.aminmax(rho)

    return max(math.fabs(float(low)), float(high))
