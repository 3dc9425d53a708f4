"""Runs the benchmarks and merges their rows into ``docs/results/harvest.json``."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from offkey.storage import machine, write_results

from .attribution import attribution
from .detectors import six_in_one_pass, ten_in_one_pass
from .mahalanobis import beside_scikit_learn
from .memory import ten_times_the_prompts
from .peers import against_peers
from .reading import half, harvest
from .scoring import one_prompt, published_rows
from .settings import Settings

JOBS: dict[str, Callable[[Settings], list[dict[str, Any]]]] = {
    "harvest": harvest,
    "half": half,
    "peers": against_peers,
    "six": six_in_one_pass,
    "ten": ten_in_one_pass,
    "memory": ten_times_the_prompts,
    "mahalanobis": beside_scikit_learn,
    "attribution": attribution,
    "published": published_rows,
    "one": one_prompt,
}
OUT = Path("docs/results/harvest.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen jobs; rows of other jobs stay unchanged in the results file."""
    options = _parser().parse_args(arguments)
    peers = (("transformer-lens", options.peer_tl), ("nnsight", options.peer_nnsight))
    settings = Settings(
        pairs=options.pairs,
        prompts=options.prompts,
        full=options.full,
        peers=tuple((name, path) for name, path in peers if path is not None),
    )
    facts = machine()
    # Both sides of every comparison, in this process and in others, take as many threads.
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(facts["cores"]))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(int(threads))
    print(f"{facts['cpu']}, {threads} of {facts['cores']} cores, {facts['memory_gib']} GiB")
    for name in options.only or list(JOBS):
        if name == "peers" and not settings.peers:
            print("peers: give --peer-tl or --peer-nnsight")
            continue
        rows = JOBS[name](settings)
        for row in rows:
            print(
                f"{row['job']} / {row['peer']}, {row['unit']}: {row['ratio']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}], target {row['target'] or 'none'} "
                f"({row['note']})",
                flush=True,
            )
        _merge(options.out, rows, _command(options))

    return 0


def _merge(path: Path, rows: Sequence[dict[str, Any]], command: str) -> None:
    """Replaces the rows of the same job, unit and peer."""
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {(row["job"], row["unit"], row["peer"]): row for row in [*known, *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(path, list(merged.values()), command=command, seeds=[0])


def _command(options: argparse.Namespace) -> str:
    threads = os.environ["OMP_NUM_THREADS"]
    words = [f"OMP_NUM_THREADS={threads} python -m benchmarks"]
    words += [f"--pairs {options.pairs} --prompts {options.prompts}"]
    words += ["--peer-tl PATH"] if options.peer_tl else []
    words += ["--peer-nnsight PATH"] if options.peer_nnsight else []
    words += ["--full"] if options.full else []

    return " ".join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(JOBS),
        metavar="JOB",
        help=f"of {', '.join(JOBS)}; all if left out",
    )
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of each job")
    parser.add_argument("--prompts", type=int, default=256, help="prompts of each pass")
    parser.add_argument(
        "--full", action="store_true", help="Mahalanobis also at d = 4096, n = 20,000"
    )
    where = "interpreter, environment, or folder of packages where it is installed"
    parser.add_argument("--peer-tl", type=Path, metavar="PATH", help=f"TransformerLens: {where}")
    parser.add_argument("--peer-nnsight", type=Path, metavar="PATH", help=f"nnsight: {where}")
    parser.add_argument("--out", type=Path, default=OUT, help="results file to merge rows into")

    return parser


if __name__ == "__main__":
    sys.exit(main())
