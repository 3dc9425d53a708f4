"""A trained sparse autoencoder, which never changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.errors import BadValue, Mismatch
from offkey.storage import Stateful

__all__ = ["Activation", "Dictionary"]

Activation = Literal["relu", "topk", "jumprelu"]


@dataclass(frozen=True, eq=False)
class Dictionary(Stateful):
    r"""Sparse latents of an activation, and the activation that they stand for.

    .. math:: z = (x - b_{dec}) W_{enc} + b_{enc}, \quad \hat x = f(z) W_{dec} + b_{dec}

    :math:`f` is ReLU; or the k largest of ReLU(z) and 0 elsewhere (TopK); or z where it is above
    both 0 and the latent's threshold, and 0 elsewhere (JumpReLU). Computed in the dtype of the
    weights.

    Attributes:
        encoder: :math:`W_{enc}`, ``[d, latent]``.
        encoder_bias: :math:`b_{enc}`.
        decoder: :math:`W_{dec}`, ``[latent, d]``.
        decoder_bias: :math:`b_{dec}`.
        activation: the function :math:`f`.
        k: number of active latents, for TopK.
        threshold: one for each latent, for JumpReLU.
        centred: whether :math:`b_{dec}` is subtracted before encoding.
        site: name of the site that it was trained at; empty if unknown.
        model: name of the model that it was trained on; empty if unknown.
        about: texts, settings and figures of its training, as JSON values.

    Raises:
        BadValue: shapes do not fit, or ``k`` or ``threshold`` is missing or too much.

    References:
        Gao et al., 2024 (TopK). https://arxiv.org/abs/2406.04093
        Rajamanoharan et al., 2024 (JumpReLU). https://arxiv.org/abs/2407.14435
    """

    encoder: Float[Tensor, "d latent"]
    encoder_bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent d"]
    decoder_bias: Float[Tensor, " d"]
    activation: Activation = "relu"
    k: int | None = None
    threshold: Float[Tensor, " latent"] | None = None
    centred: bool = True
    site: str = ""
    model: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        width, latents = self.encoder.shape
        expected = {
            "encoder_bias": (latents,),
            "decoder": (latents, width),
            "decoder_bias": (width,),
        }
        if self.activation == "jumprelu":
            expected["threshold"] = (latents,)
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None or tuple(value.shape) != shape:
                given = "missing" if value is None else f"of shape {tuple(value.shape)}"
                raise BadValue(f"{name} is {given} where {shape} is needed", where="dictionary")
        if self.activation == "topk" and not (self.k and 1 <= self.k <= latents):
            raise BadValue(f"k is {self.k}", where="dictionary", mend=f"Use 1 to {latents}")

    @property
    def width(self) -> int:
        """Length of an activation."""
        return self.encoder.shape[0]

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.encoder.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which it computes."""
        return self.encoder.dtype

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The same dictionary on another device or in another dtype."""
        names = ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold")
        moved = {
            name: value.to(device=device, dtype=dtype)
            for name in names
            if (value := getattr(self, name)) is not None
        }

        return replace(self, **moved)

    def hidden(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch latent"]:
        """:math:`z`, before :math:`f`.

        Raises:
            Mismatch: activations of another width.
        """
        if x.shape[-1] != self.width:
            raise Mismatch(
                f"activations of width {x.shape[-1]} for a dictionary of width {self.width}",
                where=f"dictionary at {self.site}" if self.site else "dictionary",
                mend="Use it at the site and on the model that it was trained on",
            )
        x = x.to(self.encoder)
        x = x - self.decoder_bias if self.centred else x

        return x @ self.encoder + self.encoder_bias

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch latent"]:
        """Latents, not negative; most are 0."""
        z = self.hidden(x)
        if self.activation == "topk":
            values, places = self._largest(z)
            return torch.zeros_like(z).scatter_(-1, places, values)
        f = z.relu()
        if self.activation == "jumprelu":
            assert self.threshold is not None
            f = torch.where(z > self.threshold, f, torch.zeros_like(f))

        return f

    def encode_sparse(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n latent"]:
        """The latents as a sparse tensor (COO) that holds the active ones alone."""
        z = self.hidden(x)
        if self.activation != "topk":
            sparse: Tensor = self.encode(x).to_sparse_coo()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return sparse
        values, places = self._largest(z)
        rows = torch.arange(len(x), device=z.device)[:, None].expand_as(places)
        active = values > 0
        index = torch.stack([rows[active], places[active]])

        return torch.sparse_coo_tensor(
            index, values[active], z.shape, check_invariants=False
        ).coalesce()

    def decode(self, f: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d"]:
        """The activations that latents, dense or sparse, stand for."""
        f = f.to(self.decoder)
        product: Tensor = torch.sparse.mm(f, self.decoder) if f.is_sparse else f @ self.decoder

        return product + self.decoder_bias

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""The reconstruction :math:`\hat x`."""
        return self.decode(self.encode(x))

    def _largest(
        self, z: Float[Tensor, "*batch latent"]
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        assert self.k is not None
        largest = z.topk(self.k, dim=-1, sorted=False)

        return largest.values.relu(), largest.indices
