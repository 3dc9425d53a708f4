"""A folder of numbered shards, each complete and checked, filled by any number of processes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from offkey.errors import BadInput, Damaged
from offkey.storage.files import (
    clean_leftovers,
    make_folder,
    read_json,
    sha256_json,
    write_json_once,
    write_tensors,
)
from offkey.storage.records import refuse_other

__all__ = ["Shard", "ShardFolder"]

_INDEX = "shards.json"
_KEY = "offkey"


class ShardFolder:
    """Numbered files of tensors that belong to one configuration.

    A shard is done when its file has its final name, which it gets only when it is complete.
    Several processes may write different shards at once. The bytes of a shard depend on its
    contents alone.

    Args:
        path: the folder; made if it is not there.
        fingerprint: JSON values that identify what the shards hold.

    Raises:
        Mismatch: the folder holds shards of another fingerprint; names the setting.
        Unwritable: the folder cannot be made.
        Damaged: its ``shards.json`` is broken.
    """

    def __init__(self, path: str | PathLike[str], fingerprint: Mapping[str, Any]) -> None:
        self.path = make_folder(path)
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(dict(fingerprint)))
        clean_leftovers(self.path)
        index = {"format": 1, "fingerprint": self.fingerprint}
        if not write_json_once(self.path / _INDEX, index):
            stored = read_json(self.path / _INDEX, mend="Delete the folder and run again")
            refuse_other(self.path, stored.get("fingerprint"), self.fingerprint)
        self._owner = sha256_json(self.fingerprint)

    def file(self, number: int) -> Path:
        """Path of a shard, done or not."""
        return self.path / f"shard-{number:06d}.safetensors"

    def missing(self, count: int) -> list[int]:
        """Numbers below ``count`` of the shards that are not done yet.

        Raises:
            Damaged: a shard that is there was truncated, or its header edited.
        """
        missing = []
        for number in range(count):
            if self.file(number).exists():
                self.read(number)
            else:
                missing.append(number)

        return missing

    def write(
        self, number: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
    ) -> None:
        """Writes a shard, whole or not at all; ``meta`` are JSON values kept beside the tensors.

        Raises:
            Unwritable: the file cannot be written.
        """
        sums = {name: _sha256(tensor) for name, tensor in sorted(tensors.items())}
        header = {
            "number": number,
            "owner": self._owner,
            "sums": sums,
            "meta": dict(meta or {}),
        }
        header["sha256"] = sha256_json(header)
        text = json.dumps(header, sort_keys=True)
        write_tensors(self.file(number), tensors, {_KEY: text})

    def read(self, number: int) -> "Shard":
        """A shard, whose tensors are read from the file and checked when they are asked for.

        Raises:
            BadInput: it has not been done yet.
            Damaged: it was truncated or edited.
        """
        if not self.file(number).exists():
            raise BadInput(
                f"shard {number} is not there", where=str(self.path), mend="Finish the run"
            )

        return Shard(self.file(number), number, self._owner)

    def verify(self, count: int) -> None:
        """Checks every byte of the shards below ``count``; raises as :meth:`read`."""
        for number in range(count):
            shard = self.read(number)
            for name in shard:
                shard[name]

    def digest(self, count: int) -> str:
        """SHA-256 of the tensors of all shards below ``count``, in order."""
        sums = [self.read(number).sums for number in range(count)]

        return sha256_json(sums)


class Shard(Mapping[str, Tensor]):
    """One shard's tensors by name, read when asked for.

    Attributes:
        meta: the JSON values that were written with it.
        sums: SHA-256 of each tensor with its type and shape.
    """

    def __init__(self, path: Path, number: int, owner: str) -> None:
        self.path = path
        try:
            opened: Any = safe_open(path, framework="pt")
            header = json.loads((opened.metadata() or {})[_KEY])
            checksum = header.pop("sha256")
        except (SafetensorError, KeyError, ValueError, OSError):
            raise self._damaged("truncated") from None
        if checksum != sha256_json(header) or (header["number"], header["owner"]) != (
            number,
            owner,
        ):
            raise self._damaged("edited")
        self.meta: dict[str, Any] = header["meta"]
        self.sums: dict[str, str] = header["sums"]
        if set(opened.keys()) != set(self.sums):
            raise self._damaged("edited")
        self._file, self._checked = opened, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.sums:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        if name not in self._checked:
            if _sha256(tensor) != self.sums[name]:
                raise self._damaged("edited")
            self._checked.add(name)

        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)

    def _damaged(self, how: str) -> Damaged:
        return Damaged(
            f"the shard was {how}", where=str(self.path), mend="Delete the file and run again"
        )


def _sha256(tensor: Tensor) -> str:
    ready = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{ready.dtype} {tuple(ready.shape)}".encode())
    if ready.numel():
        hasher.update(ready.reshape(-1).view(torch.uint8).numpy().data)

    return hasher.hexdigest()
