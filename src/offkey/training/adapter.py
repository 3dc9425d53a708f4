r"""LoRA on the linear maps of a model: :math:`y = W x + s B A x`, with A and B trained.

References:
    Hu et al., 2021, section 4.1. https://arxiv.org/abs/2106.09685
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from offkey.errors import Mismatch, UnmappedModel, check
from offkey.storage import write_json, write_tensors

__all__ = ["AdaptedLinear", "Adapter", "attach"]

PREFIX = "base_model.model."


class _LowRank(torch.autograd.Function):
    """A linear map with an adapter, without a gradient for the frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        hidden = rows @ down.T
        y = (rows @ weight.T).addmm_(hidden, up.T)
        ctx.save_for_backward(rows, weight, down, up, hidden)

        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, hidden = ctx.saved_tensors
        grad = grads[0]
        flat = grad.reshape(-1, grad.shape[-1])
        inner = flat @ up
        back = (flat @ weight).addmm_(inner, down)

        return back.view(*grad.shape[:-1], weight.shape[1]), None, inner.T @ rows, flat.T @ hidden


class AdaptedLinear(nn.Module):
    """A linear map with an adapter."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, seed: torch.Generator) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        bound = 1 / math.sqrt(linear.in_features)
        self.down = nn.Parameter(
            torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=seed)
        )
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Float[Tensor, "*batch inner"]) -> Float[Tensor, "*batch outer"]:
        """Applies the map and its adapter."""
        up = (self.up * self.scale).to(x.dtype)
        y: Tensor = _LowRank.apply(x, self.linear.weight, self.down.to(x.dtype), up)  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return y if self.linear.bias is None else y + self.linear.bias


@dataclass(frozen=True)
class Adapter:
    """The trained part of a model, in float32 while it is trained.

    Attributes:
        layers: adapted maps by their path in the model.
        rank: rank of each.
        alpha: the scale is ``alpha / rank``.
    """

    layers: Mapping[str, nn.Module]
    rank: int
    alpha: float

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of each map, by path."""
        return {
            f"{path}.{name}": parameter
            for path, layer in self.layers.items()
            for name, parameter in (("down", layer.down), ("up", layer.up))
            if isinstance(parameter, nn.Parameter)
        }

    def tensors(self) -> dict[str, Tensor]:
        """A and B in bfloat16, under PEFT's names."""
        ends = {"down": "lora_A.weight", "up": "lora_B.weight"}
        tensors = {}
        for key, value in self.parameters.items():
            path, _, name = key.rpartition(".")
            tensors[f"{PREFIX}{path}.{ends[name]}"] = value.detach().to(torch.bfloat16)

        return tensors

    def save(self, folder: Path, base: str) -> None:
        """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT reads them.

        Args:
            folder: created if it does not exist.
            base: name of the model that the adapter belongs to.
        """
        write_tensors(folder / "adapter_model.safetensors", self.tensors(), {"format": "pt"})
        settings = {
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": sorted({path.rpartition(".")[2] for path in self.layers}),
            "task_type": "CAUSAL_LM",
        }
        write_json(folder / "adapter_config.json", settings)

    def load(self, folder: Path) -> None:
        """Copies the values of a saved adapter into this one, as a start for training.

        Raises:
            Mismatch: it has other maps, rank or shapes.
        """
        saved = load_file(folder / "adapter_model.safetensors")
        own = self.tensors()
        check(
            {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in own.items()},
            "it has other maps or another rank",
            where=f"adapter {folder}",
            error=Mismatch,
        )
        with torch.no_grad():
            for parameter, key in zip(self.parameters.values(), own, strict=True):
                parameter.copy_(saved[key])


@contextmanager
def attach(
    module: nn.Module,
    *,
    rank: int = 4,
    alpha: float = 16.0,
    maps: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[Adapter]:
    """Attaches a new adapter to a model, and restores the model afterwards.

    Args:
        module: the model, whose own parameters are frozen meanwhile.
        rank: rank of each map's change.
        alpha: the change is scaled by ``alpha / rank``.
        maps: last names of the linear maps to adapt; by default all but the one to the
            vocabulary.
        seed: seed of A's initial values; B starts at zero.

    Raises:
        UnmappedModel: there is no such map.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = _linears(module, maps)
    if not linears:
        named = "" if maps is None else " named " + ", ".join(maps)
        raise UnmappedModel(f"it has no linear map{named}")
    wanted = {name: p.requires_grad for name, p in module.named_parameters()}
    module.requires_grad_(False)
    layers = {
        path: AdaptedLinear(linear, rank, alpha / rank, generator)
        for path, linear in linears.items()
    }
    try:
        for path, layer in layers.items():
            _put(module, path, layer)
        yield Adapter(layers, rank, alpha)
    finally:
        for path, linear in linears.items():
            _put(module, path, linear)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(wanted[name])


def _linears(module: nn.Module, maps: Sequence[str] | None) -> dict[str, nn.Linear]:
    """Linear maps by path: those of these last names, or all but the one to the vocabulary."""
    outlet = getattr(module, "get_output_embeddings", lambda: None)()

    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and (part is not outlet if maps is None else path.rpartition(".")[2] in maps)
    }


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)
