"""Files that are whole or not there: written aside in the same folder, then renamed.

JSON is read here too, and bytes and JSON values get their checksums.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn, cast

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from offkey.errors import BadInput, Damaged, Unwritable, check

__all__ = [
    "aside",
    "clean_leftovers",
    "is_leftover",
    "make_folder",
    "read_json",
    "sha256_file",
    "sha256_json",
    "write_bytes",
    "write_json",
    "write_json_once",
    "write_tensors",
    "write_text",
]

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_LEFTOVER = re.compile(r"^\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.partial$")
_AGAIN = "Run the command that wrote it again"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)
_REASONS = {
    errno.EACCES: ("permission denied", "Choose another folder or change its permissions"),
    errno.EPERM: ("permission denied", "Choose another folder or change its permissions"),
    errno.EROFS: ("the file system is read-only", "Choose a folder on another one"),
    errno.ENOSPC: ("the disk is full", "Free some space or choose another disk"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space or choose another disk"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Choose another folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "Choose another folder"),
    errno.EISDIR: ("a folder stands there", "Choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
}


@contextmanager
def aside(
    path: str | PathLike[str], place: Callable[[Path, Path], None] = os.replace
) -> Iterator[Path]:
    """Opens a temporary file beside ``path``, which takes its name when the block succeeds.

    Args:
        path: the final name.
        place: moves the complete file to its final name.

    Raises:
        Unwritable: the folder or the file cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    # A folder, because some writers put files of their own beside the one they are given.
    folder = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    partial = folder / path.name
    try:
        folder.mkdir()
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:
            partial.chmod(mode)
        _sync(partial)
        place(partial, path)
        _sync(path.parent)
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: str | PathLike[str], data: bytes) -> None:
    """Writes bytes, whole or not at all."""
    with aside(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | PathLike[str], value: Any) -> None:
    """Writes indented JSON, whole or not at all.

    Raises:
        BadInput: the value holds NaN or infinity, or something that JSON has no form for.
    """
    write_text(path, _json(path, value))


def write_json_once(path: str | PathLike[str], value: Any) -> bool:
    """Writes indented JSON unless the file exists; of several processes exactly one succeeds.

    Returns:
        Whether this call wrote it.
    """
    if Path(path).exists():
        return False
    data = _json(path, value).encode()
    written = True

    def place(partial: Path, final: Path) -> None:
        nonlocal written
        try:
            os.link(partial, final)
        except FileExistsError:
            written = False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(partial, final)

    with aside(path, place) as partial:
        partial.write_bytes(data)

    return written


def read_json(path: str | PathLike[str], *, mend: str = _AGAIN) -> dict[str, Any]:
    """Reads a JSON object that holds no NaN or infinity.

    Args:
        path: the file.
        mend: what to do where it is missing or broken.

    Raises:
        BadInput: there is no such file.
        Damaged: it holds no JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        what = "" if isinstance(value, dict) else "the file was truncated or edited"
    except FileNotFoundError:
        what = f"no {path.name} in this folder"
        raise BadInput(what, where=str(path.parent), mend=mend) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        what = "the file was truncated or edited"
    except (OSError, ValueError) as error:
        what = f"the file cannot be read: {error}"
    check(not what, what, where=str(path), mend=mend, error=Damaged)

    return cast(dict[str, Any], value)


def sha256_file(path: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_tensors(
    path: str | PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    place: Callable[[Path, Path], None] = os.replace,
) -> None:
    """Writes a safetensors file, whole or not at all; ``place`` as in :func:`aside`."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    storages: set[int] = set()
    for name, tensor in ready.items():  # the format refuses tensors that share memory
        if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
            ready[name] = tensor.clone()
        storages.add(ready[name].untyped_storage().data_ptr())
    with aside(path, place) as partial:
        save_file(ready, partial, metadata=dict(metadata) if metadata else None)


def make_folder(path: str | PathLike[str]) -> Path:
    """Makes a folder and its parents, and returns its path.

    Raises:
        Unwritable: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(Path(path), error) from error

    return Path(path)


def clean_leftovers(folder: str | PathLike[str]) -> int:
    """Removes what killed processes of this machine left half-written; returns how many."""
    count = 0
    for path in Path(folder).glob(".*.partial"):
        match = _LEFTOVER.match(path.name)
        if match and match[1] == _HOST and not _is_alive(int(match[2])):
            shutil.rmtree(path, ignore_errors=True)
            count += 1

    return count


def is_leftover(path: Path) -> bool:
    """Whether a path is the temporary folder of a file that was never completed."""
    return _LEFTOVER.match(path.name) is not None


def _json(path: str | PathLike[str], value: Any) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"not a JSON value: {error}", where=str(path), mend="Write a missing number as null"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True

    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: Exception) -> Unwritable:
    code = error.errno if isinstance(error, OSError) else None
    if code is None:  # writers in other languages give the number in their message
        match = re.search(r"(?:errno |os error |code: )(\d+)", str(error))
        code = int(match[1]) if match else 0
    message = getattr(error, "strerror", None) or str(error).splitlines()[0]
    reason, mend = _REASONS.get(code, (message, "Choose another folder"))

    return Unwritable(f"cannot be written: {reason}", where=str(path), mend=mend)
