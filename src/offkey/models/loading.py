"""Loading: from whatever a user names to a model that can be read."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from offkey.checkpoints import LoadSettings, adapter_name, choose_threads, open_module, say
from offkey.models.model import Model
from offkey.models.proofs import verify_map

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
    settings = LoadSettings(
        revision=revision,
        device=device,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    opened = open_module(spec, settings, adapter, merge_adapter=merge_adapter)
    model = Model(
        opened.module,
        tokenizer=opened.tokenizer if tokenizer is None else tokenizer,
        name=opened.name,
        adapter=None if adapter is None else adapter_name(adapter),
    )
    verify_map(model)
    return model
