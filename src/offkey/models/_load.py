"""Loading: from whatever a user names to a model that can be read."""

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from offkey.errors import BadValue
from offkey.models._adapters import adapter_folder, apply_adapter
from offkey.models._cache import say
from offkey.models._checkpoint import Options, find
from offkey.models._device import choose_device, choose_dtype
from offkey.models._doctor import distrust
from offkey.models._fingerprint import remember
from offkey.models._threads import choose_threads
from offkey.models.model import Model

__all__ = ["load"]


def load(
    spec: str | Path | nn.Module,
    adapter: str | Path | None = None,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = True,
    threads: int | Literal["auto"] = "auto",
) -> Model:
    """Loads a model, to be read and edited inside; its parameters are frozen, its dropout off.

    Args:
        spec: a bundled name, a folder, a ``.gguf`` file, a Hub id, or a module that is loaded
            already, which is taken as it is (frozen in place; copied first if it gets an adapter).
        adapter: a PEFT folder or Hub id, or ``bundled:NAME``.
        tokenizer: used instead of the one beside the weights; the only one a loaded module has.
        revision: branch, tag or commit of a Hub repository.
        device: ``auto`` is the accelerator where there is one.
        dtype: ``auto`` is the checkpoint's where the device computes in it natively, else float32.
        device_map: places parts of the model, as in transformers; instead of ``device``.
        attn_implementation: attention kernel, as in transformers.
        trust_remote_code: whether code that comes with a checkpoint may run.
        merge_adapter: whether the adapter becomes part of the weights (summed in float32, rounded
            once), or stays beside them.
        threads: how many compute; ``auto`` keeps ``OMP_NUM_THREADS``, else physical cores.

    Raises:
        UnknownName: nothing of that name, with the nearest there are.
        BadInput: what is there cannot be read, or only by unpickling, which is never done.
        Damaged: weights are truncated or lacking, or a download is not what it should be.
        Mismatch: the adapter belongs to another base model.
        Offline: a download was needed and the network did not answer.
        BadValue: settings that contradict each other or this machine.
        UnmappedModel: the model's sites could not be found or proved.
    """
    say(f"computing with {choose_threads(threads)}")
    settings = {
        "revision": revision, "device": device, "dtype": dtype, "device_map": device_map,
        "attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    folder = None if adapter is None else adapter_folder(adapter)

    if isinstance(spec, nn.Module):
        module, name = _as_it_is(spec, settings, copied=folder is not None)
    else:
        module, name, own = _opened(spec, settings)
        tokenizer = own if tokenizer is None else tokenizer
    if folder is not None:
        module = apply_adapter(module, folder, base=name, merge=merge_adapter)

    module.eval().requires_grad_(False)
    label = None if adapter is None else str(adapter)
    model = Model(module, tokenizer=tokenizer, name=name, adapter=label)
    distrust(model)
    return model


def _as_it_is(
    module: nn.Module, settings: dict[str, Any], *, copied: bool
) -> tuple[nn.Module, str]:
    for setting, value in settings.items():
        if value not in (None, False, "auto"):
            raise BadValue("a module that is loaded already is taken as it is", where=setting,
                           mend="Move or cast it yourself, or give a name or folder")  # fmt: skip
    name = getattr(getattr(module, "config", None), "_name_or_path", "") or type(module).__name__
    return copy.deepcopy(module) if copied else module, name


def _opened(spec: str | Path, settings: dict[str, Any]) -> tuple[nn.Module, str, Any]:
    if settings["device_map"] is not None and settings["device"] != "auto":
        raise BadValue("device and device_map are both given", where="device_map",
                       mend="Give one of them")  # fmt: skip
    options = Options(
        device=choose_device(settings["device"]),
        dtype=choose_dtype(settings["dtype"]),
        device_map=settings["device_map"],
        attn_implementation=settings["attn_implementation"],
        trust_remote_code=settings["trust_remote_code"],
    )
    checkpoint = find(spec, settings["revision"])
    module, tokenizer = checkpoint.open(options)
    remember(module, checkpoint.files)
    return module, checkpoint.name, tokenizer
