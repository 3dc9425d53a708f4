"""Getting a model: found by name, folder, file or Hub id, loaded, and known by its fingerprint.

Weights are read from safetensors and GGUF only; nothing is ever unpickled. What is fetched is
checked against its SHA-256 and kept in the cache folder.
"""

from offkey.checkpoints.adapters import adapter_folder, adapter_name, bundled_adapters
from offkey.checkpoints.bundled import bundled_models
from offkey.checkpoints.cache import cache_folder, say
from offkey.checkpoints.checkpoint import LoadSettings, OpenedModule, open_module
from offkey.checkpoints.fingerprints import fingerprint
from offkey.checkpoints.machine import choose_threads

__all__ = [
    "LoadSettings",
    "OpenedModule",
    "adapter_folder",
    "adapter_name",
    "bundled_adapters",
    "bundled_models",
    "cache_folder",
    "choose_threads",
    "fingerprint",
    "open_module",
    "say",
]
