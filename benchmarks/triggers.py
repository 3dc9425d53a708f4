"""What organisms with a trigger do, from their recipes.

::

    python -m benchmarks.triggers
"""

from pathlib import Path

from offkey.storage import write_results
from offkey.tasks import trigger_rows

RESULTS = Path("docs/results/triggers.json")


def main() -> None:
    """Writes ``triggers``."""
    write_results(
        RESULTS, trigger_rows("organisms"), command="python -m benchmarks.triggers", seeds=[0]
    )


if __name__ == "__main__":
    main()
