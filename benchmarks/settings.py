"""Size of the benchmarks, and where peers are installed."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings", "peer_command"]


@dataclass(frozen=True)
class Settings:
    """Size of the benchmarks.

    Attributes:
        pairs: interleaved pairs of each comparison.
        prompts: prompts of each pass.
        full: whether to run the large sizes too, which take long.
        peers: where each peer is installed, by name.
    """

    pairs: int = 5
    prompts: int = 256
    full: bool = False
    peers: tuple[tuple[str, Path], ...] = ()


def peer_command(path: Path, script: Path, arguments: Sequence[str]) -> tuple[list[str], dict]:
    """Command and environment that run a script where a peer is installed.

    Args:
        path: an interpreter, a virtual environment, or a folder of packages or a checkout, which
            is put before this interpreter's own.
        script: the script.
        arguments: of the script.
    """
    python = path / "bin" / "python" if (path / "bin" / "python").exists() else path
    if python.is_file():
        return [str(python), str(script), *arguments], {"PYTHONPATH": ""}
    if path.is_dir():
        before = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
        return [sys.executable, str(script), *arguments], {"PYTHONPATH": before}
    raise SystemExit(f"error: peer {path}: there is neither an interpreter nor a folder")
