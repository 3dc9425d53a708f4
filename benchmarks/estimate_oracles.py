"""Every published number of heuristic estimation against what this package computes.

::

    python -m benchmarks.estimate_oracles
"""

import argparse
import sys
from pathlib import Path

from offkey.storage import write_results

from .oracles import all_rows

OUT = Path("docs/results/estimate_oracles.json")


def main() -> int:
    """Writes ``estimate_oracles``; exit status 1 if a number was not met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="results file to write")
    options = parser.parse_args()
    rows = all_rows()
    write_results(options.out, rows, command="python -m benchmarks.estimate_oracles", seeds=[0])
    missed = [row for row in rows if not row["met"]]
    for row in missed:
        print(
            f"missed: {row['section']}, {row['oracle']}: {row['got']:.10g}, "
            f"expected {row['expected']:.10g}"
        )
    print(f"{len(rows) - len(missed)} of {len(rows)} numbers met")

    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
