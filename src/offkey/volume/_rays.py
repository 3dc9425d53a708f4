"""One direction: made piece by piece from its seed, with the sums that its weight needs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import log, pi, sqrt

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from offkey.volume._curvature import Curvature, Scale
from offkey.volume._integral import log_ray_integral
from offkey.volume._noise import Noise
from offkey.volume._space import Space, dot

__all__ = ["Ray", "Sampler", "Step"]

KEEP = 1 << 28
"""Bytes up to which a direction is kept between evaluations instead of being made again."""


@dataclass(frozen=True)
class Sampler:
    r"""Makes directions :math:`p = B(q \odot (z + w))`.

    Attributes:
        space: the parameters that move.
        curvature: its basis B and eigenvalues; ``None`` for the parameters' own axes.
        scale: q of the eigenvalues; ``None`` for 1.
        tilt: width of the measure that directions are tilted to,
            :math:`w = -q \odot B^\top\theta/\sigma^2`; ``None`` for w = 0.
    """

    space: Space
    curvature: Curvature | None = None
    scale: Scale | None = None
    tilt: float | None = None

    @cached_property
    def pieces(self) -> dict[str, tuple[str, ...]]:
        """The parameters of each piece that is made at once."""
        if self.curvature is None:
            return {name: (name,) for name in self.space.names}
        return self.curvature.pieces(self.space)

    @cached_property
    def piece_of(self) -> dict[str, str]:
        """The piece of each parameter."""
        return {name: piece for piece, names in self.pieces.items() for name in names}

    @cached_property
    def log_det(self) -> float:
        """Sum of the logarithms of q."""
        if self.scale is None:
            return 0.0
        return sum(float(self._scales(piece).double().log().sum()) for piece in self.pieces)

    def ray(self, noise: Noise) -> "Ray":
        """The direction that the noise stands for."""
        return Ray(self, noise, keep=self.space.bytes <= KEEP)

    def draw(
        self, noise: Noise, piece: str, *, sums: bool = True
    ) -> tuple[dict[str, Tensor], "Sums | None"]:
        """A piece's part of the direction, by parameter, and of the sums if they are wanted."""
        anchors = {name: self.space.anchors[name] for name in self.pieces[piece]}
        sample = next(iter(anchors.values()))
        count = sum(value.numel() for value in anchors.values())
        dtype = torch.promote_types(sample.dtype, torch.float32)
        y = noise.normals(piece, 0, count).to(sample.device, dtype)
        w = None
        q = None if self.scale is None else self._scales(piece).to(dtype)
        if self.tilt is not None:
            assert q is not None
            theta = torch.cat([value.reshape(-1) for value in anchors.values()]).to(dtype)
            based = theta if self.curvature is None else self.curvature.to_basis(piece, theta)
            w = -q * based / self.tilt**2
            y = y + w
        p = y if q is None else q * y
        if self.curvature is not None:
            p = self.curvature.to_parameters(piece, p)
        parts = (
            (p,) if len(anchors) == 1 else torch.split(p, [v.numel() for v in anchors.values()])
        )
        shaped = {
            name: part.view(value.shape)
            for (name, value), part in zip(anchors.items(), parts, strict=True)
        }
        if not sums:
            return shaped, None
        yy = dot(y, y)
        told = Sums(
            yy=yy, yw=0.0 if w is None else dot(y, w), ww=0.0 if w is None else dot(w, w),
            pp=yy if p is y else dot(p, p),
            tp=sum(dot(value, part) for value, part in zip(anchors.values(), parts, strict=True)),
        )  # fmt: skip

        return shaped, told

    def log_density(self, rays: Sequence["Ray"]) -> Float64[np.ndarray, " m"]:
        """Log density of unit vectors on the sphere, in nats per unit of its area."""
        sums, dimensions = [ray.sums for ray in rays], self.space.dimensions
        yy, yw, ww, pp = (
            np.array([getattr(s, name) for s in sums]) for name in ("yy", "yw", "ww", "pp")
        )
        whole = log_ray_integral(yy / pp, yw / np.sqrt(pp), dimensions - 1, np.inf)

        return whole - ww / 2 - dimensions / 2 * log(2 * pi) - self.log_det

    def _scales(self, piece: str) -> Tensor:
        assert self.scale is not None
        if self.curvature is not None:
            return self.scale(self.curvature.eigenvalues(piece))
        [name] = self.pieces[piece]
        anchor = self.space.anchors[name].reshape(-1)

        return self.scale(anchor.new_zeros(1, dtype=torch.float64).expand(len(anchor)))


@dataclass(frozen=True)
class Sums:
    """Inner products of a direction: of y = z + w, of w, of p, and of the anchor with p."""

    yy: float = 0.0
    yw: float = 0.0
    ww: float = 0.0
    pp: float = 0.0
    tp: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.yy + other.yy, self.yw + other.yw, self.ww + other.ww,
                    self.pp + other.pp, self.tp + other.tp)  # fmt: skip


@dataclass
class Ray:
    """A direction :math:`v = p/|p|`, whose parts are made when they are asked for.

    Attributes:
        sampler: where it comes from.
        noise: its seed and number.
        keep: whether parts stay in memory.
    """

    sampler: Sampler
    noise: Noise
    keep: bool
    _kept: dict[str, Tensor] = field(default_factory=dict)
    _sums: dict[str, Sums] = field(default_factory=dict)
    _stores: dict[object, tuple[Tensor, int]] = field(default_factory=dict)

    def part(self, name: str) -> Tensor:
        """The part p of a parameter, in its shape; it must not be perturbed at the time."""
        if name in self._kept:
            return self._kept[name]
        piece = self.sampler.piece_of[name]
        made, sums = self.sampler.draw(self.noise, piece, sums=piece not in self._sums)
        if sums is not None:
            self._sums[piece] = sums
        if self.keep:
            made = self._stored(made)
        if self.keep or len(made) > 1:
            self._kept.update(made)

        return made[name]

    def _stored(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parts moved into one block of memory, between which no gaps are left."""
        sample = next(iter(made.values()))
        kind = sample.device, sample.dtype
        if kind not in self._stores:
            anchors = self.sampler.space.anchors.values()
            count = sum(value.numel() for value in anchors)
            self._stores[kind] = torch.empty(count, dtype=sample.dtype, device=sample.device), 0
        store, used = self._stores[kind]
        stored = {}
        for name, part in made.items():
            room = store[used : used + part.numel()]
            stored[name] = room.copy_(part.reshape(-1)).view(part.shape)
            used += part.numel()
        self._stores[kind] = store, used

        return stored

    def keeps(self, name: str) -> bool:
        """Whether a parameter's part stays in memory, so that it must not be written to."""
        return name in self._kept

    @cached_property
    def sums(self) -> Sums:
        """Inner products over all parameters; makes the parts not seen yet."""
        for piece, names in self.sampler.pieces.items():
            if piece not in self._sums:
                self.part(names[0])
        total = Sums()
        for piece in self.sampler.pieces:
            total = total + self._sums[piece]

        return total

    @property
    def length(self) -> float:
        """Length of p."""
        return sqrt(self.sums.pp)

    @property
    def slope(self) -> float:
        """The anchor's component along the unit vector."""
        return self.sums.tp / self.length

    def forget(self) -> None:
        """Lets the parts go; the sums stay."""
        self._kept.clear()
        self._stores.clear()


@dataclass(frozen=True)
class Step(Mapping[str, Tensor]):
    """A multiple of a direction, one parameter in memory at a time.

    Attributes:
        ray: the direction.
        multiple: how often p is taken.
    """

    ray: Ray
    multiple: float

    def __getitem__(self, name: str) -> Tensor:
        part = self.ray.part(name)

        return self.multiple * part if self.ray.keeps(name) else part.mul_(self.multiple)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ray.sampler.space.names)

    def __len__(self) -> int:
        return len(self.ray.sampler.space.names)
