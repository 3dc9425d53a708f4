"""The harvest by another checkout of offkey, beside this one in the same run.

The same packed batches go through both, each in a process of its own; their rows must be equal bit
for bit::

    python -m benchmarks.checkouts --before PATH/TO/OLD/CHECKOUT --out docs/results/checkouts.json
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offkey.storage import write_results

from ._timing import Worker, ratio, row
from .peers import check_equal, compared, write_inputs

__all__ = ["against_checkout", "main"]

OUT = Path("docs/results/checkouts.json")
JOBS = {
    "passes": "every resid_post through the same batches",
    "whole": "from prompts to scores",
}
AT_MOST = 1.03


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures both checkouts and prints a row a job."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = against_checkout(options.before.resolve(), options.prompts, options.pairs)
    for each in rows:
        print(
            f"{each['job']}: {each['ratio']:.3f} [{each['low']:.3f}, {each['high']:.3f}], "
            f"target {each['target']} ({each['note']})"
        )
    if options.out is not None:
        threads = os.environ.get("OMP_NUM_THREADS")
        words = [f"OMP_NUM_THREADS={threads}"] if threads else []
        words += ["python -m benchmarks.checkouts --before PATH"]
        words += [f"--pairs {options.pairs} --prompts {options.prompts}"]
        write_results(options.out, rows, command=" ".join(words), seeds=[0])

    return 0


def against_checkout(before: Path, prompts: int, pairs: int) -> list[dict[str, Any]]:
    """Time of this checkout as a share of the other's, for each job."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
        folder = Path(spare)
        model, inputs = write_inputs(folder, prompts)
        arguments = ["--model", model, "--data", str(folder), "--attention", "sdpa"]
        with (
            _side(Path(__file__).resolve().parents[1], arguments) as ours,
            _side(before, arguments) as theirs,
        ):
            gap = check_equal(ours, theirs, folder)
            if gap:
                raise SystemExit(f"error: both checkouts should read the same, not {gap:.2g} off")
            for name, job in JOBS.items():
                spent = compared(ours, name, theirs, name, pairs)
                processor = ratio(spent, "processor_seconds").median
                note = f"{inputs}; rows equal bit for bit; processor time {processor:.3f}"
                peer = "the checkout before"
                rows.append(
                    row(job, ratio(spent), unit="time", at_most=AT_MOST, peer=peer, note=note)
                )

    return rows


def _side(checkout: Path, arguments: Sequence[str]) -> Worker:
    """A process that runs the checkout's own code by the checkout's own script."""
    script = checkout / "benchmarks" / "sides" / "offkey_side.py"
    if not script.is_file():
        raise SystemExit(f"error: {checkout}: no checkout of offkey is there")

    return Worker([sys.executable, str(script), *arguments], {"PYTHONPATH": str(checkout / "src")})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkouts", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of each job")
    parser.add_argument("--prompts", type=int, default=300, help="prompts of each pass")
    parser.add_argument("--out", type=Path, help=f"results file, such as {OUT}")

    return parser


if __name__ == "__main__":
    sys.exit(main())
