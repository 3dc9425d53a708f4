"""Directions in parameter space, made piece by piece from a seed and never stored.

A :class:`Space` is the parameters that move, a :class:`Sampler` a distribution of directions
there, a :class:`Ray` one direction with the sums that its density needs, and a :class:`RayStep` a
multiple of it that can be added to the weights.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from math import log, pi, prod, sqrt
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from offkey.errors import NoMatchingParameters, PrecisionTooLow, check, nearest
from offkey.volume.measures import log_ray_integral

__all__ = ["Curvature", "Noise", "Ray", "RayStep", "Sampler", "Scale", "Space", "check_precision"]

Scale = Callable[[Tensor], Tensor]
"""Turns eigenvalues of the curvature into how far a proposal steps along each."""

KEEP = 1 << 28
"""Bytes up to which a direction is kept between evaluations instead of being made again."""
CHUNK = 1 << 17
"""Normals that share a counter; whoever wants one of them makes them all."""
BLOCK = 1 << 16
"""Numbers of an inner product that are widened to float64 at once."""
LEAST_ULPS = 4.0
"""Units in the last place that the median step must have."""
SAMPLE = 4096
"""Weights on which the precision of a step is checked."""


@dataclass(frozen=True)
class Space:
    """Parameters that move together, by name, in the model's order.

    Attributes:
        anchors: their values; the live tensors, which are read while nothing is perturbed.
    """

    anchors: Mapping[str, Tensor]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], patterns: str | Sequence[str]) -> Self:
        """The parameters whose names match; patterns are shell-like, commas separate several.

        Raises:
            NoMatchingParameters: a pattern matches none.
        """
        wanted = patterns.split(",") if isinstance(patterns, str) else list(patterns)
        wanted = [pattern.strip() for pattern in wanted]
        chosen = set()
        for pattern in wanted or [""]:
            names = [name for name in parameters if name == pattern or fnmatchcase(name, pattern)]
            if not names:
                close = nearest(pattern.strip("*"), parameters) or list(parameters)[:3]
                raise NoMatchingParameters(
                    f"no parameter matches {pattern!r}",
                    where="params",
                    mend="There are for example " + ", ".join(close),
                )
            chosen.update(names)

        return cls({name: value.detach() for name, value in parameters.items() if name in chosen})

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the model's order."""
        return tuple(self.anchors)

    @cached_property
    def dimensions(self) -> int:
        """How many numbers move."""
        return sum(prod(value.shape) for value in self.anchors.values())

    @cached_property
    def squared(self) -> float:
        """Squared length of the anchor, in float64."""
        return sum(_dot(value, value) for value in self.anchors.values())

    @property
    def bytes(self) -> int:
        """What the parameters take in memory."""
        return sum(value.numel() * value.element_size() for value in self.anchors.values())


@dataclass(frozen=True)
class Noise:
    """The standard normals of one direction, by parameter and offset.

    Philox, keyed by seed, direction and parameter; its counter is the number of the chunk that an
    offset is in. The same numbers come in blocks of any size, on any device, in any order.

    Attributes:
        seed: seed of the whole estimate.
        direction: number of the direction.
    """

    seed: int
    direction: int

    def normals(self, name: str, start: int, stop: int) -> Float32[Tensor, " n"]:
        """The normals of a parameter from offset ``start`` up to ``stop``."""
        key = self._key(name)
        out = np.empty(stop - start, dtype=np.float32)
        chunks = range(start // CHUNK, -(-stop // CHUNK))

        def fill(chunk: int) -> None:
            first = chunk * CHUNK
            low, high = max(start, first), min(stop, first + CHUNK)
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, chunk]))
            if low == first:
                generator.standard_normal(out=out[low - start : high - start], dtype=np.float32)
            else:
                whole = generator.standard_normal(high - first, dtype=np.float32)
                out[low - start : high - start] = whole[low - first :]

        workers = min(torch.get_num_threads(), len(chunks))
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(fill, chunks))
        else:
            for chunk in chunks:
                fill(chunk)

        return torch.from_numpy(out)

    def _key(self, name: str) -> int:
        text = f"{self.seed}\0{self.direction}\0{name}".encode()

        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


class Curvature(ABC):
    """Eigenvalues of the cost's curvature, and the basis that they belong to.

    Parameters come in pieces that are rotated together: one for each parameter, or all as one.
    """

    def pieces(self, space: Space) -> dict[str, tuple[str, ...]]:
        """The parameters of each piece, by the piece's name."""
        return {name: (name,) for name in space.names}

    @abstractmethod
    def check(self, space: Space) -> None:
        """Refuses parameters that it does not fit."""

    @abstractmethod
    def eigenvalues(self, piece: str) -> Float[Tensor, " n"]:
        """Eigenvalues of a piece, flat, not negative."""

    def to_parameters(self, piece: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Turns coordinates in the eigenbasis into parameters."""
        return x

    def to_basis(self, piece: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Turns parameters into coordinates in the eigenbasis."""
        return x

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors that define it, for its digest."""


@dataclass(frozen=True)
class Sampler:
    r"""Draws directions :math:`p = B(q \odot (z + w))`, with z standard normal.

    Attributes:
        space: the parameters that move.
        curvature: its basis B and eigenvalues; ``None`` for the parameters' own axes.
        scale: q as a function of the eigenvalues; ``None`` for 1.
        tilt: width of the measure towards whose centre directions are tilted,
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
        """The direction that belongs to this noise."""
        return Ray(self, noise, keep=self.space.bytes <= KEEP)

    def draw(
        self, noise: Noise, piece: str, *, sums: bool = True
    ) -> tuple[dict[str, Tensor], "Sums | None"]:
        """A piece's part of the direction, by parameter, and of the sums if they are wanted."""
        anchors = {name: self.space.anchors[name] for name in self.pieces[piece]}
        y, w, q = self._normals(noise, piece, anchors)
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
        yy = _dot(y, y)

        return shaped, Sums(
            yy=yy,
            yw=0.0 if w is None else _dot(y, w),
            ww=0.0 if w is None else _dot(w, w),
            pp=yy if p is y else _dot(p, p),
            tp=sum(_dot(value, part) for value, part in zip(anchors.values(), parts, strict=True)),
        )

    def log_density(self, rays: Sequence["Ray"]) -> Float64[np.ndarray, " m"]:
        """Log density of unit vectors on the sphere, in nats per unit of its area."""
        sums, dimensions = [ray.sums for ray in rays], self.space.dimensions
        yy, yw, ww, pp = (
            np.array([getattr(s, name) for s in sums]) for name in ("yy", "yw", "ww", "pp")
        )
        whole = log_ray_integral(yy / pp, yw / np.sqrt(pp), dimensions - 1, np.inf)

        return whole - ww / 2 - dimensions / 2 * log(2 * pi) - self.log_det

    def _normals(
        self, noise: Noise, piece: str, anchors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The flat y = z + w of a piece, and its w and q where it has any."""
        sample = next(iter(anchors.values()))
        count = sum(value.numel() for value in anchors.values())
        dtype = torch.promote_types(sample.dtype, torch.float32)
        z = noise.normals(piece, 0, count).to(sample.device, dtype)
        q = None if self.scale is None else self._scales(piece).to(dtype)
        if self.tilt is None:
            return z, None, q
        assert q is not None
        theta = torch.cat([value.reshape(-1) for value in anchors.values()]).to(dtype)
        based = theta if self.curvature is None else self.curvature.to_basis(piece, theta)
        w = -q * based / self.tilt**2

        return z + w, w, q

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
        return Sums(
            self.yy + other.yy,
            self.yw + other.yw,
            self.ww + other.ww,
            self.pp + other.pp,
            self.tp + other.tp,
        )


@dataclass
class Ray:
    """A direction :math:`v = p/|p|`, whose parts are made when they are asked for.

    Attributes:
        sampler: the distribution that it was drawn from.
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
        """The part of p that belongs to a parameter, which must not be perturbed at the time."""
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
        """Parts moved into one block of memory, so that no gaps are left between them."""
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
        """Inner products over all parameters; makes the parts that were not made yet."""
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
        """Frees the parts; the sums stay."""
        self._kept.clear()
        self._stores.clear()


@dataclass(frozen=True)
class RayStep(Mapping[str, Tensor]):
    """A multiple of a direction, one parameter in memory at a time.

    Attributes:
        ray: the direction.
        multiple: the factor of p.
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


def check_precision(step: RayStep, space: Space) -> None:
    """Refuses a step most of which would be rounded away in the dtype of the weights.

    Raises:
        PrecisionTooLow: the median ratio of step to unit in the last place is below 4.
    """
    ratios = []
    for name, anchor in space.anchors.items():
        flat = anchor.reshape(-1)
        picked = slice(None, None, max(1, len(flat) * len(space.anchors) // SAMPLE))
        weight = flat[picked].double()
        info = torch.finfo(anchor.dtype)
        exponent = torch.frexp(weight.abs().clamp(min=info.tiny)).exponent - 1
        ulp = torch.ldexp(torch.full_like(weight, info.eps), exponent)
        ratios.append((step[name].reshape(-1)[picked].double().abs() / ulp).cpu())
    median = float(torch.cat(ratios).median())
    dtype = next(iter(space.anchors.values())).dtype
    check(
        not median < LEAST_ULPS,
        f"the median step is {median:.2g} units in the last place of {dtype}",
        where="weights",
        mend="Load the model in float32",
        error=PrecisionTooLow,
    )


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product in float64, a block at a time."""
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    if len(a) <= BLOCK:
        return float(a.double() @ b.double())
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK].double()
        other = part if b is a else b[start : start + BLOCK].double()
        total += part @ other

    return float(total)
