"""What a result was made with: versions, machine, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["commit", "machine", "now", "versions"]

_PACKAGES = (
    "offkey",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "peft",
    "pyarrow",
)


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on; those installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue

    return found


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory (GiB) and accelerator; no name of the machine."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()

    return facts


def commit(folder: Path) -> str | None:
    """Commit of the repository that a folder is or will be in, ``+`` where files were changed."""
    folder = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None

    return head + ("+" if changed else "")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )

    return done.stdout.strip()


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()

    return platform.processor() or platform.machine()
