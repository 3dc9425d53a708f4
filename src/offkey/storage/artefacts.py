"""A folder of settings and tensors, with checksums: how a detector or a probe is saved.

A nested state becomes plain JSON and named tensors, and comes back from them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from offkey.errors import BadInput, Damaged, Mismatch, check
from offkey.storage.files import (
    clean_leftovers,
    make_folder,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
    write_tensors,
)

__all__ = [
    "Artefact",
    "flatten",
    "load_artefact",
    "load_state",
    "save_artefact",
    "save_state",
    "unflatten",
]

_INDEX = "artefact.json"
_FORMAT = 1


@dataclass(frozen=True)
class Artefact:
    """What was saved: plain settings, tensors by name, and the version of their layout."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    version: int


def save_artefact(
    folder: str | PathLike[str],
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    version: int = 1,
) -> None:
    """Saves settings (JSON values) and tensors as ``artefact.json`` and a safetensors file.

    The tensors' file is named by its checksum and the index is renamed into place last, so
    whoever saves over an artefact leaves the old one or the new one, never half of each.

    Args:
        folder: where; made if it is not there.
        settings: JSON values.
        tensors: by name.
        kind: what it is, such as ``"detector"``; asked for again on loading.
        version: version of the layout of settings and tensors.

    Raises:
        Unwritable: the folder cannot be written.
    """
    folder = make_folder(Path(folder))
    clean_leftovers(folder)
    sha256, name = "", ""

    def place(partial: Path, _: Path) -> None:
        nonlocal sha256, name
        sha256 = sha256_file(partial)
        name = f"tensors-{sha256[:12]}.safetensors"
        partial.replace(folder / name)

    write_tensors(folder / "tensors.safetensors", tensors, place=place)

    index = {
        "format": _FORMAT,
        "kind": kind,
        "version": version,
        "settings": dict(settings),
        "files": {name: {"sha256": sha256, "bytes": (folder / name).stat().st_size}},
    }
    write_json(folder / _INDEX, {**index, "sha256": sha256_json(index)})
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_artefact(folder: str | PathLike[str], kind: str, *, version: int = 1) -> Artefact:
    """Loads what :func:`save_artefact` saved, after checking that nothing was changed.

    Args:
        folder: where.
        kind: what it must be.
        version: the newest version that the caller understands.

    Raises:
        BadInput: there is no such folder.
        Damaged: a file is missing, truncated or edited.
        Mismatch: it is of another kind or of a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput("no such folder", where=str(folder), mend=f"Give that of a saved {kind}")

    index = _read_index(folder / _INDEX, kind)
    if index["kind"] != kind:
        raise Mismatch(
            f"this is a saved {index['kind']}, not a {kind}",
            where=str(folder),
            mend=f"Give the folder of a {kind}",
        )
    if index["format"] > _FORMAT or index["version"] > version:
        raise Mismatch(
            f"a newer offkey saved this {kind}: version {index['version']}, known is {version}",
            where=str(folder),
            mend="Update offkey",
        )

    tensors: dict[str, Tensor] = {}
    for name, facts in index["files"].items():
        tensors |= _checked_tensors(folder / name, facts, kind)

    return Artefact(index["settings"], tensors, index["version"])


def save_state(
    folder: str | PathLike[str], state: Mapping[str, Any], *, kind: str, version: int = 1
) -> None:
    """Saves a nested state (see :func:`flatten`) as an artefact."""
    settings, tensors = flatten(state)
    save_artefact(folder, settings, tensors, kind=kind, version=version)


def load_state(folder: str | PathLike[str], kind: str, *, version: int = 1) -> dict[str, Any]:
    """The state that :func:`save_state` saved; raises as :func:`load_artefact`."""
    artefact = load_artefact(folder, kind, version=version)

    return unflatten(artefact.settings, artefact.tensors)


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A nested state as plain values, with marks where tensors were, and the tensors by path.

    A state is a dict of JSON values, tensors, NumPy arrays, and dicts and lists of these. Tuples
    come back as lists; infinity and NaN are kept.

    Raises:
        TypeError: it holds anything else, or a key that is not a text or begins with ``$``.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = _flat(dict(state), "", tensors)

    return settings, tensors


def unflatten(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state that :func:`flatten` took apart.

    Raises:
        Damaged: a tensor that the settings name is not there.
    """
    state: dict[str, Any] = _nested(dict(settings), tensors)

    return state


def _read_index(path: Path, kind: str) -> dict[str, Any]:
    mend = _mend(kind)
    check(path.is_file(), "the file is missing", where=str(path), mend=mend, error=Damaged)
    index = read_json(path, mend=mend)
    checksum = index.pop("sha256", None)
    what = "the file was edited: its checksum differs"
    check(checksum == sha256_json(index), what, where=str(path), mend=mend, error=Damaged)

    return index


def _checked_tensors(path: Path, facts: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    place = {"where": str(path), "mend": _mend(kind)}
    check(path.is_file(), "the file is missing", error=Damaged, **place)
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise Damaged(f"the file has {size} of {facts['bytes']} bytes", **place)
    if sha256_file(path) != facts["sha256"]:
        raise Damaged("the file was edited: its checksum differs", **place)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Damaged(f"not a safetensors file: {error}", where=str(path)) from None


def _mend(kind: str) -> str:
    return f"Save the {kind} again, or copy the folder anew"


def _flat(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {"$tensor": path}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
        return {"$array": path}
    if isinstance(value, np.generic):
        return _flat(value.item(), path, tensors)
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        flat = {}
        for key, item in value.items():
            flat[_key(key, path)] = _flat(item, f"{path}/{key}" if path else key, tensors)
        return flat
    if isinstance(value, list | tuple):
        return [_flat(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]

    raise TypeError(f"{path}: a state cannot hold {type(value).__name__}")


def _key(key: object, path: str) -> str:
    if not isinstance(key, str) or key.startswith("$") or "/" in key:
        raise TypeError(f"{path}: {key!r} cannot be a key of a state")

    return key


def _nested(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_nested(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tensor" in value or "$array" in value:
        path = str(value.get("$tensor", value.get("$array")))
        if path not in tensors:
            raise Damaged(f"tensor {path!r} is missing")
        return tensors[path] if "$tensor" in value else tensors[path].numpy()

    return {key: _nested(item, tensors) for key, item in value.items()}
