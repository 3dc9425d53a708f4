"""A layer without an elementwise nonlinearity: the product of two linear maps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offkey.errors import BadInput, BadValue, Mismatch

__all__ = ["Bilinear"]


class Bilinear(nn.Module):
    r"""The bilinear layer :math:`g(x) = D\,[(Lx) \odot (Rx)]`, trainable.

    Each output is a quadratic form of the input, so its weights describe it fully:
    :func:`offkey.estimate.bilinear.interactions`. With ``bias`` a 1 is prepended to the input, and
    the forms gain linear and constant terms. Initialised so that outputs of unit inputs have
    variance about 1.

    Args:
        inputs: width of x.
        hidden: rows of L and R.
        outputs: rows of D.
        bias: whether a 1 is prepended to x.
        seed: of the initial weights.

    Attributes:
        left: L, ``[hidden, inputs (+ 1)]``.
        right: R, of the same shape.
        down: D, ``[outputs, hidden]``.

    Raises:
        BadValue: a width below 1.

    References:
        Pearce, Dooms, Rigg, Oramas, Sharkey, 2024: Bilinear MLPs enable weight-based mechanistic
        interpretability. https://arxiv.org/abs/2410.08417
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, bias: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        for name, width in (("inputs", inputs), ("hidden", hidden), ("outputs", outputs)):
            if width < 1:
                raise BadValue(f"{width} is below 1", where=f"Bilinear {name}")
        generator = torch.Generator().manual_seed(seed)
        self.bias = bias
        self.left = _weights(hidden, inputs + bias, generator)
        self.right = _weights(hidden, inputs + bias, generator)
        self.down = _weights(outputs, hidden, generator)

    @classmethod
    def of(
        cls,
        left: Float[Tensor, "h d"],
        right: Float[Tensor, "h d"],
        down: Float[Tensor, "o h"],
        *,
        bias: bool = False,
    ) -> "Bilinear":
        """The layer with these weights; with ``bias`` the first column meets the 1.

        Raises:
            Mismatch: the shapes do not match.
            BadInput: a weight is not finite.
        """
        if (
            left.ndim != 2
            or left.shape != right.shape
            or down.ndim != 2
            or down.shape[1] != len(left)
        ):
            raise Mismatch(
                f"L {tuple(left.shape)}, R {tuple(right.shape)} and D {tuple(down.shape)}",
                where="Bilinear",
                mend="Give [h, d], [h, d] and [o, h]",
            )
        layer = cls(left.shape[1] - bias, len(left), len(down), bias=bias)
        for name, value in (("left", left), ("right", right), ("down", down)):
            if not bool(value.isfinite().all()):
                raise BadInput("a weight is not finite", where=f"Bilinear {name}")
            setattr(layer, name, nn.Parameter(value.detach().clone()))

        return layer

    @property
    def inputs(self) -> int:
        """Width of x, without the 1."""
        return self.left.shape[1] - self.bias

    def extended(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """The input as L and R meet it: with the 1 before it, where there is a bias.

        Raises:
            Mismatch: rows of another width.
        """
        if x.shape[-1] != self.inputs:
            raise Mismatch(
                f"rows of width {x.shape[-1]} for a layer of {self.inputs} inputs",
                where="Bilinear",
            )
        if not self.bias:
            return x

        return torch.cat([x.new_ones(*x.shape[:-1], 1), x], dim=-1)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n o"]:
        """The outputs of each row."""
        x = self.extended(x)

        return ((x @ self.left.T) * (x @ self.right.T)) @ self.down.T


def _weights(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, generator=generator) * columns**-0.5)
