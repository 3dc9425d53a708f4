"""The same detectors on the same task by offkey and by cupbearer: time, memory and AUROC.

::

    OMP_NUM_THREADS=2 python -m benchmarks.cupbearer_peer --peer PATH

``PATH`` is a checkout's ``src``, an environment, or a folder of packages with cupbearer in it.
Each side splits, standardises and shrinks as it does by default.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from offkey.bench import TaskModels
from offkey.data import Prompts
from offkey.storage import write_results

from ._timing import Worker, interleaved, ratio, row
from .settings import peer_command

SIDES = Path(__file__).parent / "sides"
OUT = Path("docs/results/cupbearer.json")
DETECTORS = ("mahalanobis", "que")
TASKS = ("hemisphere",)
PROMPTS = 240


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes ``cupbearer``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="where cupbearer is installed")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = [row for task in TASKS for row in on_task(task, options.peer, options.pairs)]
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    command = f"OMP_NUM_THREADS={threads} python -m benchmarks.cupbearer_peer --peer PATH"
    write_results(OUT, rows, command=f"{command} --pairs {options.pairs}", seeds=[0])


def on_task(task: str, peer: Path, pairs: int) -> list[dict[str, Any]]:
    """Both sides on one organism."""
    models = TaskModels.of(task).limit(PROMPTS)
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare, ExitStack() as stack:
        folder = Path(spare)
        models.organism.module.save_pretrained(folder / "model")
        models.organism.tokenizer.save_pretrained(folder / "model")
        assert models.pool is not None
        pool = models.pool.take(range(min(PROMPTS, len(models.pool))))
        for name, prompts in (("trusted", models.trusted), ("pool", pool), ("test", models.test)):
            plain(prompts).to_jsonl(folder / f"{name}.jsonl")
        given = ["--model", str(folder / "model"), "--data", str(folder)]
        command, environment = peer_command(peer, SIDES / "cupbearer_side.py", given)
        own = [sys.executable, str(SIDES / "detectors_side.py"), *given]
        ours = stack.enter_context(Worker(own))
        theirs = stack.enter_context(Worker(command, {**environment, "HF_HUB_OFFLINE": "1"}))

        return [
            compared(task, name, ours, theirs, models, folder, peer, pairs) for name in DETECTORS
        ]


def plain(prompts: Prompts) -> Prompts:
    """Texts and sources alone: no label leaves this process."""
    return Prompts({name: list(prompts[name]) for name in ("prompt", "id", "source")})


def compared(
    task: str,
    name: str,
    ours: Worker,
    theirs: Worker,
    models: TaskModels,
    folder: Path,
    peer: Path,
    pairs: int,
) -> dict[str, Any]:
    """Time and memory of one detector, and what each side's scores are worth."""
    areas = []
    for worker, side in ((ours, "ours"), (theirs, "theirs")):
        worker.run(name)
        worker.save(folder / f"{side}.npy")
        areas.append(float(roc_auc_score(models.test["label"], np.load(folder / f"{side}.npy"))))
    runs = interleaved(lambda: ours.run(name), lambda: theirs.run(name), pairs)
    peak = ratio(runs, "peak_mib")
    processor = ratio(runs, "processor_seconds").median
    counts = f"{len(models.trusted)} trusted and {len(models.test)} test prompts, all blocks"
    found = row(
        f"{name} on {task}",
        ratio(runs),
        unit="time",
        peer="cupbearer",
        peer_version=version(peer),
        note=f"{counts}; processor time {processor:.3f}",
    )

    return {
        **found,
        "auroc": areas[0],
        "peer_auroc": areas[1],
        "memory_ratio": peak.median,
        "memory_ratio_low": peak.low,
        "memory_ratio_high": peak.high,
    }


def version(peer: Path) -> str | None:
    """The checkout's commit, where there is one."""
    where = (peer / "cupbearer").resolve()
    done = subprocess.run(
        ["git", "-C", str(where), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )

    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
