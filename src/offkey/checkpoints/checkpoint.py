"""Finding and opening a checkpoint: a folder, a file, or a repository of the Hub."""

import copy
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from offkey.checkpoints.adapters import adapter_folder, apply_adapter
from offkey.checkpoints.bundled import bundled_folder, bundled_models
from offkey.checkpoints.fingerprints import remember
from offkey.checkpoints.gguf import quiet, read_gguf
from offkey.checkpoints.hub import (
    TOKENIZER_FILES,
    commit_of,
    has_tokenizer,
    is_reachable,
    local_names,
)
from offkey.checkpoints.machine import choose_device, choose_dtype, is_native
from offkey.errors import BadInput, BadValue, Damaged, UnknownName, nearest

__all__ = ["Checkpoint", "LoadSettings", "OpenedModule", "Options", "find", "open_module"]

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class LoadSettings:
    """What a user may ask of a load, as in :func:`offkey.load`."""

    revision: str | None = None
    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    device_map: Any = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    def options(self) -> "Options":
        """The settings with device and dtype chosen for this machine.

        Raises:
            BadValue: settings that contradict each other or this machine.
        """
        if self.device_map is not None and self.device != "auto":
            mend = "Give one of them"
            raise BadValue("device and device_map are both given", where="device_map", mend=mend)
        return Options(
            device=choose_device(self.device),
            dtype=choose_dtype(self.dtype),
            device_map=self.device_map,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
        )


class OpenedModule(NamedTuple):
    """A module in memory, its tokenizer (``None`` where it has none), and what it is called."""

    module: nn.Module
    tokenizer: Any
    name: str


@dataclass(frozen=True)
class Options:
    """How the weights of a checkpoint are loaded; ``dtype`` ``None`` means as they are stored."""

    device: torch.device
    dtype: torch.dtype | None = None
    device_map: Any = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    def words(self) -> dict[str, Any]:
        """The keywords of ``from_pretrained`` that place the weights."""
        words: dict[str, Any] = {}
        if self.device_map is not None:
            words["device_map"] = self.device_map
        elif self.device.type != "cpu":
            words["device_map"] = {"": self.device}
        if self.attn_implementation is not None:
            words["attn_implementation"] = self.attn_implementation
        return words


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is stored.

    Attributes:
        name: what the user called it.
        place: its folder or GGUF file, or its id on the Hub.
        revision: commit of the Hub repository.
        has_tokenizer: whether tokenizer files lie beside the weights.
    """

    name: str
    place: Path | str
    revision: str | None = None
    has_tokenizer: bool = True
    files: tuple[Path, ...] = field(default=(), repr=False)

    def open(self, options: Options) -> OpenedModule:
        """The model on the device, and its tokenizer."""
        with _readable(self.name), quiet():
            if isinstance(self.place, Path) and self.place.is_file():
                return self._open_gguf(self.place, options)
            return OpenedModule(
                self._open_safetensors(options), self._tokenizer(options), self.name
            )

    def _open_gguf(self, path: Path, options: Options) -> OpenedModule:
        stored = torch.bfloat16 if is_native(torch.bfloat16, options.device) else torch.float32
        dtype = options.dtype or stored
        unpacked = read_gguf(path)
        module = unpacked.model(dtype, **options.words())
        return OpenedModule(module, unpacked.tokenizer, self.name)

    def _open_safetensors(self, options: Options) -> Any:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.place, **self._words(options))
        stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
        dtype = options.dtype or stored
        if options.dtype is None and stored is not None and not is_native(stored, options.device):
            dtype = torch.float32

        model = self._weights(config, dtype or "auto", options)
        if options.dtype is None and not is_native(model.dtype, options.device):
            model = self._weights(config, torch.float32, options)
        return model

    def _weights(self, config: Any, dtype: torch.dtype | str, options: Options) -> Any:
        model, report = _architecture(config).from_pretrained(
            self.place,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **self._words(options),
            **options.words(),
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise Damaged(
                f"the checkpoint lacks {len(missing)} of the model's weights, first {missing[0]}",
                where=f"model {self.name}",
                mend="Fetch or save it again, whole",
            )
        return model

    def _tokenizer(self, options: Options) -> Any:
        from transformers import AutoTokenizer

        if not self.has_tokenizer:
            return None
        return AutoTokenizer.from_pretrained(self.place, **self._words(options))

    def _words(self, options: Options) -> dict[str, Any]:
        words: dict[str, Any] = {
            "revision": self.revision,
            "trust_remote_code": options.trust_remote_code,
        }
        if isinstance(self.place, str) and not is_reachable():
            words["local_files_only"] = True
        return words


def open_module(
    spec: str | Path | nn.Module,
    settings: LoadSettings,
    adapter: str | Path | None = None,
    *,
    merge_adapter: bool = True,
) -> OpenedModule:
    """Gets a module by whatever a user names, with its adapter, frozen and its dropout off.

    Raises:
        UnknownName, BadInput, Damaged, Mismatch, Offline, BadValue: as :func:`offkey.load`.
    """
    folder = None if adapter is None else adapter_folder(adapter)
    if isinstance(spec, nn.Module):
        opened = _as_it_is(spec, settings, copied=folder is not None)
    else:
        options, checkpoint = settings.options(), find(spec, settings.revision)
        opened = checkpoint.open(options)
        remember(opened.module, checkpoint.files)

    module = opened.module
    if folder is not None:
        module = apply_adapter(module, folder, base=opened.name, merge=merge_adapter)
    return opened._replace(module=module.eval().requires_grad_(False))


def _as_it_is(module: nn.Module, settings: LoadSettings, *, copied: bool) -> OpenedModule:
    for setting, value in vars(settings).items():
        if value not in (None, False, "auto"):
            raise BadValue(
                "a module that is loaded already is taken as it is",
                where=setting,
                mend="Move or cast it yourself, or give a name or folder",
            )
    name = getattr(getattr(module, "config", None), "_name_or_path", "") or type(module).__name__
    return OpenedModule(copy.deepcopy(module) if copied else module, None, name)


def find(spec: str | Path, revision: str | None = None) -> Checkpoint:
    """Finds what a user named: a bundled name, a folder, a ``.gguf`` file, or a Hub id.

    Raises:
        BadInput: the folder or file holds no checkpoint that can be read safely.
        UnknownName: nothing of that name, with the nearest names there are.
        Offline: the name may be on the Hub, which cannot be reached.
    """
    name, path = str(spec), Path(spec).expanduser()
    if name in bundled_models():
        folder = bundled_folder(name)
        return Checkpoint(name, folder, files=_weight_files(folder))
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        return _file(name, path)
    if isinstance(spec, Path) or not _HUB_ID.fullmatch(name) or path.suffix == ".gguf":
        raise BadInput("no such file or folder", where=f"model {name}", mend=_mend(name))
    if "/" not in name and nearest(name, local_names()):
        raise UnknownName("model", name, local_names())
    commit = commit_of(name, revision)
    return Checkpoint(name, name, commit, has_tokenizer=has_tokenizer(name, commit))


def _folder(name: str, folder: Path) -> Checkpoint:
    held = {path.name for path in folder.iterdir()}
    where = f"model {name}"
    if "config.json" not in held:
        if "adapter_config.json" in held:
            mend = "Name its base model, and give this folder as adapter"
            raise BadInput("this folder holds an adapter, not a model", where=where, mend=mend)
        ggufs = sorted(file for file in held if file.endswith(".gguf"))
        mend = f"Name the file: {folder / ggufs[0]}" if ggufs else _mend(name)
        raise BadInput("no config.json in this folder", where=where, mend=mend)
    if not any(file.endswith((".safetensors", ".safetensors.index.json")) for file in held):
        pickled = sorted(file for file in held if Path(file).suffix in _PICKLED)
        if pickled:
            raise _pickled(where, pickled[0])
        mend = "Save the model there with save_pretrained"
        raise BadInput("no .safetensors weights in this folder", where=where, mend=mend)
    reads = bool(held & set(TOKENIZER_FILES))
    return Checkpoint(name, folder, has_tokenizer=reads, files=_weight_files(folder))


def _file(name: str, path: Path) -> Checkpoint:
    if path.suffix.lower() == ".gguf":
        return Checkpoint(name, path, files=(path,))
    if path.suffix in (*_PICKLED, ".pkl"):
        raise _pickled(f"model {name}", path.name)
    raise BadInput("not a model", where=f"model {name}", mend="Give its folder, or a .gguf file")


def _pickled(where: str, file: str) -> BadInput:
    return BadInput(
        f"{file} is pickled, and loading it could run code",
        where=where,
        mend="Save it as safetensors with save_pretrained, where you trust its origin",
    )


def _architecture(config: Any) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    ):
        return transformers.AutoModelForCausalLM
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return transformers.AutoModel


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns errors of libraries about an unreadable checkpoint into one line with a mend."""
    from safetensors import SafetensorError

    where = f"model {name}"
    try:
        yield
    except SafetensorError as error:
        what = f"its weights cannot be read ({_line(error)})"
        raise Damaged(what, where=where, mend="Fetch or save it again, whole") from error
    except (ValueError, OSError, RuntimeError, IndexError, struct.error) as error:
        if "trust_remote_code" in str(error):
            raise BadInput(
                "it comes with code of its own, which is not run unless asked for",
                where=where,
                mend="Read that code, then set trust_remote_code",
            ) from error
        raise BadInput(f"cannot be loaded ({_line(error)})", where=where) from error


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that a model in a folder is read from: all inside it, and none pickled.

    Raises:
        BadInput: its index names a file elsewhere, or one that is not safetensors.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        for name in sorted(_indexed(index)):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise BadInput(
                    f"it names {name!r}, which is not a .safetensors file in this folder",
                    where=str(index),
                    mend="Save the model again with save_pretrained",
                )
    return (folder / "config.json", *sorted(folder.glob("*.safetensors")))


def _indexed(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        mend = "Fetch or save it again, whole"
        raise Damaged(
            f"not an index of weights ({error!r})", where=str(index), mend=mend
        ) from error


def _mend(name: str) -> str:
    beside = Path(name).expanduser().parent
    folders = [str(path.parent) for path in beside.glob("*/config.json")]
    close = nearest(name, [*bundled_models(), *folders])
    if close:
        return "Did you mean " + " or ".join(close) + "?"
    bundled = ", ".join(bundled_models())
    return f"Give a folder with config.json and .safetensors, or a bundled name ({bundled})"
