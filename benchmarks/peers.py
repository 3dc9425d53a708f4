"""The same packed batches through offkey and through each peer, in processes of their own."""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

import offkey
from offkey.data import Prompts, pack
from offkey.models import Model
from offkey.passes import budget_for
from offkey.tasks import get_task

from ._timing import Spent, Worker, interleaved, ratio, row
from .settings import Settings, peer_command

__all__ = ["against_peers", "check_equal", "compared", "write_inputs"]

SIDES = Path(__file__).parent / "sides"
ATTENTION = {"transformer-lens": "eager", "nnsight": "sdpa"}
"""The kernel of both sides: TransformerLens' bridge knows eager attention only."""

WAYS = {
    "passes": "every resid_post through the same batches",
    "lean": "every resid_post through the same batches, peer tuned",
    "whole": "from prompts to scores",
}
HINTS = {
    ("transformer-lens", "passes"): "names_filter and pos_slice=-1",
    ("transformer-lens", "lean"): "also return_type=None and logits_to_keep=1",
    ("nnsight", "passes"): "layer.output[:, -1] saved",
    ("nnsight", "lean"): "also tracer.stop() after the last layer",
}


def against_peers(settings: Settings) -> list[dict[str, Any]]:
    """Time and memory against each peer given."""
    rows = []
    if settings.peers:
        with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
            folder = Path(spare)
            model, description = write_inputs(folder, settings.prompts)
            for name, path in settings.peers:
                rows += _against(name, path, folder, model, description, settings)

    return rows


def _against(
    name: str, path: Path, folder: Path, model: str, description: str, settings: Settings
) -> list[dict[str, Any]]:
    arguments = ["--model", model, "--data", str(folder), "--attention", ATTENTION[name]]
    script = SIDES / f"{name.replace('-', '_')}_side.py"
    command, environment = peer_command(path, script, arguments)
    own = [sys.executable, str(SIDES / "offkey_side.py"), *arguments]
    pairs, prompts = settings.pairs, settings.prompts
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(own))
        theirs = stack.enter_context(Worker(command, {**environment, "HF_HUB_OFFLINE": "1"}))
        version = theirs.facts["version"]
        gap = check_equal(ours, theirs, folder)
        rows = []
        for way, job in WAYS.items():
            mine = "whole" if way == "whole" else "passes"
            runs = compared(ours, mine, theirs, way, pairs)
            note = f"{description}, {ATTENTION[name]} attention; rows agree to {gap:.1g}; "
            if way == "whole":
                counts = (f"{_count(part, prompts)} {part}" for part in ("trusted", "test"))
                note = " and ".join(counts) + " prompts; "
            if hint := HINTS.get((name, way)):
                note = f"{hint}; {note}"
            rows += _rows(job, runs, name, version, note, targets=way != "whole")

    return rows


def compared(
    ours: Worker, mine: str, theirs: Worker, way: str, pairs: int
) -> list[tuple[Spent, Spent]]:
    """Interleaved runs of a job on either side, after one that warms both up."""
    ours.run(mine)
    theirs.run(way)

    return interleaved(lambda: ours.run(mine), lambda: theirs.run(way), pairs)


def _rows(
    job: str,
    runs: Sequence[tuple[Spent, Spent]],
    peer: str,
    version: str,
    note: str,
    *,
    targets: bool,
) -> list[dict[str, Any]]:
    processor = ratio(runs, "processor_seconds").median
    ours, theirs = ([s.peak_mib for s in side] for side in zip(*runs, strict=True))
    time_note = f"{note}processor time {processor:.3f}"
    peak_note = f"{note}{np.median(ours):.0f} MiB against {np.median(theirs):.0f} MiB"

    return [
        row(
            job,
            ratio(runs),
            unit="time",
            at_most=1.0 if targets else None,
            peer=peer,
            peer_version=version,
            note=time_note,
        ),
        row(
            job,
            ratio(runs, "peak_mib"),
            unit="peak memory above the weights",
            at_most=0.5 if targets else None,
            peer=peer,
            peer_version=version,
            note=peak_note,
        ),
    ]


def check_equal(ours: Worker, theirs: Worker, folder: Path) -> float:
    """Largest difference between both sides' rows, as a share of a layer's largest value."""
    kept = []
    for worker, name in ((ours, "ours"), (theirs, "theirs")):
        worker.run("passes")
        worker.save(folder / f"{name}.npy")
        kept.append(np.load(folder / f"{name}.npy"))
    scale = np.abs(kept[1]).max(axis=(1, 2), keepdims=True)
    gap = float((np.abs(kept[0] - kept[1]) / scale).max())
    if gap > 0.05:
        raise SystemExit(f"error: both sides should read the same values but differ by {gap:.2g}")

    return gap


def write_inputs(folder: Path, prompts: int) -> tuple[str, str]:
    """Writes batches and prompts for every side; returns the model's folder and a description."""
    model: Model = offkey.load("smollm2-135m-instruct")
    data = get_task("comparison").make(0)
    budget = budget_for(model.device)
    batches = pack(data.train.take(range(prompts)), model.tokenizer, token_budget=budget)
    tensors = {}
    for number, batch in enumerate(batches):
        assert batch.mask is not None
        assert batch.positions is not None
        tensors[f"{number}.input_ids"] = batch.inputs["input_ids"]
        tensors[f"{number}.attention_mask"] = batch.mask.long()
        tensors[f"{number}.position_ids"] = batch.positions.contiguous()
    save_file(tensors, folder / "batches.safetensors")
    for name, texts in (("trusted", data.trusted), ("test", data.test)):
        _write_prompts(folder / f"{name}.jsonl", texts, _count(name, prompts))
    tokens = sum(batch.inputs["input_ids"].numel() for batch in batches)

    return model.module.config._name_or_path, f"{prompts} prompts, {tokens} tokens"


def _count(name: str, prompts: int) -> int:
    """Number of prompts of the whole job."""
    return prompts if name == "trusted" else prompts * 2 // 3


def _write_prompts(path: Path, prompts: Prompts, count: int) -> None:
    rows = zip(prompts["prompt"][:count], prompts["source"][:count], strict=True)
    path.write_text(
        "".join(json.dumps({"prompt": text, "source": source}) + "\n" for text, source in rows)
    )
