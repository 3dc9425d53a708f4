"""Quadratic logit decomposition over 2³² pairs on a vocabulary of 49,152: seconds and memory.

::

    python -m benchmarks.qld_scale

Each size runs in a process of its own. The unembedding is the bundled model's; the activations
are Gaussian draws of the same width, since the cost excludes drawing samples,
and the target is a token that no sample has on top. Part of the rows is checked in float64.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path("docs/results/qld_scale.json")
LIMIT_MIB, LIMIT_SECONDS = 2048, 600
CHECKED = 32


def main() -> None:
    """Writes ``qld_scale``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[2**16])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one)))
        return
    from offkey.storage import machine, write_results

    threads = os.environ.setdefault("OMP_NUM_THREADS", str(machine()["cores"]))
    rows = []
    for samples in given.samples:
        command = [sys.executable, "-m", "benchmarks.qld_scale", "--one", str(samples)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        rows.append({**json.loads(done.stdout), "threads": int(threads)})
        print(rows[-1], flush=True)
    write_results(
        RESULTS,
        rows,
        command=f"OMP_NUM_THREADS={threads} python -m benchmarks.qld_scale",
        seeds=[0],
    )


def measured(samples: int) -> dict[str, Any]:
    """One run: seconds of the estimate, and the peak memory of the process."""
    import torch

    from offkey.estimate.risk import Draws, Whitening, qld
    from offkey.estimate.risk.decomposition import Unembedding, intervals, shortest_accepting
    from offkey.models import load

    from ._timing import memory_mib

    weight = load("smollm2-135m-instruct").wiring.unembedding.weight.float()
    finals = activations(samples, weight.shape[1])
    draws = Draws(finals, weight, torch.zeros(len(weight)))
    target = unseen(draws)
    start, processor = time.perf_counter(), time.process_time()
    estimate = qld(draws, target)
    seconds = time.perf_counter() - start
    processor = time.process_time() - processor
    peak = memory_mib("VmHWM")
    unembedding = Unembedding(weight, draws.bias, target)
    whitening = Whitening.of(draws.normal, 1e-5)
    axis = shortest_accepting(unembedding, whitening)
    assert axis is not None
    shift = whitening.factor @ axis.direction
    single, double = (
        intervals(part, unembedding, shift)
        for part in (finals[:CHECKED], finals[:CHECKED].double())
    )
    gap = max(
        float((a - b).nan_to_num(0, 0, 0).abs().amax())
        for a, b in zip(single, double, strict=True)
    )

    return {
        "samples": samples,
        "pairs": samples**2,
        "vocabulary": len(weight),
        "width": weight.shape[1],
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "peak_memory_mib": round(peak),
        "met": peak < LIMIT_MIB and seconds < LIMIT_SECONDS,
        "estimate": estimate.value,
        "effective_samples": estimate.effective_samples,
        "status": estimate.status,
        "shortest_accepting_length": axis.norm,
        "largest_gap_to_float64": gap,
        "checked_rows": CHECKED,
    }


def activations(samples: int, width: int) -> Any:
    """A common mean, 32 directions of large variance, and noise; every dimension has some."""
    import torch

    generator = torch.Generator().manual_seed(0)
    centre = 2 * torch.randn(width, generator=generator)
    mix = torch.randn(32, width, generator=generator) / math.sqrt(32)
    x = torch.empty(samples, width)
    for part in torch.split(x, 4096):
        part.copy_(torch.randn(len(part), 32, generator=generator) @ mix)
        part += centre + 0.3 * torch.randn(len(part), width, generator=generator)

    return x


def unseen(draws: Any) -> int:
    """Of the tokens that are on top in no sample, the hundredth by its logit at the mean."""
    import torch

    is_shown = torch.zeros(len(draws.weight), dtype=torch.bool)
    is_shown[draws.top_tokens] = True
    logits = draws.weight @ draws.normal.mean.float()

    return int(logits.masked_fill(is_shown, -math.inf).topk(100).indices[-1])


if __name__ == "__main__":
    main()
