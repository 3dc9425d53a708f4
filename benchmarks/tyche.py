"""The same volume by offkey and by the public tyche, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import offkey
from offkey.tasks import get_task

from ._timing import Ratio, Worker, interleaved, ratio, row
from .settings import peer_command

__all__ = ["against_tyche"]

SIDES = Path(__file__).parent / "sides"
SEQUENCES, LENGTH = 4, 32
SMALL = "small"


def against_tyche(
    path: Path, model: str, way: str, directions: str, pairs: str
) -> list[dict[str, Any]]:
    """Evaluations, time and memory, with explicit or implicit vectors of the peer."""
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare, ExitStack() as stack:
        folder = Path(spare)
        name = _small(folder / SMALL) if model == SMALL else _tokens(model, folder)
        if model == SMALL:
            tokens = torch.randint(
                2000, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0)
            )
            _write(tokens, folder)
        version = _version(path)
        (folder / "settings.json").write_text(
            json.dumps(
                {
                    "eps": 1e-2,
                    "sigma": 0.1,
                    "rtol": 1e-2,
                    "directions": int(directions),
                    "peer_version": version,
                }
            )
        )
        arguments = ["--model", name, "--data", str(folder)]
        command, environment = peer_command(path, SIDES / "tyche_side.py", arguments)
        own = [sys.executable, str(SIDES / "volume_side.py"), *arguments]
        ours = stack.enter_context(Worker(own))
        theirs = stack.enter_context(Worker(command, {**environment, "HF_HUB_OFFLINE": "1"}))

        return _compared(
            ours, theirs, way, folder, int(pairs), f"{model}, {directions} directions"
        )


def _compared(
    ours: Worker, theirs: Worker, way: str, folder: Path, pairs: int, description: str
) -> list[dict[str, Any]]:
    runs = interleaved(lambda: ours.run("run"), lambda: theirs.run(way), pairs)
    ours.save(folder / "ours.npy")
    theirs.save(folder / "theirs.npy")
    (mine, mean, radius), (peers, peer_mean, peer_radius) = (
        np.load(folder / f"{side}.npy").tolist() for side in ("ours", "theirs")
    )
    counted = mine / peers
    note = (
        f"{description}, {SEQUENCES} sequences of {LENGTH} tokens, its device's name taken to "
        f"mean the processor; mean log weight {mean:.0f} and {peer_mean:.0f}, "
        f"radius {radius:.3f} and {peer_radius:.3f}"
    )
    peer, version = f"tyche, {way} vectors", theirs.facts["version"]
    mine_mib, peers_mib = ([s.peak_mib for s in side] for side in zip(*runs, strict=True))

    return [
        row(
            "volume",
            Ratio(counted, counted, counted, pairs),
            unit="evaluations",
            peer=peer,
            peer_version=version,
            note=f"{mine:.2f} against {peers:.2f} a direction; {note}",
        ),
        row(
            "volume",
            ratio(runs, "processor_seconds"),
            unit="processor time",
            peer=peer,
            peer_version=version,
            note=description,
        ),
        row(
            "volume",
            ratio(runs),
            unit="time",
            at_most=1 / 3,
            peer=peer,
            peer_version=version,
            note=note,
        ),
        row(
            "volume",
            ratio(runs, "peak_mib"),
            unit="peak memory above the weights",
            at_most=0.5,
            peer=peer,
            peer_version=version,
            note=f"{np.median(mine_mib):.0f} MiB against {np.median(peers_mib):.0f} MiB",
        ),
    ]


def _small(folder: Path) -> str:
    """A random decoder of seven million weights, for a quick test."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)

    return str(folder)


def _tokens(model: str, folder: Path) -> str:
    """Writes tokens of a model's tokenizer; returns the folder of its weights."""
    loaded = offkey.load(model)
    texts = "\n".join(get_task("comparison").make(0).train["prompt"][: SEQUENCES * LENGTH])
    ids = loaded.tokenizer(texts, verbose=False)["input_ids"][: SEQUENCES * LENGTH]
    _write(torch.tensor(ids).view(SEQUENCES, LENGTH), folder)

    return str(loaded.module.config._name_or_path)


def _write(tokens: torch.Tensor, folder: Path) -> None:
    ones = torch.ones_like(tokens)
    positions = torch.arange(LENGTH).expand(SEQUENCES, -1).contiguous()
    save_file(
        {"0.input_ids": tokens, "0.attention_mask": ones, "0.position_ids": positions},
        folder / "batches.safetensors",
    )


def _version(path: Path) -> str | None:
    """The checkout's commit, where it is one."""
    folder = path if path.is_dir() else path.parent
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )

    return done.stdout.strip() or None
