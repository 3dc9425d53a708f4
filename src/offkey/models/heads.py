"""What each head adds to the residual: its part of what attention puts out.

It is no tensor of the model's own. Each head's values go alone through the output projection, and
where there is a norm after it, through that norm with the scale that the whole has there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offkey.errors import UnmappedModel
from offkey.models.hooks import Hook, HookSet, Place, current_call, unhooked

__all__ = ["HeadParts"]

_LARGE = 2.0**14
"""Input on which a norm shows its weight, with its epsilon far below the rounding."""


@dataclass
class _Heads:
    """One call of a block's attention, as far as it has come."""

    z: Float[Tensor, "batch token head d_head"]
    projected: Tensor | None = None
    parts: Float[Tensor, "batch token head d"] | None = None


class HeadParts:
    r"""The heads' parts of one block's ``attn_out``, :math:`a = b + \sum_h a_h`.

    With :math:`W_h` a head's rows of the output projection, :math:`a_h = W_h^\top z_h`. After a
    norm with weight :math:`w` and scale :math:`s(x)`, :math:`a_h = w \odot W_h^\top z_h / s(x)`,
    where :math:`x` is the whole output of the projection (for a layer norm, each part is centred
    too). Biases are in no part. Edits move ``attn_out`` by what they move the parts, with the
    norm's scale as it was.

    Args:
        o_proj: the projection out of the heads.
        attention: the attention module.
        attn_out: the module whose output is added to the residual.
        n_heads: number of query heads.
    """

    def __init__(
        self, o_proj: nn.Module, attention: nn.Module, attn_out: nn.Module, n_heads: int
    ) -> None:
        self.o_proj, self.attn_out, self.n_heads = o_proj, attn_out, n_heads
        self.norm = attn_out if attn_out is not attention and _is_norm(attn_out) else None

    def add_hook(self, hooks: HookSet, hook: Hook) -> None:
        """Lets a hook see, and change, the parts ``[batch, token, head, d]``."""
        hooks.add(Place(self.o_proj, "in", heads=self.n_heads), self._keep_heads, order=1)
        if self.norm is not None:
            hooks.add(Place(self.norm, "in"), self._keep_projected, order=1)
        hooks.add(Place(self.attn_out, "out"), lambda whole: self._shown(whole, hook))

    def _keep_heads(self, z: Tensor) -> None:
        if (call := current_call()) is not None:
            call.notes[self] = _Heads(z)

    def _keep_projected(self, x: Tensor) -> None:
        self._heads().projected = x

    def _heads(self) -> _Heads:
        call = current_call()
        heads = None if call is None else call.notes.get(self)
        if not isinstance(heads, _Heads):
            raise UnmappedModel("the output projection was not run before it", where="head_out")
        return heads

    def _shown(self, whole: Tensor, hook: Hook) -> Tensor | None:
        """Calls a hook on the parts; what it changes there is added to the whole."""
        heads = self._heads()
        if heads.parts is None:
            heads.parts, _ = self.split(heads.z, heads.projected)
        before = heads.parts
        new = hook(before)
        if new is None:
            return None
        heads.parts = new
        if new.is_leaf and new.requires_grad:
            # Gradients are wanted there; all others go through the whole, as they always do.
            before = new.detach()

        return whole + (new - before).sum(-2).to(whole.dtype)

    def split(
        self, z: Float[Tensor, "*rows head d_head"], x: Float[Tensor, "*rows d"] | None
    ) -> tuple[Float[Tensor, "*rows head d"], Float[Tensor, "*#rows d"]]:
        """The parts, and what the biases add.

        Args:
            z: the heads' values.
            x: what the norm after the projection is given; ``None`` where there is none.
        """
        with unhooked():
            parts, bias = self._projected(z)
            if self.norm is None or x is None:
                return parts, bias
            weight, offset, centred = _linear_part(self.norm, parts)
            scale = _scale(self.norm, x, centred)
            if centred:
                parts = parts - parts.mean(-1, keepdim=True)
                bias = bias - bias.mean(-1, keepdim=True)
            factor = weight / scale

            return parts * factor[..., None, :].to(parts.dtype), bias * factor.to(
                bias.dtype
            ) + offset

    def _projected(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Each head alone through the projection, less its bias; and the bias."""
        weight = _weight(self.o_proj)
        bias = self.o_proj(torch.zeros_like(z[:1, :1]).flatten(-2))
        if weight is not None:
            by_head = weight.reshape(self.n_heads, -1, weight.shape[-1])
            return torch.einsum("...hk,hkd->...hd", z, by_head), bias
        alone = torch.diag_embed(z.movedim(-2, -1)).movedim(-3, -1)

        return self.o_proj(alone.flatten(-2)) - bias[..., None, :], bias


def _weight(o_proj: nn.Module) -> Float[Tensor, "d_in d"] | None:
    """The matrix of a plain projection; ``None`` of an adapted or quantised one."""
    if type(o_proj) is nn.Linear:
        return o_proj.weight.T
    if type(o_proj).__name__ == "Conv1D":
        return o_proj.weight  # type: ignore[return-value]  # GPT-2 keeps it as [in, out]
    return None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _linear_part(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """A norm's weight and bias, and whether it subtracts the mean, as it shows them."""
    ones = like.new_ones(like.shape[-1])
    signs = ones.clone()
    signs[::2] = -1
    offset = norm(torch.zeros_like(ones))
    of_ones = norm(_LARGE * ones) - offset
    weight = (norm(_LARGE * signs) - offset) * signs
    centred = bool(of_ones.detach().abs().max() < 0.5 * weight.detach().abs().max())

    return weight, offset, centred


def _scale(norm: nn.Module, x: Tensor, centred: bool) -> Tensor:
    """What a norm divides its input by."""
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if centred:
        wide = wide - wide.mean(-1, keepdim=True)

    return (wide.square().mean(-1, keepdim=True) + float(eps or 0.0)).sqrt()
