r"""Expected activations of a wide random network of rectifiers, from its weights alone.

Every layer is a linear map, which is exact on cumulants, and a rectifier, where the output's
cumulants are sums of diagrams (Wick's theorem for the covariances, Edgeworth's series for the
third cumulants). A diagram is kept while the cost of its blocks is small: a covariance costs 1, a
third cumulant 2, the isotropic part of a fourth 2. With all diagrams of cost 2 the squared error
of a mean is :math:`O(n^{-3})` in the width; carrying mean and covariance alone it is
:math:`O(n^{-2})`. Of cost 3 those are kept that need no further products of matrices.

The fourth cumulant never has to be carried. The network is homogeneous, so that a layer's
activations may be multiplied by an independent random scale of mean 1 without changing the mean
of anything after it. After every rectifier that scale's variance v, mostly negative, is chosen so
that the isotropic part :math:`c\,(\delta\delta + \delta\delta + \delta\delta)` of the fourth
cumulant vanishes, and the lower cumulants are changed to match (:func:`rescaled`).

References:
    arXiv:2605.05179, cumulant propagation, K = 3, factored.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from offkey.errors import BadValue, Mismatch

__all__ = [
    "Array",
    "Arrays",
    "NUMPY",
    "POWERS",
    "LEAST_VARIANCE",
    "Vector",
    "WickCoefficients",
    "relu_wick",
    "Matrix",
    "Source",
    "VectorSource",
    "Marginals",
    "Slices",
    "LayerCumulants",
    "expected_activations",
    "linear",
    "marginals",
    "rectify",
    "RectifiedPairs",
    "rescaled",
]

Array: TypeAlias = Any
"""An array of the library in use; never changed in place."""
POWERS = 4
"""Powers of the rectifier: enough for its fourth cumulant."""
LEAST_VARIANCE = 1e-12
"""Of a pre-activation; that of a dead unit is 0."""
Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]


@dataclass(frozen=True)
class Arrays:
    """An array library.

    Attributes:
        xp: its namespace, with NumPy's names.
        cdf: distribution function of the standard normal, elementwise, in any precision.
    """

    xp: Any
    cdf: Callable[[Array], Array]


NUMPY = Arrays(np, ndtr)
"""Plain NumPy."""


@dataclass(frozen=True)
class WickCoefficients:
    r"""Expected derivatives of the powers of a rectifier under independent Gaussians.

    Args:
        rows: ``rows[p - 1][k]`` is :math:`E[(f^p)^{(k)}(z)]`, ``[n]``, for k from 0 to 4.
    """

    rows: tuple[tuple[Vector, ...], ...]

    def __call__(self, power: int, derivative: int) -> Vector:
        r""":math:`E[(f^p)^{(k)}(z)]`."""
        return self.rows[power - 1][derivative]

    def moment(self, power: int, third: Vector) -> Vector:
        r"""Edgeworth's :math:`E[f^p(z)] = w_0 + \kappa_3 w_3 / 6` for a third cumulant of z."""
        row = self.rows[power - 1]

        return row[0] + third * row[3] / 6


def relu_wick(mean: Vector, variance: Vector, arrays: Arrays) -> WickCoefficients:
    r"""Coefficients of :math:`f(z) = \max(z, 0)` and its powers up to 4.

    With :math:`a = \mu / \sigma`: :math:`E[f'] = \Phi(a)`, and for :math:`k \ge 2`
    :math:`E[f^{(k)}] = (-1)^k \sigma^{1-k} He_{k-2}(a) \varphi(a)`. Since
    :math:`(f^p)' = p f^{p-1}`, a power's derivatives follow from those of the power below.

    Args:
        mean: of each pre-activation.
        variance: of each.
        arrays: the library.

    References:
        arXiv:2605.05179, WickCoefficients coefficients of the rectifier.
    """
    variance = arrays.xp.maximum(variance, LEAST_VARIANCE)
    sigma = arrays.xp.sqrt(variance)
    a = mean / sigma
    phi = arrays.xp.exp(-a * a / 2) * (1 / math.sqrt(2 * math.pi))
    cdf = arrays.cdf(a).astype(a.dtype)
    tail = sigma * phi
    square = mean * mean
    rows = [
        (
            mean * cdf + tail,
            cdf,
            phi / sigma,
            -a * phi / variance,
            (a * a - 1) * phi / (variance * sigma),
        )
    ]
    at_zero = (
        (square + variance) * cdf + mean * tail,
        (square + 3 * variance) * mean * cdf + (square + 2 * variance) * tail,
        (square * square + 6 * square * variance + 3 * variance * variance) * cdf
        + (square + 5 * variance) * mean * tail,
    )
    for power, moment in enumerate(at_zero, start=2):
        rows.append((moment, *(power * lower for lower in rows[-1][:4])))

    return WickCoefficients(tuple(rows))


@dataclass(frozen=True)
class Source:
    r"""The third cumulant that one rectifier made, carried linearly to later pre-activations.

    With columns :math:`J_j` and :math:`P_j`,

    .. math:: T = \mathrm{Sym} \sum_j \left( 3 w_j J_j P_j P_j + 3 r_j J_j J_j P_j
        + e_j J_j J_j J_j \right).

    Where it is made, J is the identity and :math:`P_{ij} = f'_i \Sigma_{ij}` without a diagonal:
    the first term is the path of two covariances with its middle at unit j, the second the same
    with one leg folded back, the third unit j alone.

    Attributes:
        jacobian: J, ``[n, n]``.
        spread: P, ``[n, n]``.
        middle: w, ``[n]``.
        folded: r, ``[n]``.
        single: e, ``[n]``.
    """

    jacobian: Matrix
    spread: Matrix
    middle: Vector
    folded: Vector
    single: Vector

    def carried(self, linear: Matrix) -> "Source":
        """The same after a linear map."""
        return replace(self, jacobian=linear @ self.jacobian, spread=linear @ self.spread)

    def times(self, factor: float) -> "Source":
        """The same times a number."""
        return replace(
            self,
            middle=factor * self.middle,
            folded=factor * self.folded,
            single=factor * self.single,
        )

    def factors(self) -> tuple[Matrix, Matrix]:
        r"""X and Y with :math:`T_{aab} = (X J^\top + Y P^\top)_{ab}`."""
        j, p = self.jacobian, self.spread
        path, fold = self.middle * p, self.folded * j
        both = path + fold

        return p * (both + fold) + j * (self.single * j), j * (both + path)

    def slices(self) -> Matrix:
        r""":math:`T_{aab}`, [a, b]."""
        x, y = self.factors()

        return x @ self.jacobian.T + y @ self.spread.T

    def diagonal(self) -> Vector:
        r""":math:`T_{aaa}`, without a product of matrices."""
        x, y = self.factors()

        return (x * self.jacobian + y * self.spread).sum(axis=1)

    def traces(self) -> Vector:
        r""":math:`\sum_a T_{aab}`."""
        x, y = self.factors()

        return self.jacobian @ x.sum(axis=0) + self.spread @ y.sum(axis=0)


@dataclass(frozen=True)
class VectorSource:
    r"""Third cumulant of which only a vector is kept: :math:`3\,\mathrm{Sym}(\mathrm{diag}(g) q)`.

    Attributes:
        metric: g, ``[n]``.
        vector: q, ``[n]``.
    """

    metric: Vector
    vector: Vector

    def carried(self, weight: Matrix, squared: Matrix) -> "VectorSource":
        """The same after a random linear map, with the diagonal of its metric."""
        return VectorSource(squared @ self.metric, weight @ self.vector)

    def diagonal(self) -> Vector:
        r""":math:`T_{aaa}`."""
        return 3 * self.metric * self.vector

    def traces(self) -> Vector:
        r""":math:`\sum_a T_{aab}`."""
        return self.metric.sum() * self.vector + 2 * self.metric * self.vector


@dataclass(frozen=True)
class Marginals:
    """Three cumulants of each unit alone, ``[n]`` each."""

    mean: Vector
    variance: Vector
    third: Vector


@dataclass(frozen=True)
class Slices:
    r"""Cumulants of pre-activations with at most two different units.

    Attributes:
        alone: of each unit.
        covariance: ``[n, n]``, its diagonal 0.
        third: :math:`\kappa_{aab}`, [a, b], its diagonal 0.
        sources: of the third cumulant, those that are carried on.
        tail: vector of those that are not, :math:`\sum_a T_{aab} / (n + 2)`.
    """

    alone: Marginals
    covariance: Matrix
    third: Matrix
    sources: tuple[Source, ...]
    tail: Vector


@dataclass(frozen=True)
class LayerCumulants:
    """Cumulants of activations.

    Attributes:
        mean: ``[n]``.
        covariance: ``[n, n]``.
        slopes: of the rectifier, ``[n]``; the sources are still to be multiplied by them.
        sources: of the third, made before this layer, the oldest first.
        made: what this layer made; its Jacobian is the identity's share that the slopes leave
            out, so the next linear map is put in its place.
        tails: of the third.
    """

    mean: Vector
    covariance: Matrix
    slopes: Vector
    sources: tuple[Source, ...] = ()
    made: Source | None = None
    tails: tuple[VectorSource, ...] = ()

    def carried(self, weight: Matrix) -> tuple[Source, ...]:
        """All sources after the next linear map."""
        sloped = weight * self.slopes
        old = tuple(source.carried(sloped) for source in self.sources)
        if self.made is None:
            return old

        return (*old, replace(self.made, jacobian=weight, spread=sloped @ self.made.spread))


def expected_activations(
    weights: Sequence[Matrix],
    *,
    memory: int | None = None,
    arrays: Arrays = NUMPY,
) -> list[Vector]:
    r"""Means of :math:`y_l = \max(y_{l-1} W_l, 0)` in every layer, for :math:`y_0 \sim N(0, I)`.

    Args:
        weights: ``[in, out]`` each, square and of one width.
        memory: for how many layers a third cumulant is carried in detail; then its trace alone
            is. All by default. The work grows with it, and with the square of the depth at most.
        arrays: the array library.

    Returns:
        The means, ``[n]`` each, one a layer.

    Raises:
        BadValue: no layer, or a memory below 1.
        Mismatch: weights of different shapes.
    """
    if not weights or (memory is not None and memory < 1):
        raise BadValue(
            f"{len(weights)} layers and a memory of {memory}",
            where="network",
            mend="Both must be at least 1",
        )
    width, xp = weights[0].shape[0], arrays.xp
    for layer, weight in enumerate(weights):
        if tuple(weight.shape) != (width, width):
            raise Mismatch(
                f"a weight of shape {tuple(weight.shape)}, where the width is {width}",
                where=f"layer {layer}",
            )
    zero = xp.zeros(width, dtype=weights[0].dtype)
    state, means = LayerCumulants(zero, xp.eye(width, dtype=zero.dtype), zero), []
    for weight in weights[:-1]:
        state = rectify(linear(state, weight.T, memory, arrays), arrays)
        means.append(state.mean)
    last = marginals(state, weights[-1].T)

    return [*means, relu_wick(last.mean, last.variance, arrays).moment(1, last.third)]


def linear(state: LayerCumulants, weight: Matrix, memory: int | None, arrays: Arrays) -> Slices:
    """Cumulants of pre-activations, for a weight ``[out, in]``."""
    xp, width = arrays.xp, len(state.mean)
    off = 1 - xp.eye(width, dtype=weight.dtype)
    covariance = weight @ state.covariance @ weight.T
    sources, squared = state.carried(weight), weight * weight
    third = xp.zeros_like(off)
    for source in sources:
        third = third + source.slices()
    alone = Marginals(weight @ state.mean, xp.diagonal(covariance), xp.diagonal(third))
    tails = [tail.carried(weight, squared) for tail in state.tails]
    if tails:
        third = third + xp.stack([t.metric for t in tails]).T @ xp.stack([t.vector for t in tails])
        alone = replace(alone, third=sum((tail.diagonal() for tail in tails), alone.third))
    old = 0 if memory is None else max(len(sources) - memory + 1, 0)
    forgotten: tuple[Source | VectorSource, ...] = (*sources[:old], *tails)
    vector = sum((part.traces() for part in forgotten), 0 * state.mean)

    return Slices(alone, covariance * off, third * off, sources[old:], vector / (width + 2))


def marginals(state: LayerCumulants, weight: Matrix) -> Marginals:
    """Cumulants of each pre-activation alone, in half the work or less."""
    squared = weight * weight
    third = sum((source.diagonal() for source in state.carried(weight)), 0 * state.mean)
    for tail in state.tails:
        third = third + tail.carried(weight, squared).diagonal()
    variance = ((weight @ state.covariance) * weight).sum(axis=1)

    return Marginals(weight @ state.mean, variance, third)


def rectify(z: Slices, arrays: Arrays) -> LayerCumulants:
    """Cumulants of the rectified units, rescaled to have no isotropic fourth cumulant."""
    eye = arrays.xp.eye(len(z.tail), dtype=z.tail.dtype)
    w = relu_wick(z.alone.mean, z.alone.variance, arrays)
    pairs = RectifiedPairs(z, w, arrays)
    m1, m2, m3, m4 = (w.moment(p, z.alone.third) for p in (1, 2, 3, 4))
    third = m3 - 3 * m2 * m1 + 2 * m1 * m1 * m1
    fourth = m4 - 4 * m3 * m1 - 3 * m2 * m2 + (12 * m2 - 6 * m1 * m1) * m1 * m1
    covariance = pairs.covariance()
    one, width = arrays.xp.ones_like(m1), len(m1)
    fourths = (
        pairs.summed(2, 2, one).sum()
        - 4 * (pairs.summed(2, 1, one) * m1).sum()
        + 4 * (m1 * (covariance @ m1)).sum()
        - 2 * arrays.xp.einsum("ab,ab->", covariance, covariance)
    )
    made, rest = _made(pairs, m1, third, covariance @ m1)
    state = LayerCumulants(
        m1,
        covariance + eye * (m2 - m1 * m1),
        w(1, 1),
        z.sources,
        made,
        (VectorSource(w(1, 1) * w(1, 1), w(1, 1) * z.tail), VectorSource(one, rest / (width + 2))),
    )

    return rescaled(state, (fourths + fourth.sum()) / (width * (width + 2)), arrays)


class RectifiedPairs:
    r"""Covariances of powers of rectified units a and b, a other than b.

    Diagrams of one, two and three covariances, of a third cumulant, and of both together.

    Args:
        z: the pre-activations.
        w: their WickCoefficients coefficients.
        arrays: the library.
    """

    def __init__(self, z: Slices, w: WickCoefficients, arrays: Arrays) -> None:
        self.z, self.w, self.arrays = z, w, arrays
        self.squared = z.covariance * z.covariance
        self.cubed = self.squared * z.covariance
        self.both = z.covariance * z.third

    def covariance(self) -> Matrix:
        r""":math:`\mathrm{Cov}(f(z_a), f(z_b))`, its diagonal 0."""
        xp, c, k = self.arrays.xp, self.z.covariance, self.z.alone.third / 6
        u = [self.w(1, order) for order in range(5)]
        once = xp.stack([u[1], k * u[4]]).T @ xp.stack([u[1] + k * u[4], u[1]])
        twice = xp.outer(u[2], u[2] / 2) + c * xp.outer(u[3], u[3] / 6)
        bent = self.z.third * (xp.outer(u[2], u[1] / 2) + c * xp.outer(u[3], u[2] / 2))

        return c * (once + c * twice) + bent + bent.T

    def summed(self, p: int, q: int, x: Vector) -> Vector:
        r""":math:`\sum_{a \ne b} x_a \mathrm{Cov}(f^p(z_a), f^q(z_b))`, [b]."""
        u, v = [x * self.w(p, k) for k in range(5)], [self.w(q, k) for k in range(5)]
        c, t, k = self.z.covariance, self.z.third, self.z.alone.third / 6

        return (
            (c @ u[1]) * (v[1] + k * v[4])
            + (c @ (k * u[4])) * v[1]
            + (self.squared @ u[2]) * (v[2] / 2)
            + (self.cubed @ u[3]) * (v[3] / 6)
            + ((t.T @ u[2]) * v[1] + (self.both.T @ u[3]) * v[2]) / 2
            + ((t @ u[1]) * v[2] + (self.both @ u[2]) * v[3]) / 2
        )


def _made(
    pairs: RectifiedPairs, m1: Vector, third: Vector, along: Vector
) -> tuple[Source, Vector]:
    r"""The source that a rectifier makes, and the trace of the :math:`\kappa_{aab}` it leaves.

    Args:
        pairs: of the rectified units.
        m1: their means.
        third: their :math:`\kappa_{aaa}`.
        along: their covariance, without its diagonal, times their means.
    """
    z, w = pairs.z, pairs.w
    slope, square = w(1, 1), w(1, 1) * w(1, 1)
    folded = 2 * m1 * (1 - slope)
    single = third - square * slope * z.alone.third
    rest = (
        pairs.summed(2, 1, 0 * m1 + 1)
        - 2 * along
        - slope * (z.third.T @ square)
        - w(1, 2) * (pairs.squared @ square)
        - slope * (z.covariance @ folded)
    )

    return Source(z.covariance, z.covariance, w(1, 2), folded, single), rest


def rescaled(state: LayerCumulants, isotropic: float, arrays: Arrays) -> LayerCumulants:
    r"""The state times a random scale of mean 1, so that no isotropic fourth cumulant is left.

    To first order in the variance v of the scale, which is :math:`O(1 / n)`: the covariance gains
    :math:`v (C + m m^\top)`, the third cumulant :math:`v (3 T + 2 \sum C \otimes m)` with three
    terms, of which the diagonal of C is kept, and the fourth :math:`4 v \sum C \otimes C`.

    Args:
        state: mean m, covariance C and third cumulant T.
        isotropic: c of its fourth cumulant.
        arrays: the library.
    """
    mean, covariance = state.mean, state.covariance
    width, diagonal = len(mean), arrays.xp.diagonal(covariance)
    trace = diagonal.sum()
    square = arrays.xp.einsum("ab,ab->", covariance, covariance)
    flat = (trace * trace + 2 * square) / (width * (width + 2))
    v = -isotropic / (4 * flat + 6 * isotropic)
    third = 1 + 3 * v

    return replace(
        state,
        covariance=(1 + v) * covariance + arrays.xp.outer(v * mean, mean),
        sources=tuple(source.times(third) for source in state.sources),
        made=None if state.made is None else state.made.times(third),
        tails=(
            *(VectorSource(tail.metric, third * tail.vector) for tail in state.tails),
            VectorSource(2 * v * diagonal, mean),
        ),
    )
