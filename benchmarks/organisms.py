"""The measured behaviour of the bundled organisms, from their recipes.

::

    python -m benchmarks.organisms
"""

from pathlib import Path

from offkey.storage import write_results
from offkey.tasks import organism_rows, trigger_rows

RESULTS = Path("docs/results")
FOLDERS = ("organisms", "src/offkey/tasks/adapters")


def main() -> None:
    """Writes ``organisms`` and ``triggers``."""
    for name, rows in (
        ("organisms", organism_rows(*FOLDERS)),
        ("triggers", trigger_rows(*FOLDERS)),
    ):
        seeds = sorted({row["seed"] for row in rows})
        write_results(
            RESULTS / f"{name}.json", rows, command="python -m benchmarks.organisms", seeds=seeds
        )


if __name__ == "__main__":
    main()
