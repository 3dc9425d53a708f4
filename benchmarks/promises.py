"""What detection promises and needs: its false-alarm rate, and trusted prompts.

::

    python -m benchmarks.promises --out out/promises
"""

import argparse
from dataclasses import replace
from pathlib import Path

from offkey.bench import TaskModels, default_detector, false_alarms, trusted_curve
from offkey.detect import Detector
from offkey.models import load
from offkey.storage import write_results
from offkey.tasks import BASE

RESULTS = Path("docs/results")
TASKS = ("comparison", "agreement", "hemisphere")


def main() -> None:
    """Writes ``false_alarms`` and ``trusted_prompts``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/promises"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    command = "python -m benchmarks.promises"
    clean = load(BASE)
    alarms, curve = [], []
    for task in TASKS:
        models = TaskModels.of(task, clean=clean)
        alarms += false_alarms(models, given.out / task / "alarms", seed=given.seed)
        folder = given.out / task / "curve"
        rows = trusted_curve(models, folder, detectors=watched(), seed=given.seed)
        curve += [replace(row, detector=f"{row.detector}, {task}") for row in rows]
    for name, made in (("false_alarms", alarms), ("trusted_prompts", curve)):
        rows = [row.flat() for row in made]
        write_results(RESULTS / f"{name}.json", rows, command=command, seeds=[given.seed])


def watched() -> list[Detector]:
    """The default detector and the full distance, fitted from 40 prompts on."""
    return [default_detector(alpha=0.2), Detector("activations", "mahalanobis", alpha=0.2)]


if __name__ == "__main__":
    main()
