"""The functions that have rules: closed forms, quadrature, and look-up by name or module."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offkey.errors import UnknownName
from offkey.estimate.gaussian.distribution import (
    bivariate_normal_cdf,
    chunks,
    conditional,
    excess,
    nodes_on_unit,
    normal_cdf,
    normal_pdf,
)
from offkey.estimate.gaussian.elementwise import (
    Array,
    Elementwise,
    GELUTanh,
    Sigmoid,
    SiLU,
    Tanh,
    check_order,
    correlation,
    doubles,
    hermite_rows,
)

__all__ = [
    "ERF",
    "ExactGELU",
    "GELU",
    "GELU_TANH",
    "IDENTITY",
    "Identity",
    "LeakyReLU",
    "PROBIT",
    "Probit",
    "RELU",
    "ReLU",
    "SIGMOID",
    "SILU",
    "SQUARE",
    "Square",
    "TANH",
    "by_name",
    "for_module",
]

_FAR = 40.0
_LEAST = 1e-300
"""Stands for a variance of 0, so that a ratio is 0 or far away and never nan."""
_BANDS = ((0.3, 6), (0.75, 12), (0.925, 20))
"""Largest correlation, and the nodes that keep 15 digits up to it."""
_CHUNK = 1 << 17


@dataclass(frozen=True, repr=False)
class ReLU(Elementwise):
    r""":math:`\max(x, 0)`.

    With :math:`\alpha = m / \sigma`: mean :math:`m \Phi(\alpha) + \sigma \varphi(\alpha)`,
    :math:`c_1 = \Phi(\alpha)`, :math:`c_k = (-1)^k \sigma^{1-k} He_{k-2}(\alpha)
    \varphi(\alpha)`. A covariance is :math:`\sigma_x \sigma_y (\rho \Phi(h) \Phi(k) +
    \int_0^\rho (\rho - r) \varphi_2(h, k; r) dr)`, by quadrature up to a correlation of .925 and
    in closed form above, where both means are first reflected below 0.

    References:
        Cho, Saul, 2009. Wright et al., 2024. https://arxiv.org/abs/2403.16163
    """

    name: str = "relu"

    def __call__(self, x: Array) -> Array:
        """The function."""
        return x.clamp(min=0)

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative; from k = 2 on in the sense of distributions."""
        check_order(k)
        if k == 0:
            return self.mean(m, v)
        sigma, alpha = _standard(*doubles(m, v))
        if k == 1:
            return normal_cdf(alpha)
        density = normal_pdf(alpha)
        row = hermite_rows(k - 2, alpha)[-1] * math.sqrt(math.factorial(k - 2)) * (-1) ** k
        value: Tensor = row * density * sigma.pow(1 - k)

        return torch.where(density > 0, value, torch.zeros_like(value))

    def mean(self, m: Array, v: Array) -> Array:
        """Mean."""
        m, v = doubles(m, v)
        sigma, alpha = _standard(m, v)

        return m * normal_cdf(alpha) + sigma * normal_pdf(alpha)

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        m, v = doubles(m, v)
        sigma, alpha = _standard(m, v)
        value: Tensor = (m * m + v) * normal_cdf(alpha) + m * sigma * normal_pdf(alpha)

        return value.clamp(min=0)

    def variance(self, m: Array, v: Array) -> Array:
        """Variance, with the mean reflected below 0 so that little cancels."""
        m, v = doubles(m, v)
        sigma, alpha = _standard(-m.abs(), v)
        lower, density = normal_cdf(alpha), normal_pdf(alpha)
        mean = alpha * lower + density
        below = (alpha * alpha + 1) * lower + alpha * density - mean.square()
        # Var x+ = v - 2 Cov(x, (-x)+) ... with (-x)+ = x+ - x
        share = torch.where(m > 0, below + 1 - 2 * lower, below)
        value: Tensor = (v * share).clamp(min=0)

        return value

    def coefficients(self, order: int, m: Array, v: Array) -> Array:
        """Normalised Hermite coefficients."""
        check_order(order)
        m, v = doubles(m, v)
        sigma, alpha = _standard(m, v)
        rows = [self.mean(m, v), sigma * normal_cdf(alpha)]
        if order >= 2:
            tail = sigma * normal_pdf(alpha)
            for k, hermite in enumerate(hermite_rows(order - 2, alpha), start=2):
                rows.append(hermite * tail * ((-1) ** k / math.sqrt(k * (k - 1))))

        return torch.stack(rows[: order + 1])

    def covariance(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """Covariance of the two outputs."""
        given = doubles(mx, my, vx, vy, c)
        shape = given[0].shape
        flat = [x.reshape(-1) for x in given]
        parts = [_relu_covariance(*chunk) for chunk in chunks(_CHUNK, *flat)]

        return torch.cat(parts).view(shape) if parts else given[0].clone()


@dataclass(frozen=True, repr=False)
class LeakyReLU(Elementwise):
    r""":math:`s x + (1 - s) \max(x, 0)`.

    Args:
        slope: s, the slope below 0.
    """

    slope: float = 0.01
    name: str = "leaky_relu"

    def __call__(self, x: Array) -> Array:
        """The function."""
        return self.slope * x + (1 - self.slope) * x.clamp(min=0)

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative."""
        m, v = doubles(m, v)
        line = m if k == 0 else torch.full_like(m, float(k == 1))

        return self.slope * line + (1 - self.slope) * ReLU().derivative(k, m, v)

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        m, v = doubles(m, v)
        s = self.slope

        return s * s * (m * m + v) + (1 - s * s) * ReLU().second_moment(m, v)

    def coefficients(self, order: int, m: Array, v: Array) -> Array:
        """Normalised Hermite coefficients."""
        return self.slope * Identity().coefficients(order, m, v) + (
            1 - self.slope
        ) * ReLU().coefficients(order, m, v)

    def covariance(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """Covariance of the two outputs."""
        mx, my, vx, vy, c = doubles(mx, my, vx, vy, c)
        s, relu = self.slope, ReLU()
        mixed = c * (relu.derivative(1, mx, vx) + relu.derivative(1, my, vy))

        return s * s * c + s * (1 - s) * mixed + (1 - s) ** 2 * relu.covariance(mx, my, vx, vy, c)


@dataclass(frozen=True, repr=False)
class Identity(Elementwise):
    """x itself."""

    name: str = "identity"

    def __call__(self, x: Array) -> Array:
        """The function."""
        return x

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative."""
        check_order(k)
        m, _ = doubles(m, v)

        return m.clone() if k == 0 else torch.full_like(m, float(k == 1))

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        m, v = doubles(m, v)

        return m * m + v

    def coefficients(self, order: int, m: Array, v: Array) -> Array:
        """Normalised Hermite coefficients."""
        check_order(order)
        m, v = doubles(m, v)
        rows = [m, v.sqrt(), *[torch.zeros_like(m)] * (order - 1)]

        return torch.stack(rows[: order + 1])

    def covariance(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """The covariance given."""
        return doubles(mx, my, vx, vy, c)[-1].clone()


@dataclass(frozen=True, repr=False)
class Square(Elementwise):
    r""":math:`x^2`."""

    name: str = "square"

    def __call__(self, x: Array) -> Array:
        """The function."""
        return x * x

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative."""
        check_order(k)
        m, v = doubles(m, v)
        if k < 2:
            return 2 * m if k else m * m + v

        return torch.full_like(m, 2.0 if k == 2 else 0.0)

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        m, v = doubles(m, v)

        return (m * m + v).square() + self.variance(m, v)

    def variance(self, m: Array, v: Array) -> Array:
        """Variance."""
        m, v = doubles(m, v)

        return 2 * v * v + 4 * m * m * v

    def coefficients(self, order: int, m: Array, v: Array) -> Array:
        """Normalised Hermite coefficients."""
        check_order(order)
        m, v = doubles(m, v)
        rows = [m * m + v, 2 * m * v.sqrt(), v * math.sqrt(2)]
        rows += [torch.zeros_like(m)] * (order - 2)

        return torch.stack(rows[: order + 1])

    def covariance(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """Covariance of the two squares."""
        mx, my, vx, vy, c = doubles(mx, my, vx, vy, c)

        return 2 * c * c + 4 * mx * my * c


def _standard(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    sigma = v.clamp(min=_LEAST).sqrt()

    return sigma, (m / sigma).clamp(-_FAR, _FAR)


def _relu_covariance(mx: Tensor, my: Tensor, vx: Tensor, vy: Tensor, c: Tensor) -> Tensor:
    (sx, h), (sy, k) = _standard(mx, vx), _standard(my, vy)
    rho = correlation(vx, vy, c)
    size = rho.abs().detach()
    share = torch.zeros_like(c)
    low = -1.0
    for high, nodes in (*_BANDS, (1.0, 0)):
        chosen = ((size > low) & (size <= high)).nonzero().squeeze(-1)
        if len(chosen) == len(c):
            share = _covariance_by_angle(h, k, rho, nodes) if nodes else _steep(h, k, rho)
        elif len(chosen):
            part = (h[chosen], k[chosen], rho[chosen])
            made = _covariance_by_angle(*part, nodes) if nodes else _steep(*part)
            share = share.index_put((chosen,), made)
        low = high

    return sx * sy * share


def _covariance_by_angle(h: Tensor, k: Tensor, rho: Tensor, nodes: int) -> Tensor:
    angle = rho.asin()
    half, hk = -(h * h + k * k) / 2, h * k
    total = torch.zeros_like(h)
    for node, weight in zip(*nodes_on_unit(nodes), strict=True):
        sine = (angle * node).sin()
        total = total + weight * (rho - sine) * ((half + hk * sine) / (1 - sine * sine)).exp()

    return rho * normal_cdf(h) * normal_cdf(k) + total * angle / (2 * math.pi)


def _steep(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    """Covariance in units of both standard deviations, by reflection and the closed form."""
    # Cov(x+, y+) = Cov(x, y+) + Cov((-x)+, y+), and the same for y
    up, right = h > 0, k > 0
    line = torch.where(up, rho * normal_cdf(k), torch.zeros_like(rho))
    h, rho = torch.where(up, -h, h), torch.where(up, -rho, rho)
    line = line + torch.where(right, rho * normal_cdf(h), torch.zeros_like(rho))
    k, rho = torch.where(right, -k, k), torch.where(right, -rho, rho)
    q = ((1 - rho) * (1 + rho)).clamp(min=0).sqrt()
    a, b = conditional(h, k, rho), conditional(k, h, rho)
    both = (
        (h * k + rho) * bivariate_normal_cdf(h, k, rho)
        + k * normal_pdf(h) * normal_cdf(a)
        + h * normal_pdf(k) * normal_cdf(b)
        + q * normal_pdf(h) * normal_pdf(a)
    )
    means = (h * normal_cdf(h) + normal_pdf(h)) * (k * normal_cdf(k) + normal_pdf(k))

    return line + both - means


@dataclass(frozen=True, repr=False)
class Probit(Elementwise):
    r""":math:`a \Phi(s x) + b`; with a = 2, s = √2, b = -1 it is erf.

    :math:`E \Phi(x) = \Phi(m / \sqrt{1 + v})`, and the product of two is a bivariate normal
    distribution.

    Args:
        name: of the function.
        scale: a.
        slope: s.
        shift: b.
    """

    name: str = "probit"
    scale: float = 1.0
    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, x: Array) -> Array:
        """The function."""
        value: Tensor = self.scale * normal_cdf(self.slope * x) + self.shift

        return value

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative."""
        check_order(k)
        m, v = doubles(m, v)
        t = (1 + self.slope**2 * v).sqrt()
        rate = self.slope / t
        u = m * rate
        if k == 0:
            return self.scale * normal_cdf(u) + torch.as_tensor(self.shift)
        row = hermite_rows(k - 1, u)[-1] * math.sqrt(math.factorial(k - 1)) * (-1) ** (k - 1)

        value: Tensor = self.scale * row * normal_pdf(u) * rate**k

        return value

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        return self.product(m, m, v, v, v)

    def variance(self, m: Array, v: Array) -> Array:
        """Variance."""
        value: Tensor = self.covariance(m, m, v, v, v).clamp(min=0)

        return value

    def coefficients(self, order: int, m: Array, v: Array) -> Array:
        """Normalised Hermite coefficients."""
        check_order(order)
        m, v = doubles(m, v)
        t = (1 + self.slope**2 * v).sqrt()
        u, step = m * self.slope / t, self.slope * v.sqrt() / t
        rows = [self.scale * normal_cdf(u) + self.shift]
        if order:
            power = self.scale * normal_pdf(u)
            for k, hermite in enumerate(hermite_rows(order - 1, u), start=1):
                power = power * step
                rows.append(hermite * power * ((-1) ** (k - 1) / math.sqrt(k)))

        return torch.stack(rows)

    def covariance(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """Covariance of the two outputs."""
        mx, my, vx, vy, c = doubles(mx, my, vx, vy, c)
        s = self.slope
        tx, ty = (1 + s * s * vx).sqrt(), (1 + s * s * vy).sqrt()

        return self.scale**2 * excess(s * mx / tx, s * my / ty, s * s * c / (tx * ty))


@dataclass(frozen=True, repr=False)
class ExactGELU(Elementwise):
    r""":math:`x \Phi(x)`, the exact ExactGELU.

    With :math:`t = \sqrt{1 + v}`: mean :math:`m \Phi(m/t) + (v/t) \varphi(m/t)`, derivatives by
    differentiating it in m. The product of two replaces each :math:`\Phi(x)` by the event that
    an independent standard normal is below x, and then needs Gaussian integrals over a quadrant
    alone.

    References:
        https://arxiv.org/abs/2601.22307 (exact moments of ExactGELU).
    """

    name: str = "gelu"

    def __call__(self, x: Array) -> Array:
        """The function."""
        return x * normal_cdf(x)

    def derivative(self, k: int, m: Array, v: Array) -> Array:
        """Mean of the k-th derivative."""
        check_order(k)
        m, v = doubles(m, v)
        t = (1 + v).sqrt()
        rows = _scaled(k, m / t) / t ** torch.arange(k + 2).view(-1, *[1] * m.ndim)

        return _smoothed(k, rows, m, v, t)

    def second_moment(self, m: Array, v: Array) -> Array:
        """Mean of the square."""
        return self.product(m, m, v, v, v)

    def coefficients(self, order: int, m: Array, v: Array) -> Array:
        """Normalised Hermite coefficients."""
        check_order(order)
        m, v = doubles(m, v)
        t, u = (1 + v).sqrt(), m / (1 + v).sqrt()
        density, step = normal_pdf(u), v.sqrt() / t
        hermite = hermite_rows(max(order, 1), u)
        rows = [m * normal_cdf(u) + v / t * density]
        for k in range(1, order + 1):
            # c_k = m D^k Phi + k D^(k-1) Phi + (v / t) D^k phi, each with He / sqrt(factorial)
            root = math.sqrt(k)
            first = (-1) ** (k - 1) * m / t * hermite[k - 1] / root * density
            second = (
                normal_cdf(u)
                if k == 1
                else (-1) ** k * hermite[k - 2] * density * math.sqrt(k / (k - 1))
            )
            third = (-1) ** k * (v / t) / t * hermite[k] * density
            rows.append((first + second + third) * step ** (k - 1) * v.sqrt())

        return torch.stack(rows)

    def product(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """Mean of the product of the two outputs."""
        mx, my, vx, vy, c = doubles(mx, my, vx, vy, c)
        va, vb = 1 + vx, 1 + vy
        h, k, r = mx / va.sqrt(), my / vb.sqrt(), c / (va * vb).sqrt()
        both = bivariate_normal_cdf(h, k, r)
        at_h, at_k = normal_pdf(h) / va.sqrt(), normal_pdf(k) / vb.sqrt()
        given_h, given_k = conditional(h, k, r), conditional(k, h, r)
        of_y = my * both + c * at_h * normal_cdf(given_h) + vy * at_k * normal_cdf(given_k)
        n, s = my - c * mx / va, (vb - c * c / va).sqrt()
        edge_a = at_h * (n * normal_cdf(n / s) + (vy - c * c / va) / s * normal_pdf(n / s))
        n, s = mx - c * my / vb, (va - c * c / vb).sqrt()
        edge_b = at_k * (
            my * (1 - vy / vb) * normal_cdf(n / s) + (c - vy * c / vb) / s * normal_pdf(n / s)
        )

        return mx * of_y + c * both + vx * edge_a + c * edge_b

    def covariance(self, mx: Array, my: Array, vx: Array, vy: Array, c: Array) -> Array:
        """Covariance of the two outputs."""
        return self.product(mx, my, vx, vy, c) - self.mean(mx, vx) * self.mean(my, vy)


def _scaled(k: int, u: Tensor) -> Tensor:
    """D^j of the distribution at u for j from 0 to k + 1, in units of u."""
    density = normal_pdf(u)
    rows = [normal_cdf(u)]
    for j, hermite in enumerate(hermite_rows(k, u)):
        rows.append((-1) ** j * math.sqrt(math.factorial(j)) * hermite * density)

    return torch.stack(rows)


def _smoothed(k: int, rows: Tensor, m: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """D^k of m Phi(m/t) + v D Phi(m/t)."""
    value = m * rows[k] + v * rows[k + 1]

    return value + k * rows[k - 1] if k else value


RELU = ReLU()


GELU = ExactGELU()


GELU_TANH = GELUTanh()


SILU = SiLU()


TANH = Tanh()


SIGMOID = Sigmoid()


ERF = Probit("erf", scale=2.0, slope=2.0**0.5, shift=-1.0)


PROBIT = Probit()


SQUARE = Square()


IDENTITY = Identity()


_ALL: tuple[Elementwise, ...] = (
    RELU,
    GELU,
    GELU_TANH,
    SILU,
    TANH,
    SIGMOID,
    ERF,
    PROBIT,
    SQUARE,
    IDENTITY,
)


_BY_NAME: dict[str, Elementwise] = {f.name: f for f in _ALL} | {"swish": SILU}


_BY_CLASS: dict[str, Elementwise] = {
    "ReLU": RELU,
    "SiLU": SILU,
    "SiLUActivation": SILU,
    "Tanh": TANH,
    "Sigmoid": SIGMOID,
    "Identity": IDENTITY,
    "LinearActivation": IDENTITY,
    "GELUActivation": GELU,
    "NewGELUActivation": GELU_TANH,
    "FastGELUActivation": GELU_TANH,
    "PytorchGELUTanh": GELU_TANH,
    "GELUTanh": GELU_TANH,
}


def by_name(name: str) -> Elementwise:
    """A function by its name, such as ``"relu"``.

    Raises:
        UnknownName: there is no such function.
    """
    if name not in _BY_NAME:
        raise UnknownName("function", name, _BY_NAME)

    return _BY_NAME[name]


def for_module(module: nn.Module) -> Elementwise | None:
    """The function that a module of torch or transformers computes; ``None`` if it is another."""
    if isinstance(module, nn.GELU):
        return GELU_TANH if module.approximate == "tanh" else GELU
    if isinstance(module, nn.LeakyReLU):
        return LeakyReLU(module.negative_slope)

    return _BY_CLASS.get(type(module).__name__)
