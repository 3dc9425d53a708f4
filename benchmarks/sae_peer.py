"""How many activations a second are trained on, beside SAELens on the same rows.

::

    OMP_NUM_THREADS=1 python -m benchmarks.sae_peer --peer PATH --data out/sae/acts-train

The rows are a model's activations where a folder of them is given (as ``benchmarks.sae`` leaves
them), else planted ones. Neither side has dead latents in so few steps.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from offkey.storage import write_results

from ._timing import Worker, interleaved, ratio, row
from .settings import peer_command

SIDES = Path(__file__).parent / "sides"
OUT = Path("docs/results/sae_peer.json")
JOBS = {"topk": "topk", "topk-sparse": "topk", "jumprelu": "jumprelu"}
NOTES = {
    "topk": "dense activations, SAELens' default",
    "topk-sparse": "use_sparse_activations, without rescaling, with which it fails on a CPU",
    "jumprelu": "both dense",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes ``sae_peer``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="where SAELens is installed")
    parser.add_argument("--data", type=Path, help="a folder of kept activations")
    parser.add_argument("--latents", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = []
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
        path = Path(spare) / "rows.safetensors"
        count = options.steps * options.batch
        save_file({"train": given_rows(options.data, count)}, path)
        for latents in options.latents:
            rows += beside(options, path, latents)
    words = f"--latents {' '.join(map(str, options.latents))} --pairs {options.pairs}"
    command = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} python -m benchmarks.sae_peer "
    command += "--peer PATH " + ("--data out/sae/acts-train " if options.data else "") + words
    write_results(options.out, rows, command=command, seeds=[0])


def given_rows(folder: Path | None, count: int) -> Float[Tensor, "n d"]:
    """The first kept activations, without overlong ones, in random order; or planted rows."""
    if folder is None:
        return planted(count)
    parts: list[Tensor] = []
    for path in sorted(folder.glob("shard-*.safetensors")):
        parts += [rows.float() for rows in load_file(path).values()]
        if sum(map(len, parts)) > 1.1 * count:
            break
    rows = torch.cat(parts)
    lengths = rows.norm(dim=1)
    rows = rows[lengths < 10 * lengths.median()]
    if len(rows) < count:
        raise SystemExit(f"error: {folder} holds {len(rows)} activations, {count} are needed")

    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]


def planted(count: int, width: int = 576, directions: int = 2048) -> Float[Tensor, "n d"]:
    """Rows of thirty-two of many directions each."""
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(directions, width, generator=generator) / width**0.5
    places = torch.randint(directions, (count, 32), generator=generator)
    sizes = torch.rand(count, 32, generator=generator)

    return torch.nn.functional.embedding_bag(places, known, per_sample_weights=sizes, mode="sum")


def beside(options: argparse.Namespace, path: Path, latents: int) -> list[dict[str, Any]]:
    """Rows of one width: each way of the peer beside ours."""
    sizes = [
        "--latents",
        str(latents),
        "--active",
        str(options.active),
        "--batch",
        str(options.batch),
    ]
    arguments = ["--data", str(path), *sizes]
    command, environment = peer_command(options.peer, SIDES / "sae_lens_side.py", arguments)
    own = [sys.executable, str(SIDES / "sae_offkey_side.py"), *arguments]
    rows = []
    with Worker(own) as ours, Worker(command, {**environment, "WANDB_MODE": "disabled"}) as theirs:
        for job, mine in JOBS.items():
            ours.run(mine), theirs.run(job)
            pairs = interleaved(
                lambda j=job: theirs.run(j), lambda m=mine: ours.run(m), options.pairs
            )
            rows, note = options.steps * options.batch, NOTES[job]
            speed = rows / float(np.median([own.processor_seconds for _, own in pairs]))
            note += (
                f"; {rows} activations of width 576, {latents} latents, batch {options.batch}; "
            )
            note += f"ours {speed:.0f} a processor second"
            for what in ("seconds", "processor_seconds"):
                rows.append(
                    row(
                        f"SAE training, {job}, {latents} latents",
                        ratio(pairs, what),
                        peer="sae-lens",
                        unit=f"speed, {what.replace('_', ' ')}",
                        note=note,
                        at_least=1.0,
                        peer_version=theirs.facts["version"],
                    )
                )
            print(rows[-1], flush=True)

    return rows


if __name__ == "__main__":
    main()
