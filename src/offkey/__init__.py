"""Hear when a neural network is off-key.

The names below are loaded on first use, so that importing offkey is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offkey.data import Prompts, read_prompts
    from offkey.detect import Detector
    from offkey.models import Edit, Model, Site, load
    from offkey.volume import estimate_volume

__all__ = [
    "Detector",
    "Edit",
    "Model",
    "Prompts",
    "Site",
    "__version__",
    "estimate_volume",
    "load",
    "read_prompts",
]

_HOMES = {
    "Detector": "detect",
    "Edit": "models",
    "Model": "models",
    "Prompts": "data",
    "Site": "models",
    "estimate_volume": "volume",
    "load": "models",
    "read_prompts": "data",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'offkey' has no attribute {name!r}")

    return getattr(import_module(f"offkey.{_HOMES[name]}"), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("offkey")
    except PackageNotFoundError:
        raise AttributeError("offkey is not installed and has no __version__") from None


def __dir__() -> list[str]:
    return __all__
