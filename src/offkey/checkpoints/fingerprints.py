"""Fingerprints: which model this is, whatever it was loaded from."""

import contextlib
import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offkey.checkpoints.cache import cache_folder
from offkey.errors import BadValue

__all__ = ["fingerprint", "remember"]

_FORMAT = "offkey fingerprint 1"
_CHUNK = 1 << 25
_ROW = 512
_NOT_COMPUTED_WITH = frozenset(
    """
    _model_name_or_path _name_or_path architectures attn_implementation auto_map dtype id2label
    label2id output_attentions output_hidden_states quantization_config return_dict torch_dtype
    transformers_version use_cache
    """.split()
)


@dataclass(frozen=True)
class _Known:
    glance: str
    value: str


_files: "weakref.WeakKeyDictionary[nn.Module, tuple[Path, ...]]" = weakref.WeakKeyDictionary()
_known: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()


def fingerprint(module: nn.Module) -> str:
    """SHA-256, in hex, over the settings and the weights of a model.

    It covers name, dtype, shape and bytes of every parameter and saved buffer, and the settings
    that decide what is computed from them; not the device, the file or the attention kernel. A
    changed weight is noticed: the hash of an earlier call is used only while a sum over all
    weights is still the same.

    Raises:
        BadValue: weights are not in memory.
    """
    inner = _unwrapped(module)
    tensors = _tensors(inner)
    settings = _settings(inner)
    glance = _glance(tensors, settings)

    known = _known.get(inner) or _recall(_files.get(inner, ()))
    if known is None or known.glance != glance:
        known = _Known(glance, _digest(tensors, settings))
        _store(_files.get(inner, ()), known)
    _known[inner] = known
    return known.value


def remember(module: nn.Module, files: Iterable[Path]) -> None:
    """Records which files a module was loaded from, under which its fingerprint is cached."""
    _files[_unwrapped(module)] = tuple(files)


def _unwrapped(module: nn.Module) -> nn.Module:
    base = getattr(module, "get_base_model", None)
    inner = base() if callable(base) else module
    return inner if isinstance(inner, nn.Module) else module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {
        name: value.detach()
        for name, value in sorted(module.state_dict().items())
        if isinstance(value, Tensor)
    }
    away = [name for name, value in tensors.items() if value.device.type == "meta"]
    if away:
        raise BadValue(
            f"{away[0]} is not in memory",
            where="fingerprint",
            mend="Load the model without offloading weights to disk",
        )
    return tensors


def _settings(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_diff_dict"):
        return repr(module)
    return json.dumps(_computed_with(config.to_diff_dict()), sort_keys=True, default=str)


def _computed_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _computed_with(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in _NOT_COMPUTED_WITH and not str(key).endswith("_token_id")
    }


def _digest(tensors: Mapping[str, Tensor], settings: str) -> str:
    whole = hashlib.sha256(f"{_FORMAT}\n{settings}\n".encode())
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        pieces = {key: pool.map(_sha256, _chunks(value)) for key, value in _distinct(tensors)}
        digests = {key: b"".join(parts) for key, parts in pieces.items()}
    for name, value in tensors.items():
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(digests[_place(value)])
    return whole.hexdigest()


def _distinct(tensors: Mapping[str, Tensor]) -> Iterable[tuple[Any, Tensor]]:
    return {_place(value): value for value in tensors.values()}.items()


def _place(value: Tensor) -> tuple[Any, ...]:
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


def _chunks(value: Tensor) -> list[Any]:
    flat = value.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return [flat[start : start + _CHUNK] for start in range(0, max(len(flat), 1), _CHUNK)]


def _sha256(chunk: Any) -> bytes:
    return hashlib.sha256(chunk).digest()


def _glance(tensors: Mapping[str, Tensor], settings: str) -> str:
    """A sum over the bits of all weights: cheap, and different after any change in practice."""
    whole = hashlib.sha256(f"{_FORMAT}\n{settings}\n".encode())
    sums = {place: _sum(value) for place, value in _distinct(tensors)}
    for name, value in tensors.items():
        whole.update(f"{name} {value.dtype} {tuple(value.shape)} {sums[_place(value)]}\n".encode())
    return whole.hexdigest()


def _sum(value: Tensor) -> int:
    """Sums rows and columns of the bits, each with a weight of its own, so that order counts."""
    flat = value.contiguous().reshape(-1)
    if flat.data_ptr() % 8 or flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    data = flat.view(torch.uint8)
    whole = len(data) // (8 * _ROW) * 8 * _ROW
    table = data[:whole].view(torch.int64).view(-1, _ROW)
    sums = (table.sum(0), table.sum(1), data[whole:].to(torch.int64))
    return sum(int((part * _weights(part)).sum().item()) for part in sums)


def _weights(part: Tensor) -> Tensor:
    return torch.arange(len(part), device=part.device) * 0x9E3779B97F4A7C1 + 1


def _shelf(files: tuple[Path, ...]) -> Path | None:
    """Where the fingerprint of a model from these files is kept."""
    if not files:
        return None
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([_FORMAT, *facts]).encode()).hexdigest()
    return cache_folder() / "fingerprints" / f"{key[:32]}.json"


def _recall(files: tuple[Path, ...]) -> _Known | None:
    try:
        shelf = _shelf(files)
        return None if shelf is None else _Known(**json.loads(shelf.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _store(files: tuple[Path, ...], known: _Known) -> None:
    with contextlib.suppress(OSError):  # only kept to save time
        shelf = _shelf(files)
        if shelf is not None:
            shelf.parent.mkdir(parents=True, exist_ok=True)
            aside = shelf.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps({"glance": known.glance, "value": known.value}), "utf-8")
            aside.replace(shelf)
