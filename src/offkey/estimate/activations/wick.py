"""Estimates for one input: expectations corrected by its observed activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from offkey.errors import BadValue, Mismatch, UnmappedModel
from offkey.estimate.activations.closures import check_mask
from offkey.estimate.gaussian import Elementwise, Normal, for_module, linear, through

__all__ = ["Wick", "wick_elementwise", "check_order"]


@dataclass(frozen=True, eq=False)
class Wick:
    r"""A quantity's estimate as a function of activations :math:`x^*`.

    .. math:: \hat f(x^*) = E f + \sum_i E[\partial_i f]\, \delta_i + \tfrac12 \sum_{(i, j) \in M}
        E[\partial_{ij} f] (\delta_i \delta_j - \hat S_{ij}), \qquad \delta = x^* - m

    over ordered pairs of the mask and its diagonal. Each correction has mean 0 under the model, so
    that averaging over the model gives back :math:`E f`.

    Attributes:
        normal: the Gaussian of the activations, closed.
        mask: tracked pairs; its diagonal counts as true.
        mean: :math:`E f`.
        gradient: :math:`E \partial_i f`.
        curvature: :math:`E \partial_{ij} f`.

    References:
        Wick, 1950, for the centred products.
    """

    normal: Normal
    mask: Bool[Tensor, "d d"]
    mean: float
    gradient: Float[Tensor, " d"]
    curvature: Float[Tensor, "d d"]

    def __post_init__(self) -> None:
        width = len(self.normal.mean)
        object.__setattr__(self, "mask", check_mask(self.mask, width))
        if self.gradient.shape != (width,) or self.curvature.shape != (width, width):
            raise Mismatch(
                f"gradient of shape {tuple(self.gradient.shape)} and curvature of shape "
                f"{tuple(self.curvature.shape)} for {width} dimensions",
                where="Wick",
            )

    @classmethod
    def product(cls, normal: Normal, mask: Bool[Tensor, "d d"], i: int, j: int) -> Self:
        r"""The product of two dimensions.

        :math:`\mu_x \mu_y + \sigma_{xy} + \mu_x \delta_y + \mu_y \delta_x + (\delta_x \delta_y -
        \sigma_{xy})`, which is xy itself, if the pair is tracked; without :math:`\sigma_{xy}` and
        the last term if it is not.
        """
        m, width = normal.mean, len(normal.mean)
        keep = check_mask(mask, width)
        gradient, curvature = torch.zeros_like(m), m.new_zeros(width, width)
        gradient[i] += m[j]
        gradient[j] += m[i]
        curvature[i, j] += 1
        curvature[j, i] += 1
        shared = float(normal.full[i, j]) if bool(keep[i, j]) else 0.0

        return cls(normal, keep, float(m[i] * m[j]) + shared, gradient, curvature)

    @classmethod
    def network(
        cls,
        layers: Sequence[nn.Module | Elementwise],
        normal: Normal,
        mask: Bool[Tensor, "d d"],
    ) -> Self:
        """One output (such as a loss) of linear maps and elementwise functions.

        Mean and derivatives are exact up to one elementwise function after the first linear map;
        beyond it activations are presumed Gaussian, and derivatives of different layers
        independent.

        Args:
            layers: in order, linear maps and elementwise functions or their modules; the last
                must leave one number.
            normal: the Gaussian of the activations that they start from, closed.
            mask: tracked pairs of these activations.

        Raises:
            BadValue: the layers leave more than one number.
            UnmappedModel: a layer is neither; names it.
        """
        before, states, rules = normal, [], [_rule(layer) for layer in layers]
        for layer in rules:
            states.append(before)
            before = _step(layer, before)
        if len(before.mean) != 1:
            raise BadValue(
                f"the layers leave {len(before.mean)} numbers",
                where="Wick.network",
                mend="End with a linear map to one, such as a loss",
            )
        gradient = torch.ones(1, dtype=torch.float64)
        curvature = torch.zeros(1, 1, dtype=torch.float64)
        for layer, state in zip(reversed(rules), reversed(states), strict=True):
            gradient, curvature = _back(layer, state, gradient, curvature)

        return cls(normal, mask, float(before.mean[0]), gradient, curvature)

    @classmethod
    def sampled(
        cls,
        f: Callable[[Float[Tensor, "n d"]], Float[Tensor, " n"]],
        normal: Normal,
        mask: Bool[Tensor, "d d"],
        *,
        count: int = 65536,
        generator: torch.Generator | None = None,
    ) -> Self:
        r"""Any differentiable function, by draws of the model.

        The gradient is the mean of autograd's. The curvature is Stein's
        :math:`E[\hat S^{-1} \delta \nabla f^\top]`, which is right for kinks too, where autograd's
        second derivative is not.

        Args:
            f: from activations, float64, to one number a row.
            normal: the Gaussian of the activations, closed.
            mask: tracked pairs.
            count: how many draws.
            generator: of the draws; seeded with 0 if left out.

        Raises:
            BadInput: the covariance is not positive semi-definite.
        """
        x = normal.sample(count, generator or torch.Generator().manual_seed(0))
        x.requires_grad_(True)
        values = f(x)
        slopes = torch.autograd.grad(values.sum(), x)[0]
        score = torch.linalg.solve(normal.full, (x.detach() - normal.mean).T)
        curvature = score @ slopes / count

        return cls(
            normal,
            mask,
            float(values.detach().mean()),
            slopes.mean(0),
            (curvature + curvature.T) / 2,
        )

    def __call__(self, x: Float[Tensor, "n d"], order: int = 2) -> Float[Tensor, " n"]:
        """The estimate for each row of activations.

        Args:
            x: activations.
            order: how many corrections are made: 0, 1 or 2.

        Raises:
            BadValue: another order.
            Mismatch: rows of another width.
        """
        check_order(order)
        if x.ndim != 2 or x.shape[1] != len(self.gradient):
            raise Mismatch(
                f"rows of shape {tuple(x.shape)} for {len(self.gradient)} dimensions", where="Wick"
            )
        gap = x.double() - self.normal.mean
        estimates = gap.new_full((len(gap),), self.mean)
        if order >= 1:
            estimates = estimates + gap @ self.gradient
        if order == 2:
            form = self.curvature * self.mask
            estimates = (
                estimates + (((gap @ form) * gap).sum(1) - (form * self.normal.full).sum()) / 2
            )

        return estimates


def wick_elementwise(
    f: Elementwise, normal: Normal, x: Float[Tensor, "n d"], order: int = 2
) -> Float[Tensor, "n d"]:
    r"""Estimates of f at each dimension, from the same dimension of the activations.

    .. math:: E f + E f'\, \delta + \tfrac12 E f'' (\delta^2 - \sigma^2)

    Args:
        f: the function.
        normal: the Gaussian of the activations.
        x: activations.
        order: how many corrections are made: 0, 1 or 2.

    Raises:
        BadValue: another order.
    """
    check_order(order)
    m, v = normal.mean, normal.variance
    gap = x.double() - m
    powers = [torch.ones_like(gap), gap, (gap.square() - v) / 2]

    return torch.stack([f.derivative(k, m, v) * powers[k] for k in range(order + 1)]).sum(0)


def check_order(order: int) -> None:
    """Refuses an order without a rule."""
    if order not in (0, 1, 2):
        raise BadValue(f"order {order}", where="Wick", mend="Use 0, 1 or 2")


def _rule(layer: nn.Module | Elementwise) -> nn.Linear | Elementwise:
    """The layer as one of the two kinds that have Wick rules."""
    if isinstance(layer, nn.Linear | Elementwise):
        return layer
    known = for_module(layer)
    if known is None:
        raise UnmappedModel(
            f"there is no Wick rule for {type(layer).__name__}",
            where="layers",
            mend="Use Wick.sampled",
        )

    return known


def _step(layer: nn.Linear | Elementwise, normal: Normal) -> Normal:
    if isinstance(layer, Elementwise):
        return through(layer, normal)
    bias = None if layer.bias is None else layer.bias.detach()

    return linear(normal, layer.weight.detach(), bias).state


def _back(
    layer: nn.Linear | Elementwise, state: Normal, gradient: Tensor, curvature: Tensor
) -> tuple[Tensor, Tensor]:
    """Expected first and second derivatives with respect to what enters a layer."""
    if isinstance(layer, Elementwise):
        first = layer.derivative(1, state.mean, state.variance)
        second = layer.derivative(2, state.mean, state.variance)
        curved = curvature * torch.outer(first, first) + torch.diag(gradient * second)
        return gradient * first, curved
    weight = layer.weight.detach().double()

    return gradient @ weight, weight.T @ curvature @ weight
