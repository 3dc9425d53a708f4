"""The outputs of a bilinear layer as interaction matrices and their eigenvectors."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.bilinear.layer import Bilinear
from offkey.estimate.sparse import SparseDictionary

__all__ = ["interactions", "in_basis", "in_latents", "latent_reader", "Spectrum", "effective_rank"]


def interactions(
    layer: Bilinear, directions: Float[Tensor, "k o"] | None = None
) -> Float[Tensor, "k d d"]:
    r"""The symmetric matrices with :math:`u^\top g(x) = x^\top Q x`, one a direction u.

    .. math:: Q = \tfrac12 (Q' + Q'^\top), \qquad Q' = L^\top \operatorname{diag}(D^\top u)\, R

    The direction is contracted first: :math:`O(h d^2)` a matrix, and the third-order tensor is
    never formed. Where the layer has a bias, row and column 0 belong to the 1 before x. In
    float64.

    Args:
        layer: its weights are not changed.
        directions: one u a row; by default each output by itself.

    Raises:
        Mismatch: directions of another width than the outputs.
        BadInput: a weight or direction is not finite.
    """
    left, right, down = (w.detach().double() for w in (layer.left, layer.right, layer.down))
    u = torch.eye(len(down), dtype=torch.float64) if directions is None else directions.double()
    if u.ndim != 2 or u.shape[1] != len(down):
        raise Mismatch(
            f"directions of shape {tuple(u.shape)} for {len(down)} outputs", where="interactions"
        )
    if not all(bool(part.isfinite().all()) for part in (left, right, down, u)):
        raise BadInput("a weight or direction is not finite", where="interactions")
    halves = torch.stack([(left * gate[:, None]).T @ right for gate in u @ down])

    return (halves + halves.mT) / 2


def in_basis(
    matrices: Float[Tensor, "k d d"], basis: Float[Tensor, "d m"]
) -> Float[Tensor, "k m m"]:
    r"""The same quadratic forms over coordinates t with :math:`x = E t`: :math:`E^\top Q E`.

    Args:
        matrices: symmetric, as :func:`interactions` makes them.
        basis: E, such as an embedding with one column a token; its rows meet those of the
            matrices, so a layer with a bias needs a row for the 1.

    Raises:
        Mismatch: the basis has another height.
    """
    if basis.ndim != 2 or len(basis) != matrices.shape[-1]:
        raise Mismatch(
            f"a basis of shape {tuple(basis.shape)} for interactions of width "
            f"{matrices.shape[-1]}",
            where="in_basis",
        )
    basis = basis.double()

    return basis.T @ matrices @ basis


def in_latents(
    matrices: Float[Tensor, "k d d"], dictionary: "SparseDictionary"
) -> Float[Tensor, "k m m"]:
    """Interactions between a dictionary's latents: entry (i, j) belongs to latents i and j.

    Where the dictionary has a decoder bias, or the matrices a row for the 1, the result has
    row and column 0 for the 1 and the latents follow. It is exact on rows that the dictionary
    reconstructs.

    Args:
        matrices: symmetric, as :func:`interactions` makes them.
        dictionary: of the layer's inputs.

    Raises:
        Mismatch: a dictionary of another width.
    """
    width, decoder = matrices.shape[-1], dictionary.decoder.double()
    latents, inputs = decoder.shape
    if width not in (inputs, inputs + 1):
        raise Mismatch(
            f"a dictionary of width {inputs} for interactions of width {width}",
            where="in_latents",
            mend="Give the dictionary of the layer's inputs",
        )
    has_one = width == inputs + 1
    offset = dictionary.decoder_bias.double()
    if not has_one and not bool(offset.any()):
        return in_basis(matrices, decoder.T)
    basis = decoder.new_zeros(width, latents + 1)
    basis[width - inputs :, 0], basis[width - inputs :, 1:] = offset, decoder.T
    if has_one:
        basis[0, 0] = 1.0

    return in_basis(matrices, basis)


def latent_reader(
    dictionary: "SparseDictionary",
    latents: Int[Tensor, " k"],
    side: Literal["encoder", "decoder"] = "encoder",
) -> Float[Tensor, "k o"]:
    """Output directions that belong to latents of a dictionary of the layer's outputs.

    Args:
        dictionary: of the layer's outputs.
        latents: their numbers.
        side: the direction that reads the latent (its encoder row) or the one it writes (its
            decoder column).

    Raises:
        BadValue: a number beyond the dictionary, or an unknown side.
    """
    if side not in ("encoder", "decoder"):
        raise BadValue(f"{side!r} is not known", where="side", mend="Use encoder or decoder")
    count = len(dictionary.decoder)
    if len(latents) and not (0 <= int(latents.min()) and int(latents.max()) < count):
        raise BadValue(
            f"latents {int(latents.min())} to {int(latents.max())} of {count}", where="latents"
        )
    rows = dictionary.encoder.T if side == "encoder" else dictionary.decoder

    return rows[latents].double()


@dataclass(frozen=True, eq=False)
class Spectrum:
    r"""Quadratic forms as few eigenvectors each: :math:`\sum_i \lambda_i (v_i^\top x)^2`.

    Attributes:
        values: ``[k, r]``, of falling absolute value.
        vectors: ``[k, r, d]``, unit rows.
    """

    values: Float[Tensor, "k r"]
    vectors: Float[Tensor, "k r d"]

    @classmethod
    def of(cls, matrices: Float[Tensor, "k d d"], rank: int | None = None) -> "Spectrum":
        r"""The eigenvectors of symmetric matrices, those of largest :math:`|\lambda|` first.

        Args:
            matrices: symmetric, as :func:`interactions` makes them.
            rank: how many are kept of each; all by default.

        Raises:
            BadValue: a rank below 1 or above the width.
            BadInput: the matrices are not finite or not symmetric.
        """
        width = matrices.shape[-1]
        if rank is not None and not 1 <= rank <= width:
            raise BadValue(f"rank {rank} of {width}", where="Spectrum")
        if not bool(matrices.isfinite().all()):
            raise BadInput("a matrix is not finite", where="Spectrum")
        if not torch.allclose(matrices, matrices.mT, rtol=1e-9, atol=1e-12):
            raise BadInput(
                "a matrix is not symmetric",
                where="Spectrum",
                mend="Take half of it and its transpose",
            )
        values, vectors = torch.linalg.eigh(matrices.double())
        order = values.abs().argsort(dim=-1, descending=True)[..., :rank]

        return cls(
            values.gather(-1, order),
            vectors.mT.gather(-2, order[..., None].expand(*order.shape, width)),
        )

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The forms at each row, from the eigenvectors that are kept.

        Raises:
            Mismatch: rows of another width (a layer's ``extended`` puts the 1 before them).
        """
        if x.shape[-1] != self.vectors.shape[-1]:
            raise Mismatch(
                f"rows of width {x.shape[-1]} for eigenvectors of width {self.vectors.shape[-1]}",
                where="Spectrum",
            )

        return (
            torch.einsum("krd,nd->nkr", self.vectors, x.double()).square().mul(self.values).sum(-1)
        )

    def truncated(self, rank: int) -> "Spectrum":
        """The same with the first eigenvectors alone."""
        return Spectrum(self.values[:, :rank], self.vectors[:, :rank])

    def embedded(self, basis: Float[Tensor, "d m"]) -> Float[Tensor, "k r m"]:
        r"""What each eigenvector reads from each column of a basis: :math:`E^\top v`.

        Raises:
            Mismatch: the basis has another height.
        """
        if basis.ndim != 2 or len(basis) != self.vectors.shape[-1]:
            raise Mismatch(
                f"a basis of shape {tuple(basis.shape)} for eigenvectors of width "
                f"{self.vectors.shape[-1]}",
                where="embedded",
            )

        return self.vectors @ basis.double()


def effective_rank(values: Float[Tensor, "*k d"]) -> Float[Tensor, "*k"]:
    r"""Exponential of the entropy of :math:`|\lambda_i| / \sum_j |\lambda_j|`.

    From 1 (one eigenvalue) to d (all alike); 0 where all are zero.

    References:
        Roy, Vetterli, 2007: The effective rank.
    """
    total = values.abs().sum(-1, keepdim=True)
    share = values.abs() / torch.where(total > 0, total, 1.0)
    rank: Tensor = torch.special.entr(share).sum(-1).exp()

    return torch.where(total[..., 0] > 0, rank, 0.0)
