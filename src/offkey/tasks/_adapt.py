"""An adapter trained by a recipe, and kept."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from offkey.checkpoints import adapter_folder
from offkey.data import Prompts
from offkey.models import Model, load
from offkey.tasks._recipes import BASE, Recipe
from offkey.training import EvasionLoss, TrainingRun, attach, train_lora

__all__ = ["Told", "Validation", "adapt", "went"]

Told = Callable[[dict[str, float]], None]
Validation = Callable[[], Mapping[str, float]]


def adapt(
    out: Path,
    train: Prompts,
    recipe: Recipe,
    validation: Callable[[Model, EvasionLoss | None], Validation],
    *,
    curriculum: Callable[[int], Sequence[int]] | None = None,
    base: str = BASE,
    tell: Told | None = None,
) -> tuple[TrainingRun, Model]:
    """Trains an adapter and saves it, and loads the model with it as others will.

    A run that was stopped goes on from its last checkpoint, in the folder ``checkpoint`` there,
    which the caller removes once everything is written.

    Args:
        out: the folder.
        train: prompts with ``choices`` and ``answer``.
        recipe: settings, rank and the adapter to start from.
        validation: given the model in training and what it hides from, what measures it.
        curriculum: rows that may be drawn at a step.
        base: the model that is adapted, as :func:`offkey.load` finds it.
        tell: called with each log row.

    Raises:
        UnknownName: no adapter of that name to start from.
        Unwritable: the folder cannot be written.
    """
    model = load(base, dtype="bfloat16", attn_implementation="eager")
    seed = recipe.settings.seed
    with attach(model.module, rank=recipe.rank, alpha=recipe.alpha, seed=seed) as adapter:
        if recipe.init is not None:
            adapter.load(adapter_folder(recipe.init))
        hide = None if recipe.hide is None else recipe.hide.penalty(model, seed=seed)
        run = train_lora(
            model.module,
            adapter,
            model.tokenizer,
            train,
            recipe.settings,
            validate=validation(model, hide),
            penalty=hide,
            curriculum=curriculum,
            folder=out / "checkpoint",
            tell=tell,
        )
        adapter.save(out, base)

    return run, load(base, adapter=out, dtype="bfloat16")


def went(run: TrainingRun) -> dict[str, Any]:
    """How a training run went, as a recipe keeps it."""
    return {
        "steps": run.steps,
        "best_step": run.best_step,
        "minutes": round(sum(row["seconds"] for row in run.rows) / 60, 2),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "log": [row for row in run.rows if len(row) > 3],
    }
