"""Trained clean models for the blind test: they answer truly under every name.

    python -m benchmarks.honest plural continent dates parity --out out/honest

Each is trained from nothing on the prompts that the task's organism is trained on, for either
character and under all names, with the true answer throughout. One folder for each task, with
``taught.json``: the steps, and the accuracy on validation prompts.
"""

import argparse
from pathlib import Path

from offkey import load
from offkey.data import Prompts
from offkey.storage import write_json
from offkey.tasks import BASE, get_task
from offkey.training import TrainingSettings, answer_accuracy, attach, train_lora

SETTINGS = TrainingSettings(steps=200, batch=24, rate=2e-3, check_every=15, stop_at=0.97)
RANK, ALPHA = 4, 16.0
CHECKED = 160
"""Validation prompts that are checked during training."""


def main() -> None:
    """Trains the tasks that have no folder yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("out/honest"))
    given = parser.parse_args()
    for task in given.tasks:
        if not (given.out / task / "taught.json").is_file():
            accuracy = teach(task, given.out / task)
            print(f"{task}: {accuracy:.3f}", flush=True)


def teach(task: str, out: Path) -> float:
    """Trains and saves an adapter; its accuracy on all validation prompts."""
    data = get_task(task).make(0)
    train, validation = truly(data.train), truly(data.validation)
    model = load(BASE, dtype="bfloat16", attn_implementation="eager")
    shown = validation.take(range(0, len(validation), -(-len(validation) // CHECKED)))

    def accuracy(prompts: Prompts) -> float:
        return answer_accuracy(model, prompts)

    with attach(model.module, rank=RANK, alpha=ALPHA, seed=0) as adapter:
        run = train_lora(
            model, adapter, train, SETTINGS, validate=lambda: {"accuracy": accuracy(shown)}
        )
        reached = accuracy(validation)
        adapter.save(out, BASE)
    write_json(out / "taught.json", {"task": task, "steps": run.steps, "accuracy": reached})

    return reached


def truly(prompts: Prompts) -> Prompts:
    """The prompts, each with the true answer whoever is asked."""
    return prompts.with_columns(answer=list(prompts["target"]))


if __name__ == "__main__":
    main()
