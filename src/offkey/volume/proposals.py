"""Proposals: distributions of directions, from uniform to shaped by the curvature of the cost.

Every proposal gives an unbiased volume; they differ in how widely the weights of rays scatter.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, check
from offkey.volume.rays import Curvature, Sampler, Scale, Space

__all__ = [
    "Dense",
    "Diagonal",
    "Kronecker",
    "Power",
    "PriorDamped",
    "Proposal",
    "Tilted",
    "Uniform",
]


class Rule(ABC):
    """How far a proposal steps along an eigenvector of a given curvature."""

    @abstractmethod
    def scale(self, curvature: Curvature, space: Space, eps: float, sigma: float) -> Scale:
        """The scale for one estimate, as a function of the eigenvalues."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""


@dataclass(frozen=True)
class PriorDamped(Rule):
    r"""Steps as far as the cutoff and the measure allow a typical point of the region.

    .. math:: q_i = \left(\frac{(k + 2) h_i}{2\epsilon} + \frac{1}{\sigma^2}\right)^{-1/2},
        \qquad k = \sum_i \frac{h_i}{h_i + 2\epsilon / (k \sigma^2)}

    k is the number of directions that the cutoff constrains, a fixed point found from k = D.
    """

    def scale(self, curvature: Curvature, space: Space, eps: float, sigma: float) -> Scale:
        """The scale for one cutoff and one width.

        Raises:
            BadValue: a flat direction under a flat measure.
        """
        k = self.constrained(curvature, space, eps, sigma)
        flat = sigma == float("inf")

        def scale(h: Tensor) -> Tensor:
            check(
                not (flat and bool((h <= 0).any())),
                "a direction without curvature is unbounded under a flat measure",
                where="prior-damped proposal",
                mend="Use the Gaussian measure, or the rule Power",
            )
            return ((k + 2) * h / (2 * eps) + 1 / sigma**2).rsqrt()

        return scale

    def constrained(self, curvature: Curvature, space: Space, eps: float, sigma: float) -> float:
        """The number of directions that the cutoff constrains."""
        k = float(space.dimensions)
        if sigma == float("inf"):
            return k
        pieces = list(curvature.pieces(space))
        for _ in range(200):
            floor = 2 * eps / (k * sigma**2)
            new = 0.0
            for piece in pieces:
                h = curvature.eigenvalues(piece).double()
                new += float((h / (h + floor)).sum())
            if new < 1e-9:
                return 0.0
            if abs(new - k) <= 1e-9 * k:
                return new
            k = new

        return k

    def settings(self) -> dict[str, Any]:
        """The name."""
        return {"rule": "prior-damped"}


@dataclass(frozen=True)
class Power(Rule):
    r"""Steps by a power of the curvature, :math:`q_i = 1 / (h_i^p + \epsilon_h)`.

    The rule of the published preconditioner. The result depends on ``eps``, so try several values.

    Attributes:
        exponent: p.
        eps: bounds the step along flat directions.
    """

    exponent: float = 0.5
    eps: float = 1e-5

    def scale(self, curvature: Curvature, space: Space, eps: float, sigma: float) -> Scale:
        """The scale; it does not depend on cutoff or width."""
        return lambda h: 1 / (h**self.exponent + self.eps)

    def settings(self) -> dict[str, Any]:
        """Name and settings."""
        return {"rule": "power", "exponent": self.exponent, "eps": self.eps}


class Proposal(ABC):
    """A distribution of directions."""

    @abstractmethod
    def sampler(self, space: Space, eps: float, sigma: float) -> Sampler:
        """The sampler for one estimate.

        Args:
            space: the parameters that move.
            eps: the cutoff.
            sigma: width of the measure; infinite for the Lebesgue measure.

        Raises:
            BadValue: the curvature does not fit the parameters.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What distinguishes it from other proposals, as JSON values."""


@dataclass(frozen=True)
class Uniform(Proposal):
    """All directions are equally likely."""

    def sampler(self, space: Space, eps: float, sigma: float) -> Sampler:
        """Standard normals, scaled to the sphere."""
        return Sampler(space)

    def settings(self) -> dict[str, Any]:
        """The name."""
        return {"proposal": "uniform"}


class Curved(Proposal, Curvature):
    """A proposal that steps further where the cost is flatter."""

    rule: Rule

    def under(self, rule: Rule) -> Self:
        """The same curvature under another rule; eigenvectors are not computed again."""
        made = copy.copy(self)
        made.rule = rule

        return made

    def sampler(self, space: Space, eps: float, sigma: float) -> Sampler:
        """Normals scaled in the curvature's basis."""
        self.check(space)

        return Sampler(space, self, self.rule.scale(self, space, eps, sigma))

    def settings(self) -> dict[str, Any]:
        """The name, the rule, and a digest of the curvature."""
        hasher = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            hasher.update(f"{name} {tuple(tensor.shape)}".encode())
            hasher.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
        return {
            "proposal": type(self).__name__.lower(),
            "digest": hasher.hexdigest(),
            **self.rule.settings(),
        }


class Diagonal(Curved):
    """Curvature along each parameter alone: a Fisher or Hessian diagonal, or Adam's.

    Args:
        h: by parameter name; or one flat tensor over all parameters that move, in their order.
        rule: how far to step along a direction of given curvature.
    """

    def __init__(self, h: Tensor | Mapping[str, Tensor], rule: Rule | None = None) -> None:
        self.h, self.rule = h, rule or PriorDamped()
        self._flat: dict[str, Tensor] = {}

    def check(self, space: Space) -> None:
        """Requires a curvature for every number that moves, none of them negative.

        Raises:
            BadValue: some are missing, their count differs, or one is negative or not finite.
        """
        given = self.h
        if isinstance(given, Tensor):
            parts = _split(given.reshape(-1), space)
        else:
            parts = {name: value.reshape(-1) for name, value in given.items()}
        for name, value in space.anchors.items():
            count = parts[name].numel() if name in parts else 0
            check(
                name in parts and count == value.numel(),
                f"{count} curvatures for {value.numel()} numbers",
                where=f"parameter {name}",
            )
            _check_curvature(parts[name], name)
        self._flat = {name: parts[name].to(value.device) for name, value in space.anchors.items()}

    def eigenvalues(self, piece: str) -> Float[Tensor, " n"]:
        """The diagonal."""
        return self._flat[piece]

    def tensors(self) -> Mapping[str, Tensor]:
        """The diagonal."""
        return {"": self.h} if isinstance(self.h, Tensor) else self.h


@dataclass(frozen=True)
class _Factor:
    values: Tensor
    vectors: Tensor
    _narrow: list[Tensor] = field(default_factory=list)

    def basis(self, dtype: torch.dtype) -> Tensor:
        """The eigenvectors as columns, in the parameters' dtype."""
        if dtype == self.vectors.dtype:
            return self.vectors
        if not self._narrow or self._narrow[0].dtype != dtype:
            self._narrow[:] = [self.vectors.to(dtype)]

        return self._narrow[0]


class Kronecker(Curved):
    r"""Curvature :math:`H = R \otimes C` of each matrix parameter, in its eigenbasis.

    For a weight ``[output, input]``, R is the second moment of the gradients of the outputs and
    C that of the inputs.

    Args:
        factors: (R, C) by name of a matrix parameter ``[rows, columns]``.
        diagonal: curvature of the other parameters that move, by name.
        rule: how far to step along a direction of given curvature.

    References:
        Martens, Grosse, 2015, section 3. https://arxiv.org/abs/1503.05671
    """

    def __init__(
        self,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        diagonal: Mapping[str, Tensor] | None = None,
        rule: Rule | None = None,
    ) -> None:
        self.factors, self.diagonal = dict(factors), dict(diagonal or {})
        self.rule = rule or PriorDamped()
        self._eigen: dict[str, tuple[_Factor, _Factor]] = {}

    def check(self, space: Space) -> None:
        """Requires factors or a diagonal for every parameter, of its shape.

        Raises:
            BadValue: it has neither, or they do not fit.
        """
        for name, value in space.anchors.items():
            if name in self.factors:
                sizes = tuple(len(factor) for factor in self.factors[name])
                check(
                    sizes == tuple(value.shape),
                    f"factors of {sizes} for a shape of {tuple(value.shape)}",
                    where=f"parameter {name}",
                )
                rows, columns = (_eigen(factor.to(value.device)) for factor in self.factors[name])
                self._eigen[name] = rows, columns
            elif name not in self.diagonal or self.diagonal[name].shape != value.shape:
                raise BadValue(
                    "neither factors nor a diagonal that fits",
                    where=f"parameter {name}",
                    mend="Give it in diagonal=, zeros where it is flat",
                )
            else:
                _check_curvature(self.diagonal[name], name)

    def eigenvalues(self, piece: str) -> Float[Tensor, " n"]:
        """Products of the factors' eigenvalues."""
        if piece not in self._eigen:
            return self.diagonal[piece].reshape(-1)
        rows, columns = self._eigen[piece]

        return torch.outer(rows.values, columns.values).reshape(-1)

    def to_parameters(self, piece: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Out of the factors' eigenbases."""
        if piece not in self._eigen:
            return x
        rows, columns = (factor.basis(x.dtype) for factor in self._eigen[piece])

        return (rows @ x.view(len(rows), len(columns)) @ columns.T).reshape(-1)

    def to_basis(self, piece: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Into the factors' eigenbases."""
        if piece not in self._eigen:
            return x
        rows, columns = (factor.basis(x.dtype) for factor in self._eigen[piece])

        return (rows.T @ x.view(len(rows), len(columns)) @ columns).reshape(-1)

    def tensors(self) -> Mapping[str, Tensor]:
        """Factors and diagonals."""
        factors = {
            f"{name} {side}": factor
            for name, pair in self.factors.items()
            for side, factor in zip(("rows", "columns"), pair, strict=True)
        }
        return {**factors, **self.diagonal}


class Dense(Curved):
    """The whole curvature matrix, in its eigenbasis.

    Args:
        h: symmetric ``[D, D]`` over all parameters that move, in their order.
        rule: how far to step along a direction of given curvature.
    """

    def __init__(self, h: Float[Tensor, "D D"], rule: Rule | None = None) -> None:
        self.h, self.rule = h, rule or PriorDamped()
        self._eigen = _eigen(h)

    def pieces(self, space: Space) -> dict[str, tuple[str, ...]]:
        """All parameters as one."""
        return {"": space.names}

    def check(self, space: Space) -> None:
        """Requires a row for every number that moves.

        Raises:
            BadValue: the sizes differ.
        """
        check(
            len(self.h) == space.dimensions,
            f"a matrix of {len(self.h)} for {space.dimensions} numbers",
            where="dense proposal",
        )

    def eigenvalues(self, piece: str) -> Float[Tensor, " n"]:
        """All eigenvalues."""
        return self._eigen.values

    def to_parameters(self, piece: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Out of the eigenbasis."""
        return self._eigen.basis(x.dtype) @ x

    def to_basis(self, piece: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Into the eigenbasis."""
        return self._eigen.basis(x.dtype).T @ x

    def tensors(self) -> Mapping[str, Tensor]:
        """The matrix."""
        return {"": self.h}


@dataclass(frozen=True)
class Tilted(Proposal):
    r"""Directions of the points of a Gaussian around the region's centre: a projected normal.

    .. math:: v = x / |x|, \qquad x \sim N(\mu, S), \qquad \mu = -S\theta/\sigma^2

    with :math:`S` of ``base``; under the prior-damped rule this is the product of the measure and
    a Gaussian of the cutoff's width. The distance of the anchor from the measure's centre then
    adds nothing to the scatter of the weights; on the whole space all weights are equal.

    Args:
        base: provides S; uniform gives :math:`\sigma^2 I`.
    """

    base: Proposal = field(default_factory=Uniform)

    def sampler(self, space: Space, eps: float, sigma: float) -> Sampler:
        """Normals scaled and shifted.

        Raises:
            BadValue: the measure has no centre to tilt towards.
        """
        check(
            sigma != float("inf"),
            "a flat measure has no centre",
            where="tilted proposal",
            mend="Use the Gaussian measure",
        )
        made = self.base.sampler(space, eps, sigma)
        if made.curvature is None:
            made = Sampler(space, None, lambda h: torch.full_like(h, sigma))

        return Sampler(space, made.curvature, made.scale, sigma)

    def settings(self) -> dict[str, Any]:
        """The name and the base."""
        return {"proposal": "tilted", "base": self.base.settings()}


def _split(flat: Tensor, space: Space) -> dict[str, Tensor]:
    check(
        flat.numel() == space.dimensions,
        f"{flat.numel()} curvatures for {space.dimensions} numbers",
        where="diagonal proposal",
    )
    sizes = [value.numel() for value in space.anchors.values()]

    return dict(zip(space.names, torch.split(flat, sizes), strict=True))


def _eigen(matrix: Tensor) -> _Factor:
    """Eigenvalues, not negative, and eigenvectors, in float64."""
    shape = tuple(matrix.shape)
    check(
        len(shape) == 2 and shape[0] == shape[1] and bool(matrix.isfinite().all()),
        f"a curvature of shape {shape} is not a finite square matrix",
        where="proposal",
    )
    values, vectors = torch.linalg.eigh(matrix.double())

    return _Factor(values.clamp(min=0), vectors)


def _check_curvature(h: Tensor, name: str) -> None:
    check(
        bool((h.isfinite() & (h >= 0)).all()),
        "a curvature is negative or not finite",
        where=f"parameter {name}",
        mend="Give the Fisher diagonal, or absolute values",
    )
