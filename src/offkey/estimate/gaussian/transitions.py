"""What one layer makes of a Gaussian, and how covariances with its input are carried on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch
from offkey.estimate.gaussian.distribution import normal_pdf
from offkey.estimate.gaussian.elementwise import Elementwise, Method, Smooth, through
from offkey.estimate.gaussian.functions import LeakyReLU, ReLU
from offkey.estimate.gaussian.normal import Normal

__all__ = [
    "Carry",
    "Transition",
    "identity",
    "linear",
    "elementwise",
    "residual",
    "product",
    "bilinear",
    "chained",
    "part",
    "across",
    "symmetric",
    "multiplied",
    "rms_norm",
    "layer_norm",
    "centred",
    "affine",
    "softmax",
    "gated",
    "gated_by",
]

Carry = Callable[[Float[Tensor, "any d_in"]], Float[Tensor, "any d_out"]]
_TERMS = 60
"""Of the series for a pair; functions with a gate's smoothness leave less than rounding."""
_EXACT = 1e-13
_GATED_STRIP = 1 << 14
_REACH = 10.0


@dataclass(frozen=True)
class Transition:
    r"""One layer's state, with its mean Jacobian as an action.

    Attributes:
        state: mean and covariance of the layer's output.
        carry: maps Cov(z, input) to Cov(z, output), for any z that is jointly Gaussian with
            the input: multiplication by :math:`E[\partial y / \partial x]^\top` (Stein). A
            residual stream needs it, and bilinear layers.
    """

    state: Normal
    carry: Carry


def identity(normal: Normal) -> Transition:
    """The transition that changes nothing."""
    return Transition(normal, lambda cross: cross)


def linear(
    normal: Normal,
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Transition:
    r""":math:`Wx + b`: mean :math:`Wm + b`, covariance :math:`W S W^\top`.

    A diagonal Gaussian gives a diagonal one: covariances that the layer creates are dropped.

    Raises:
        Mismatch: the widths differ.
    """
    weight = weight.double()
    if weight.shape[1] != len(normal.mean):
        raise Mismatch(
            f"the layer takes width {weight.shape[1]}, and the state has {len(normal.mean)}",
            where="linear layer",
        )
    mean = weight @ normal.mean
    if bias is not None:
        mean = mean + bias.double()
    if normal.is_diagonal:
        covariance = weight.square() @ normal.covariance
    else:
        covariance = symmetric(weight @ normal.covariance @ weight.T)

    return Transition(Normal(mean, covariance), lambda cross: cross @ weight.T)


def elementwise(
    f: Elementwise, normal: Normal, *, method: Method = "exact", order: int = 8
) -> Transition:
    """A function of each coordinate; covariances with it are carried exactly (Stein)."""
    slope = f.derivative(1, normal.mean, normal.variance)

    return Transition(through(f, normal, method=method, order=order), lambda cross: cross * slope)


def residual(normal: Normal, branch: Transition) -> Transition:
    r""":math:`x + g(x)`: the covariance is :math:`S + C_g + X + X^\top`, X = Cov(x, g(x)).

    Args:
        normal: x.
        branch: the transition of x through g.

    Raises:
        Mismatch: the branch ends in another width.
    """
    if len(branch.state.mean) != len(normal.mean):
        raise Mismatch(
            f"the branch ends in width {len(branch.state.mean)}, and the stream has "
            f"{len(normal.mean)}",
            where="residual",
        )
    mean = normal.mean + branch.state.mean
    cross = branch.carry(normal.full)
    if normal.is_diagonal:
        covariance = normal.covariance + branch.state.variance + 2 * cross.diagonal()
        covariance = covariance.clamp(min=0)
    else:
        covariance = normal.covariance + branch.state.full + cross + cross.T

    return Transition(Normal(mean, covariance), lambda cross: cross + branch.carry(cross))


def product(left: Normal, right: Normal, across: Float[Tensor, "d d"]) -> Normal:
    r""":math:`x \odot y` for jointly Gaussian x and y, in memory of order d²; exact.

    Args:
        left: x.
        right: y.
        across: Cov(x, y).
    """
    a, b = left.mean, right.mean
    own = across.diagonal()
    mean = a * b + own
    if left.is_diagonal:
        u, v = left.variance, right.variance
        variance = a * a * v + b * b * u + 2 * a * b * own + u * v + own * own
        return Normal(mean, variance)
    first, second = left.full, right.full
    mixed = a[:, None] * b * across.T
    covariance = (
        first * second
        + across * across.T
        + a[:, None] * a * second
        + b[:, None] * b * first
        + mixed
        + mixed.T
    )

    return Normal(mean, symmetric(covariance))


def bilinear(
    normal: Normal, left: Float[Tensor, "h d"], right: Float[Tensor, "h d"]
) -> Transition:
    r""":math:`(Lx) \odot (Rx)`, exact, without a tensor of order d³."""
    return multiplied(normal, linear(normal, left), linear(normal, right))


def chained(*transitions: Transition) -> Transition:
    """Composes transitions, each of which starts in the state where the one before ended."""
    return Transition(transitions[-1].state, _compose([t.carry for t in transitions]))


def part(whole: Transition, where: slice) -> Transition:
    """Some coordinates of the output."""
    state = whole.state
    covariance = state.covariance[where] if state.is_diagonal else state.covariance[where, where]

    return Transition(
        Normal(state.mean[where], covariance), lambda cross: whole.carry(cross)[:, where]
    )


def across(normal: Normal, left: Transition, right: Transition) -> Float[Tensor, "h h"]:
    """Covariance between two outputs of one state; of a diagonal state its diagonal alone."""
    if not normal.is_diagonal:
        return right.carry(left.carry(normal.full).T)
    eye = torch.eye(len(normal.mean), dtype=torch.float64, device=normal.mean.device)

    return torch.diag((left.carry(eye) * normal.variance[:, None] * right.carry(eye)).sum(0))


def symmetric(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The matrix without the asymmetry that rounding leaves."""
    return (matrix + matrix.T) / 2


def multiplied(normal: Normal, left: Transition, right: Transition) -> Transition:
    """The product of two transitions of one state, closed as jointly Gaussian."""
    a, b = left.state.mean, right.state.mean

    return Transition(
        product(left.state, right.state, across(normal, left, right)),
        lambda cross: left.carry(cross) * b + right.carry(cross) * a,
    )


def _compose(carries: Sequence[Carry]) -> Carry:
    def carry(cross: Tensor) -> Tensor:
        for step in carries:
            cross = step(cross)
        return cross

    return carry


def rms_norm(
    normal: Normal, weight: Float[Tensor, " d"] | None = None, *, eps: float = 0.0
) -> Transition:
    r""":math:`w \odot x / \sqrt{s}` with :math:`s = \lVert x \rVert^2 / d + \epsilon`.

    With :math:`\bar s = E s` and :math:`J = \bar s^{-1/2} (I - m m^\top / (d \bar s))`: mean
    :math:`m \bar s^{-1/2} (1 + \tfrac38 Var(s) / \bar s^2) - \bar s^{-3/2} S m / d`, covariance
    :math:`J S J^\top`. Exact where m = 0 and S is a multiple of the identity.

    Raises:
        BadValue: mean, covariance and eps are all 0.
    """
    return chained(*_normed(normal, weight, None, eps))


def layer_norm(
    normal: Normal,
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 0.0,
) -> Transition:
    """Centring, then what :func:`rms_norm` does, then weight and bias."""
    first = centred(normal)

    return chained(first, *_normed(first.state, weight, bias, eps))


def centred(normal: Normal) -> Transition:
    """Each vector less the mean of its coordinates; a diagonal Gaussian stays diagonal."""
    mean = normal.mean - normal.mean.mean()
    covariance, width = normal.covariance, len(normal.mean)
    if normal.is_diagonal:
        covariance = covariance * (1 - 2 / width) + covariance.mean() / width
    else:
        rows = covariance.mean(1)
        covariance = symmetric(covariance - rows[:, None] - rows + rows.mean())
        covariance.diagonal().clamp_(min=0)

    return Transition(Normal(mean, covariance), lambda cross: cross - cross.mean(-1, keepdim=True))


def affine(
    normal: Normal, weight: Float[Tensor, " d"] | None, bias: Float[Tensor, " d"] | None
) -> Transition:
    """Each coordinate times its weight, plus its bias."""
    scale = torch.ones_like(normal.mean) if weight is None else weight.double()
    mean = normal.mean * scale if bias is None else normal.mean * scale + bias.double()
    outer = scale.square() if normal.is_diagonal else scale[:, None] * scale

    return Transition(Normal(mean, normal.covariance * outer), lambda cross: cross * scale)


def softmax(normal: Normal) -> Transition:
    r"""Probabilities of Gaussian logits, approximately.

    .. math:: E p_k \approx \Bigl(2 - K + \sum_{j \ne k} 1 / \sigma(\Delta_{kj} /
        \sqrt{1 + \pi v_{kj} / 8})\Bigr)^{-1}

    with mean and variance of :math:`z_k - z_j`. The covariance is :math:`J S J^\top` with
    :math:`J = diag(p) - p p^\top`, good where the logits vary by less than about 1. The
    probabilities need not add up to 1 exactly.
    """
    m, v = normal.mean, normal.variance
    count = len(m)
    apart = v[:, None] + v - (0 if normal.is_diagonal else 2 * normal.covariance)
    gap = (m[:, None] - m) / (1 + math.pi * apart.clamp(min=0) / 8).sqrt()
    inverse = 1 + (-gap).exp()
    inverse.fill_diagonal_(0)
    p = 1 / (2 - count + inverse.sum(1))

    def carry(cross: Tensor) -> Tensor:
        return cross * p - (cross @ p)[..., None] * p

    if normal.is_diagonal:
        square = v * p.square()
        covariance = square * (1 - 2 * p) + p.square() * square.sum()
    else:
        covariance = symmetric(carry(carry(normal.covariance).T))

    return Transition(Normal(p, covariance), carry)


def _normed(
    normal: Normal, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Transition, Transition]:
    first = _divided(normal, eps)

    return first, affine(first.state, weight, bias)


def _divided(normal: Normal, eps: float) -> Transition:
    m, width = normal.mean, len(normal.mean)
    square = float((normal.variance.sum() + m @ m) / width) + eps
    if square <= 0:
        raise BadValue("the state is 0 without variance", where="norm")
    turned = normal.variance * m if normal.is_diagonal else normal.covariance @ m
    energy = normal.covariance.square().sum()
    spread = float((2 * energy + 4 * m @ turned) / width**2)
    root = square**-0.5
    mean = m * root * (1 + 0.375 * spread / square**2) - root / square * turned / width
    share = m / (width * square)

    def carry(cross: Tensor) -> Tensor:
        made: Tensor = root * (cross - (cross @ m)[..., None] * share)
        return made

    if normal.is_diagonal:
        v = normal.covariance
        covariance = (v - 2 * turned * share + share.square() * (m @ turned)) / square
        covariance = covariance.clamp(min=0)
    else:
        covariance = symmetric(carry(carry(normal.covariance).T))
        covariance.diagonal().clamp_(min=0)

    return Transition(Normal(mean, covariance), carry)


def gated(
    f: Elementwise,
    normal: Normal,
    gate: Float[Tensor, "h d"],
    up: Float[Tensor, "h d"],
    *,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Transition:
    r""":math:`f(g) \odot w` with :math:`g = Gx + b` and :math:`w = Ux + c`.

    Mean, variances and the mean Jacobian are exact: with :math:`\alpha = Cov(w_i, g_i)` the mean
    is :math:`c_0 \mu_w + c_1 \alpha`, and the mean Jacobian is :math:`diag(c_1 \mu_w + c_2 \alpha)
    G + diag(c_0) U`. Covariances are exact too where f is analytic: w is integrated out by parts
    (Isserlis), which leaves means of products of f, f' and f'' at two gates, and those are series
    in their correlation. With a ReLU as gate, f(g) and w are closed as jointly Gaussian instead.
    """
    return gated_by(f, normal, linear(normal, gate, biases[0]), linear(normal, up, biases[1]))


def gated_by(f: Elementwise, normal: Normal, gate: Transition, up: Transition) -> Transition:
    """The same from the transitions of the two linear parts."""
    g, w = gate.state, up.state
    c0, c1, c2 = (f.derivative(k, g.mean, g.variance) for k in range(3))
    between = across(normal, up, gate)  # Cov(w_i, g_j)
    own = between.diagonal()
    mean = c0 * w.mean + c1 * own

    def carry(cross: Tensor) -> Tensor:
        return gate.carry(cross) * (c1 * w.mean + c2 * own) + up.carry(cross) * c0

    if isinstance(f, ReLU | LeakyReLU):
        active = chained(gate, elementwise(f, g))
        state = Normal(mean, multiplied(normal, active, up).state.covariance)
        return Transition(state, carry)
    variance = _variances(f, g, w, own, mean)
    if normal.is_diagonal:
        return Transition(Normal(mean, variance), carry)
    covariance = _second_moments(f, g, w, between) - mean[:, None] * mean
    covariance.diagonal().copy_(variance)

    return Transition(Normal(mean, symmetric(covariance)), carry)


def _variances(f: Elementwise, g: Normal, w: Normal, own: Tensor, mean: Tensor) -> Tensor:
    """Given its gate, w is Gaussian: one dimension is left to integrate over."""
    scale = f.pole if isinstance(f, Smooth) else 1.5
    sigma = g.variance.sqrt()
    step = min(0.1, 0.17 * scale / max(float(sigma.amax()), 1e-9))
    count = math.ceil(_REACH / max(step, 5e-4))
    z = torch.arange(-count, count + 1, dtype=torch.float64) * _REACH / count
    weights = normal_pdf(z) * _REACH / count
    slope = torch.where(sigma > 0, own / sigma, torch.zeros_like(own))
    rest = (w.variance - slope.square()).clamp(min=0)
    value = f(g.mean[:, None] + sigma[:, None] * z)
    given = w.mean[:, None] + slope[:, None] * z
    about: Tensor = (value * given - mean[:, None]).square() + value.square() * rest[:, None]

    return about @ weights


def _second_moments(f: Elementwise, g: Normal, w: Normal, between: Tensor) -> Tensor:
    """E f(g_i) w_i f(g_j) w_j off the diagonal, in strips of rows."""
    width = len(g.mean)
    rate = torch.where(g.variance > 0, g.variance.rsqrt(), torch.zeros_like(g.variance))
    b = f.coefficients(_TERMS + 2, g.mean, g.variance)
    roots = torch.arange(1, _TERMS + 3, dtype=torch.float64).sqrt()[:, None]
    first = b[1:] * roots * rate
    second = first[1:] * roots[:-1] * rate
    orders = (b[: _TERMS + 1], first[: _TERMS + 1], second[: _TERMS + 1])
    rows = max(1, _GATED_STRIP // width)
    out = torch.empty(width, width, dtype=torch.float64, device=g.mean.device)
    for start in range(0, width, rows):
        here = slice(start, min(width, start + rows))
        out[here] = _gated_strip(orders, g, w, between, rate, here)

    return out


def _gated_strip(
    orders: tuple[Tensor, Tensor, Tensor],
    g: Normal,
    w: Normal,
    between: Tensor,
    rate: Tensor,
    here: slice,
) -> Tensor:
    rho = (g.covariance[here] * rate[here, None] * rate).clamp_(-1, 1)
    rho[torch.arange(len(rho)), torch.arange(len(g.mean))[here]] = 0.0
    largest = float(rho.abs().amax())
    need = math.log(_EXACT) / math.log(largest) if 0 < largest < 1 else float(_TERMS)
    terms = min(_TERMS, math.ceil(need)) if largest else 0

    def mean_of(i: int, j: int) -> Tensor:
        """E of the i-th derivative at the row's gate times the j-th at the column's."""
        total = torch.zeros_like(rho)
        for k in range(terms, 0, -1):
            total.addr_(orders[i][k, here], orders[j][k]).mul_(rho)
        return total.addr_(orders[i][0, here], orders[j][0])

    m, own = w.mean, between.diagonal()
    mi, ai = m[here, None], own[here, None]
    aij, aji = between[here], between[:, here].T
    total = (mi * m + w.covariance[here]) * mean_of(0, 0)
    total += (mi * aji + ai * m) * mean_of(1, 0)
    total += (mi * own + aij * m) * mean_of(0, 1)
    total += (ai * own + aij * aji) * mean_of(1, 1)
    total += ai * aji * mean_of(2, 0)
    total += aij * own * mean_of(0, 2)

    return total
