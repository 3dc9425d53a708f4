"""Dictionaries on disk, as SAELens 6 writes and reads them: ``cfg.json`` and safetensors."""

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from offkey.dictionaries.dictionary import Activation, Dictionary
from offkey.errors import BadInput, BadValue, Damaged, Mismatch, OffkeyError, UnknownName
from offkey.models import Site
from offkey.storage import make_folder, sha256_file, write_json, write_tensors

__all__ = [
    "bundled_dictionaries",
    "dictionary_folder",
    "hook_of",
    "load_dictionary",
    "save_dictionary",
    "site_of",
]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUT = "6.0.0"
KINDS: dict[str, Activation] = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
PLAIN = (None, "none", "expected_average_only_in")
"""Normalisations that, as SAELens does, change nothing once a dictionary is saved."""
HOOKS = {
    "embed": "hook_embed",
    "final": "ln_final.hook_normalized",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_in": "ln2.hook_normalized",
    "mlp_act": "mlp.hook_post",
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
}
HOME = Path(__file__).parent / "trained"
PREFIX = "bundled:"
OWN = ("site", "model_name", "hook_name", "sae_lens_version", "weights_sha256")


def save_dictionary(folder: str | PathLike[str], dictionary: Dictionary) -> None:
    """Writes a dictionary, in the dtype it has, so that SAELens and offkey both load it.

    Args:
        folder: is created if it does not exist.
        dictionary: the dictionary to save.

    Raises:
        Unwritable: the folder cannot be written.
    """
    folder = make_folder(Path(folder))
    tensors = {
        "W_enc": dictionary.encoder,
        "b_enc": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, _config(dictionary, sha256_file(folder / WEIGHTS)))


def load_dictionary(
    folder: str | PathLike[str], *, dtype: torch.dtype = torch.float32
) -> Dictionary:
    """Reads a dictionary in the layout of SAELens, also of its releases before 6.

    Architectures ``standard``, ``topk`` and ``jumprelu`` (as which BatchTopK is saved too) without
    a normalisation of single activations.

    Args:
        folder: holds ``cfg.json`` and ``sae_weights.safetensors``.
        dtype: dtype that it computes in.

    Raises:
        BadInput: there is no such folder or no dictionary in it.
        Damaged: a file is truncated or edited, or tensors are missing.
        Mismatch: an architecture or a normalisation that is not known.
    """
    folder = Path(folder)
    config, tensors = _read(folder)
    facts = {**config, **config.get("metadata", {})}
    kind = _kind(config, folder)
    if config.get("normalize_activations") not in PLAIN:
        raise Mismatch(
            f"normalisation {config['normalize_activations']!r} is not known",
            where=f"dictionary {folder}",
        )
    own = {name: value for name, value in config.get("metadata", {}).items() if name not in OWN}
    try:
        made = Dictionary(
            encoder=tensors["W_enc"],
            encoder_bias=tensors["b_enc"],
            decoder=tensors["W_dec"],
            decoder_bias=tensors["b_dec"],
            activation=kind,
            k=_k(config) if kind == "topk" else None,
            threshold=tensors["threshold"] if kind == "jumprelu" else None,
            centred=config.get("apply_b_dec_to_input", True),
            site=facts.get("site") or site_of(facts.get("hook_name") or ""),
            model=facts.get("model_name") or "",
            about=own,
        )
    except (KeyError, BadValue) as error:
        what = str(error) if isinstance(error, OffkeyError) else f"tensor {error} is missing"
        raise Damaged(what.removesuffix("."), where=str(folder)) from None

    return _unit_norms(made.to(dtype=dtype), config)


def hook_of(site: str) -> str:
    """The name that SAELens and TransformerLens have for a site; its own where they have none."""
    place = Site.parse(site)
    hook = HOOKS.get(place.kind, "")
    if not hook:
        return site

    return hook if place.block is None else f"blocks.{place.block}.{hook}"


def site_of(hook: str) -> str:
    """The site that a hook's name stands for; empty where there is none."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    name = match[2] if match else hook
    for kind, known in HOOKS.items():
        if known == name:
            return f"{kind}.{match[1]}" if match else kind

    return hook if hook.startswith("module:") else ""


def bundled_dictionaries() -> tuple[str, ...]:
    """Names of the dictionaries that come with the package: the sites of the bundled model."""
    return tuple(sorted(path.parent.name for path in HOME.glob("*/cfg.json")))


def dictionary_folder(name: str | PathLike[str]) -> Path:
    """The folder that ``bundled:NAME`` stands for; any other is itself.

    Raises:
        UnknownName: no dictionary of that name comes with the package.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        return Path(name)
    wanted, known = text.removeprefix(PREFIX), bundled_dictionaries()
    if wanted not in known:
        raise UnknownName("bundled dictionary", text, [PREFIX + one for one in known])

    return HOME / wanted


def _config(dictionary: Dictionary, sha256: str) -> dict[str, Any]:
    kinds = {activation: name for name, activation in KINDS.items()}
    config: dict[str, Any] = {
        "architecture": kinds[dictionary.activation],
        "d_in": dictionary.width,
        "d_sae": dictionary.latents,
        "dtype": str(dictionary.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if dictionary.activation == "topk":
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    metadata = {
        **dictionary.about,
        "sae_lens_version": LAYOUT,
        "model_name": dictionary.model,
        "hook_name": hook_of(dictionary.site) if dictionary.site else "",
        "site": dictionary.site,
        "weights_sha256": sha256,
    }

    return {**config, "metadata": metadata}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / WEIGHTS
    if not (folder / CONFIG).is_file() or not path.is_file():
        raise BadInput(
            "no dictionary is there",
            where=str(folder),
            mend=f"Give a folder with {CONFIG} and {WEIGHTS}",
        )
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        checksum = config.get("metadata", {}).get("weights_sha256")
        tensors = load_file(path)
    except (ValueError, AttributeError, SafetensorError) as error:
        raise Damaged(f"a file was truncated or edited ({error})", where=str(folder)) from None
    if checksum is not None and checksum != sha256_file(path):
        raise Damaged("the file was edited: its checksum differs", where=str(path))

    return config, tensors


def _kind(config: Mapping[str, Any], folder: Path) -> Activation:
    name = config.get("architecture", "standard")
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":
        name = "topk"
    if name not in KINDS:
        raise Mismatch(
            f"architecture {name!r} is not known",
            where=f"dictionary {folder}",
            mend="Use one of " + ", ".join(KINDS),
        )

    return KINDS[name]


def _k(config: Mapping[str, Any]) -> int | None:
    k = config.get("k", config.get("activation_fn_kwargs", {}).get("k"))

    return None if k is None else int(k)


def _unit_norms(dictionary: Dictionary, config: Mapping[str, Any]) -> Dictionary:
    """Folds decoder norms into the encoder where latents are ranked by their product with them."""
    if not config.get("rescale_acts_by_decoder_norm"):
        return dictionary
    norms = dictionary.decoder.norm(dim=1).clamp_min(1e-8)

    return Dictionary(
        **{
            **vars(dictionary),
            "encoder": dictionary.encoder * norms,
            "encoder_bias": dictionary.encoder_bias * norms,
            "decoder": dictionary.decoder / norms[:, None],
        }
    )
