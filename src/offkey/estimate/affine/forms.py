"""Affine forms and intervals: values that remember how they depend on one another."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.gaussian import Normal
from offkey.estimate.quantities import Bound

__all__ = [
    "SLACK",
    "Array",
    "Interval",
    "linear_interval",
    "product_interval",
    "intersect",
    "AffineForm",
]

SLACK = 1e-12
"""Outward slack of an operation as a share of the magnitudes in it; covers sums of 4,000 terms."""
Array = NDArray[np.float64]
Interval = tuple[Array, Array]


def linear_interval(weight: Array, bias: Array, low: Array, high: Array) -> Interval:
    """Range of ``weight @ x + bias`` over a box."""
    up, down = np.maximum(weight, 0), np.minimum(weight, 0)
    slack = SLACK * (np.abs(weight) @ np.maximum(np.abs(low), np.abs(high)) + np.abs(bias))

    return up @ low + down @ high + bias - slack, up @ high + down @ low + bias + slack


def product_interval(x: Interval, y: Interval) -> Interval:
    """Range of the elementwise product over two boxes."""
    corners = np.stack([a * b for a in x for b in y])
    slack = SLACK * np.abs(corners).max(axis=0)

    return corners.min(axis=0) - slack, corners.max(axis=0) + slack


def intersect(x: Interval, y: Interval) -> Interval:
    """The intersection of two intervals; both contain the truth, so it is never empty."""
    return np.maximum(x[0], y[0]), np.minimum(x[1], y[1])


@dataclass(frozen=True, eq=False)
class AffineForm:
    r"""A vector :math:`x_0 + \sum_i x_i \varepsilon_i` of unknowns :math:`|\varepsilon_i| \le 1`.

    Every operation is sound: whatever the unknowns are, the true value lies inside. Linear
    operations are exact, so ``x - x`` is 0. An interval is carried along with the form and
    intersected with it after each operation, because after a nonlinearity either may be the
    tighter one; :meth:`range` is of the form alone, :meth:`bounds` of both. Rounding is covered by
    a slack of :math:`10^{-12}` of the magnitudes of each operation.

    Forms are made by :meth:`box`; only forms that come from the same box can be combined.

    Attributes:
        centre: :math:`x_0`, ``[n]``.
        generators: :math:`x_i`, ``[n, m]``.
        ids: names of the unknowns, ``[m]``, rising; those of the box come first.
        slack: radius that belongs to no shared unknown, ``[n]``.
        low: of the carried interval, ``[n]``.
        high: of the carried interval.
        inputs: how many unknowns the box has.

    References:
        de Figueiredo, Stolfi, 2004: Affine arithmetic: concepts and applications.
    """

    centre: Array
    generators: Array
    ids: NDArray[np.int64]
    slack: Array
    low: Array
    high: Array
    inputs: int
    _names: Iterator[int]

    @classmethod
    def box(cls, low: ArrayLike, high: ArrayLike) -> "AffineForm":
        """Independent unknowns, one a dimension.

        Raises:
            Mismatch: the two ends are not vectors of one length.
            BadInput: an end is not finite, or low is above high.
        """
        lo, hi = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
        if lo.ndim != 1 or lo.shape != hi.shape:
            raise Mismatch(f"ends of shapes {lo.shape} and {hi.shape}", where="box")
        if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
            raise BadInput("an end is not finite", where="box")
        if (lo > hi).any():
            at = int(np.argmax(lo > hi))
            raise BadInput(
                f"low {lo[at]:g} is above high {hi[at]:g}", where=f"box, dimension {at}"
            )
        centre, width = (lo + hi) / 2, len(lo)
        radius = np.maximum(hi - centre, centre - lo)

        return cls(
            centre,
            np.diag(radius),
            np.arange(width),
            np.zeros(width),
            lo,
            hi,
            width,
            itertools.count(width),
        )

    def __len__(self) -> int:
        return len(self.centre)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> "AffineForm":
        parts = ("centre", "generators", "slack", "low", "high")

        return replace(self, **{name: getattr(self, name)[rows] for name in parts})

    @property
    def radius(self) -> Array:
        """Of the form alone: sum of the sizes of its parts."""
        return np.asarray(np.abs(self.generators).sum(axis=1) + self.slack)

    def range(self) -> tuple[Array, Array]:
        """Ends of the form alone, rounded outward."""
        radius = self.radius
        radius = radius + SLACK * (np.abs(self.centre) + radius) * (radius > 0)

        return self.centre - radius, self.centre + radius

    def bound(self, row: int = 0) -> Bound:
        """What one row was proved to lie between: form and interval together."""
        return Bound(float(self.low[row]), float(self.high[row]))

    def bounds(self) -> list[Bound]:
        """What each row was proved to lie between."""
        return [self.bound(row) for row in range(len(self))]

    def normal(self) -> Normal:
        r"""An estimate, not a bound: all unknowns independent and uniform.

        Mean :math:`x_0`, covariance :math:`\tfrac13 \sum_i x_i x_i^\top`. True for the unknowns
        of a box that is sampled uniformly; presumed for those that operations added.
        """
        covariance = self.generators @ self.generators.T / 3

        return Normal(torch.tensor(self.centre), torch.tensor((covariance + covariance.T) / 2))

    def linear(self, weight: ArrayLike, bias: ArrayLike | None = None) -> "AffineForm":
        """``weight @ x + bias``, exact.

        Raises:
            Mismatch: the shapes do not match.
            BadInput: a weight is not finite.
        """
        w = np.asarray(weight, dtype=np.float64)
        if w.ndim != 2 or w.shape[1] != len(self):
            raise Mismatch(
                f"weight of shape {w.shape} for a form of {len(self)} rows", where="linear"
            )
        b = np.zeros(len(w)) if bias is None else np.asarray(bias, dtype=np.float64)
        if b.shape != (len(w),):
            raise Mismatch(f"bias of shape {b.shape} for {len(w)} outputs", where="linear")
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise BadInput("a weight is not finite", where="linear")
        size = np.abs(w) @ (np.abs(self.centre) + self.radius) + np.abs(b)
        interval = linear_interval(w, b, self.low, self.high)

        return self._made(
            w @ self.centre + b,
            w @ self.generators,
            self.ids,
            np.abs(w) @ self.slack + SLACK * size,
            interval,
        )

    def __add__(self, other: "AffineForm | float") -> "AffineForm":
        if not isinstance(other, AffineForm):
            other = self._constant(other)
        ids, x, y = self._aligned(other)
        centre, generators = self.centre + other.centre, x + y
        slack = self.slack + other.slack + SLACK * (np.abs(centre) + np.abs(generators).sum(1))
        size = SLACK * (np.abs(self.low + other.low) + np.abs(self.high + other.high))
        interval = (self.low + other.low - size, self.high + other.high + size)

        return self._made(centre, generators, ids, slack, interval)

    def __neg__(self) -> "AffineForm":
        return replace(
            self, centre=-self.centre, generators=-self.generators, low=-self.high, high=-self.low
        )

    def __sub__(self, other: "AffineForm | float") -> "AffineForm":
        return self + (-other)

    def __radd__(self, other: float) -> "AffineForm":
        return self + other

    def __rsub__(self, other: float) -> "AffineForm":
        return -self + other

    def times(
        self, other: "AffineForm", method: Literal["simple", "tight"] = "tight"
    ) -> "AffineForm":
        r"""The elementwise product.

        Both keep :math:`x_0 y_0 + \sum_i (x_0 y_i + y_0 x_i) \varepsilon_i`. ``simple`` adds a
        new unknown of radius rad(x)·rad(y). ``tight`` adds :math:`\tfrac12 \sum_i x_i y_i` to the
        centre and a new unknown of radius
        :math:`\tfrac12 \sum_i |x_i y_i| + \sum_{i<j} |x_i y_j + x_j y_i|`; :math:`O(m^2)` a row.

        Raises:
            Mismatch: forms of unlike length, or of different boxes.
            BadValue: an unknown method.
        """
        if method not in ("simple", "tight"):
            raise BadValue(f"{method!r} is not known", where="method", mend="Use simple or tight")
        ids, x, y = self._aligned(other)
        x0, y0 = self.centre, other.centre
        centre, new = x0 * y0, np.abs(x).sum(1) * np.abs(y).sum(1)
        if method == "tight":
            same, new = x * y, np.empty(len(x0))
            for row, (a, b) in enumerate(zip(x, y, strict=True)):
                cross = np.outer(a, b)
                both = np.abs(cross + cross.T).sum() / 2
                new[row] = both - np.abs(same[row]).sum() / 2
            centre = centre + same.sum(1) / 2
        generators = x0[:, None] * y + y0[:, None] * x
        across = (np.abs(x0) + self.radius) * (np.abs(y0) + other.radius)
        slack = (
            (np.abs(x0) + self.radius) * other.slack
            + (np.abs(y0) + other.radius) * self.slack
            + SLACK * across
        )
        interval = product_interval((self.low, self.high), (other.low, other.high))

        return self._with_new(centre, generators, ids, new, slack, interval)

    def relu(self, method: Literal["chebyshev", "min-range"] = "chebyshev") -> "AffineForm":
        r"""The elementwise maximum with 0.

        Where the carried interval [l, u] has 0 inside, ``chebyshev`` gives
        :math:`\lambda x + \mu + \mu \varepsilon` with :math:`\lambda = u / (u - l)`,
        :math:`\mu = -u l / (2 (u - l))`, the tightest strip; ``min-range`` gives the range
        [0, u] by slope 0, and drops the dependence.

        Raises:
            BadValue: an unknown method.
        """
        if method not in ("chebyshev", "min-range"):
            raise BadValue(
                f"{method!r} is not known", where="method", mend="Use chebyshev or min-range"
            )
        low, high = self.low, self.high
        crosses = (low < 0) & (high > 0)
        slope = np.where(low >= 0, 1.0, 0.0)
        offset = np.zeros(len(self))
        if method == "chebyshev":
            span = np.where(crosses, high - low, 1.0)
            slope = np.where(crosses, high / span, slope)
            offset = np.where(crosses, -high * low / (2 * span), offset)
        else:
            offset = np.where(crosses, high / 2, offset)
        centre = slope * self.centre + offset
        size = slope * (np.abs(self.centre) + self.radius) + offset
        slack = slope * self.slack + SLACK * size
        interval = (np.maximum(low, 0), np.maximum(high, 0))

        return self._with_new(
            centre, slope[:, None] * self.generators, self.ids, offset, slack, interval
        )

    def _constant(self, value: float) -> "AffineForm":
        full = np.full(len(self), float(value))
        nothing = np.zeros((len(self), 0))

        return replace(
            self,
            centre=full,
            generators=nothing,
            ids=np.arange(0),
            slack=np.zeros(len(self)),
            low=full,
            high=full,
        )

    def _aligned(self, other: "AffineForm") -> tuple[NDArray[np.int64], Array, Array]:
        """Generators of both over the union of their unknowns."""
        if len(self) != len(other):
            raise Mismatch(f"forms of {len(self)} and {len(other)} rows", where="AffineForm")
        if self._names is not other._names:
            raise Mismatch(
                "forms of different boxes",
                where="AffineForm",
                mend="Make one box of all inputs and take its rows",
            )
        ids = np.union1d(self.ids, other.ids)
        wide = [np.zeros((len(self), len(ids))) for _ in range(2)]
        for out, form in zip(wide, (self, other), strict=True):
            out[:, np.searchsorted(ids, form.ids)] = form.generators

        return ids, wide[0], wide[1]

    def _with_new(
        self,
        centre: Array,
        generators: Array,
        ids: NDArray[np.int64],
        new: Array,
        slack: Array,
        interval: tuple[Array, Array],
    ) -> "AffineForm":
        """A form with a new unknown for each row with a positive new radius."""
        rows = np.flatnonzero(new > 0)
        added = np.zeros((len(centre), len(rows)))
        added[rows, np.arange(len(rows))] = new[rows]
        names = np.fromiter(itertools.islice(self._names, len(rows)), np.int64, len(rows))

        return self._made(
            centre, np.hstack([generators, added]), np.concatenate([ids, names]), slack, interval
        )

    def _made(
        self,
        centre: Array,
        generators: Array,
        ids: NDArray[np.int64],
        slack: Array,
        interval: tuple[Array, Array],
    ) -> "AffineForm":
        form = replace(self, centre=centre, generators=generators, ids=ids, slack=slack)
        low, high = intersect(form.range(), interval)

        return replace(form, low=low, high=high)
