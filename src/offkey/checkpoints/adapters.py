"""Adapters: found by name, checked against the model they go on, merged into its weights."""

import json
import warnings
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from offkey.checkpoints.hub import from_hub
from offkey.errors import BadInput, Damaged, Mismatch, MissingExtra, UnknownName

__all__ = ["adapter_folder", "adapter_name", "apply_adapter", "bundled_adapters"]

_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SCHEME = "bundled:"
_ORGANISMS = "offkey_organisms"
_PACKAGES = {_ORGANISMS: "", "offkey": "tasks/adapters"}  # and the folder of each with adapters


def bundled_adapters() -> dict[str, Path]:
    """Folders of the adapters that come with offkey and with ``offkey-organisms``, by name.

    The name of one in a folder of several, such as ``population/genie-0``, includes that folder's.
    """
    places = [
        Path(str(files(package).joinpath(folder)))
        for package, folder in _PACKAGES.items()
        if find_spec(package) is not None
    ]
    return {
        settings.parent.relative_to(place).as_posix(): settings.parent
        for place in places
        for settings in sorted(place.rglob(_SETTINGS))
    }


def adapter_folder(adapter: str | Path) -> Path:
    """Folder of an adapter named by ``bundled:NAME``, a folder, or a Hub id.

    Raises:
        UnknownName: no bundled adapter of that name.
        MissingExtra: the package that holds most bundled adapters is not installed.
        BadInput: no such folder, or it holds no adapter that can be read safely.
    """
    name, folder = str(adapter), Path(adapter).expanduser()
    where = f"adapter {name}"
    if name.startswith(_SCHEME):
        folder = _bundled(name.removeprefix(_SCHEME))
    elif not folder.exists() and isinstance(adapter, str) and name.count("/") == 1:
        commit = from_hub(name, _SETTINGS).parent
        from_hub(name, _WEIGHTS, commit.name)
        folder = commit

    if not (folder / _SETTINGS).is_file():
        mend = f"Give a PEFT folder with {_SETTINGS}, or bundled:NAME"
        raise BadInput(f"no {_SETTINGS} there", where=where, mend=mend)
    if not (folder / _WEIGHTS).is_file():
        mend = "Save it with save_pretrained; a pickled adapter_model.bin is not read"
        raise BadInput(f"no {_WEIGHTS} there", where=where, mend=mend)
    return folder


def adapter_name(adapter: str | Path) -> str:
    """What tables call an adapter: ``bundled:NAME`` if it is one of those, else as given."""
    names = {folder: name for name, folder in bundled_adapters().items()}
    name = names.get(Path(adapter).expanduser())

    return str(adapter) if name is None else f"{_SCHEME}{name}"


def _bundled(name: str) -> Path:
    known = bundled_adapters()
    if name in known:
        return known[name]
    if find_spec(_ORGANISMS) is None:
        raise MissingExtra(
            "it is not among the few that come with offkey, and the others are not installed",
            where=f"adapter {_SCHEME}{name}",
            mend="Run pip install offkey-organisms",
        )
    raise UnknownName("bundled adapter", name, known)


def apply_adapter(module: nn.Module, folder: Path, *, base: str, merge: bool = True) -> nn.Module:
    r"""Puts a PEFT adapter on a model, in place.

    Merged, each weight becomes :math:`W + s B A`, summed in float32 and rounded once to the dtype
    of :math:`W`, and the module tree is again that of the plain model.

    Args:
        module: the base model.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: what the base model is called, for messages.
        merge: whether the adapter becomes part of the weights.

    Raises:
        Mismatch: the adapter was made for a model of other shapes.
        BadInput: not an adapter of weights.
        Damaged: its files cannot be read.
    """
    where = f"adapter {folder}"
    made_for = _settings(folder).get("base_model_name_or_path") or "an unnamed model"
    _check_shapes(module, folder, where=where, bases=f"made for {made_for}, not for {base}")
    tuned = _wrap(module, folder, where)
    _check_complete(tuned, folder, where=where, bases=f"made for {made_for}, not for {base}")
    if not merge:
        return _plain(tuned.get_base_model())

    _merge(tuned)
    return _plain(tuned.unload())


def _plain(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a module, got {type(module).__name__}")
    return module


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise Damaged(f"not JSON ({error})", where=str(path)) from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise BadInput("no peft_type in it", where=str(path), mend="Give a folder that PEFT saved")
    return settings


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / _WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Damaged(
            f"cannot be read ({error})", where=str(path), mend="Fetch it again"
        ) from error


def _check_shapes(module: nn.Module, folder: Path, *, where: str, bases: str) -> None:
    parts = dict(module.named_modules())
    for key, shape in _shapes(folder).items():
        path, _, rest = key.removeprefix(_PREFIX).partition(".lora_")
        if not rest or rest.startswith(("magnitude", "embedding")):
            continue
        if path not in parts:
            raise Mismatch(f"{bases}: it has no {path}", where=where, mend=_mend())
        size = _sizes(parts[path])[0 if rest.startswith("A") else 1]
        given = shape[1] if rest.startswith("A") else shape[0]
        if given != size:
            side = "in" if rest.startswith("A") else "out"
            what = f"{bases}: {path} has {size} {side}puts, the adapter {given}"
            raise Mismatch(what, where=where, mend=_mend())


def _mend() -> str:
    return "Load the base model that the adapter was trained on"


def _sizes(part: nn.Module) -> tuple[int, int]:
    weight = part.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{type(part).__name__} has no weight")
    if type(part).__name__ == "Conv1D":  # transformers keeps it as [in, out]
        return weight.shape[0], weight.shape[1]
    return weight.shape[1], weight.shape[0]


def _wrap(module: nn.Module, folder: Path, where: str) -> Any:
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        what = f"{config.peft_type.value} adds prompt tokens, not weights"
        raise BadInput(what, where=where, mend="Use an adapter of weights, such as LoRA")
    try:
        with warnings.catch_warnings():  # what it warns of is an error here
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            return PeftModel.from_pretrained(module, str(folder), is_trainable=False)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Mismatch(f"does not fit this model ({reason})", where=where, mend=_mend()) from error


def _check_complete(tuned: Any, folder: Path, *, where: str, bases: str) -> None:
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    lacking = sorted(set(wanted) - set(_shapes(folder)))
    if lacking:
        what = f"{bases}: the adapter has no {lacking[0].removeprefix(_PREFIX)}"
        raise Mismatch(what, where=where, mend=_mend())


def _merge(tuned: Any) -> None:
    """Merges layer by layer, so that only one at a time is held in float32."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in tuned.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        weights = list(layer.get_base_layer().parameters(recurse=False))
        kept = [weight.dtype for weight in weights]
        if any(not dtype.is_floating_point for dtype in kept):
            layer.merge()  # quantised: PEFT knows how
            continue
        layer.float()
        layer.merge()
        for weight, dtype in zip(weights, kept, strict=True):
            weight.data = weight.data.to(dtype)
