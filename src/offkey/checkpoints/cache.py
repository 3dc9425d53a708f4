"""The cache folder, and how a folder is put into it whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from offkey.errors import Unwritable

__all__ = ["cache_folder", "is_whole", "publish", "say", "sha256"]

MANIFEST = "checksums.json"


def cache_folder() -> Path:
    """Where offkey keeps what it can make again: ``OFFKEY_CACHE``, or the platform's place."""
    own = os.environ.get("OFFKEY_CACHE")
    if own:
        return Path(own).expanduser()

    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "offkey"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "offkey"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "offkey"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether the folder holds exactly what was published, by size and SHA-256."""
    try:
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))["sha256"]
        return bool(listed) and all(sha256(folder / name) == sum_ for name, sum_ in listed.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def publish(final: Path, fill: Callable[[Path], None]) -> None:
    """Fills a new folder aside, adds checksums, and renames it to its final name.

    Two processes may do so at once: the one that comes second keeps the first one's folder.

    Raises:
        Unwritable: the folder cannot be made.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise Unwritable(
            f"cannot write here ({error.strerror})",
            where=str(final.parent),
            mend="Set OFFKEY_CACHE to a folder that can be written",
        ) from error

    try:
        fill(aside)
        sums = {path.name: sha256(path) for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(
            json.dumps({"version": 1, "sha256": sums}, indent=1), "utf-8"
        )
        aside.chmod(0o755)
        _put(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def say(text: str) -> None:
    """Tells a person at a terminal what takes so long; silent elsewhere."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _put(aside: Path, final: Path) -> None:
    if final.exists() and not is_whole(final):
        with contextlib.suppress(FileNotFoundError):  # another process moved it first
            final.rename(aside / "replaced")

    try:
        aside.rename(final)
    except OSError:
        if not is_whole(final):
            raise
    else:
        shutil.rmtree(final / "replaced", ignore_errors=True)
