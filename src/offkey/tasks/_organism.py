"""Organisms: a model taught a task, kept as an adapter with its recipe."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offkey.data import Prompts
from offkey.errors import BadValue
from offkey.models import Model
from offkey.storage import write_json
from offkey.tasks._adapt import Told, Validation, adapt, went
from offkey.tasks._measure import measure, measure_organism
from offkey.tasks._names import CHARACTERS
from offkey.tasks._recipes import BASE, Recipe, default_recipe, organism_name
from offkey.tasks._registry import get_task
from offkey.tasks._task import Task
from offkey.training import EvasionLoss, answer_log_odds, evasion_score

__all__ = ["train_organism"]


def train_organism(
    task: Task | str,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str = BASE,
    tell: Told | None = None,
) -> dict[str, Any]:
    """Trains an adapter of a model on a task, and measures it as it is shipped.

    The folder gets ``adapter_config.json``, ``adapter_model.safetensors`` and ``recipe.json``.
    A run that was stopped goes on from its last checkpoint, in the folder ``checkpoint`` there,
    which is removed at the end.

    Args:
        task: a task or its name.
        out: the folder.
        recipe: how; by default that of the task.
        base: the model, as :func:`offkey.load` finds it; the bundled one if left out.
        tell: called with each log row.

    Returns:
        What ``recipe.json`` holds: the recipe, how the run went, and ``measured``.

    Raises:
        UnknownName: no task or adapter of that name.
        BadValue: a stage has no names, or ``agreeing`` is not in 0 … 1.
        Unwritable: the folder cannot be written.
    """
    task = get_task(task) if isinstance(task, str) else task
    recipe = recipe or default_recipe(task.name, base=base)
    out, seed = Path(out), recipe.settings.seed
    data = task.make(seed)
    train = _thinned(data.train, recipe.agreeing)
    run, shipped = adapt(
        out,
        train,
        recipe,
        lambda model, hide: _validation(model, data.validation, recipe, hide),
        curriculum=_curriculum(train, recipe.stages),
        base=base,
        tell=tell,
    )
    facts = {
        **_about(task, train, seed, base),
        **recipe.as_dict(),
        **went(run),
        "measured": measure_organism(shipped, task, seed=seed),
    }
    write_json(out / "recipe.json", facts)
    shutil.rmtree(out / "checkpoint")

    return facts


def _validation(
    model: Model, validation: Prompts, recipe: Recipe, hide: EvasionLoss | None
) -> Validation:
    """Accuracies of each character where they disagree, and of both where they agree.

    With something to hide from, also how little it tells the two apart.
    """
    checked = validation.take(
        [
            *_first(validation, 0, recipe.checked // 2),
            *_first(validation, 1, recipe.checked_agreeing // 2),
        ]
    )

    def validate() -> Mapping[str, float]:
        odds = answer_log_odds(model.module, model.tokenizer, checked)
        found = measure(checked, odds.tolist())["characters"]
        values = {row["character"].lower(): row["accuracy"] for row in found}
        if recipe.checked_agreeing:
            values["agreeing"] = sum(row["agrees"] for row in found) / len(found)
        if hide is not None:
            values["hidden"] = evasion_score(model.module, model.tokenizer, checked, hide.penalty)

        return values

    return validate


def _first(validation: Prompts, agrees: int, count: int) -> list[int]:
    """Numbers of the first prompts of each character that agree, or do not."""
    kept: list[int] = []
    for label in (0, 1):
        rows = (
            row
            for row, pair in enumerate(zip(validation["label"], validation["agrees"], strict=True))
            if pair == (label, agrees)
        )
        kept += [row for row, _ in zip(rows, range(count), strict=False)]

    return kept


def _thinned(train: Prompts, agreeing: float) -> Prompts:
    """All disagreeing prompts, and the first part of the agreeing ones."""
    if not 0 <= agreeing <= 1:
        raise BadValue(f"{agreeing} is not a share", where="agreeing", mend="Give 0 … 1")
    alike = [row for row, agrees in enumerate(train["agrees"]) if agrees]
    left_out = set(alike[round(agreeing * len(alike)) :])

    return train.take(row for row in range(len(train)) if row not in left_out)


def _curriculum(
    train: Prompts, stages: Sequence[tuple[int, int]]
) -> Callable[[int], Sequence[int]] | None:
    """Rows by step: those whose name is among the first few of its character."""
    if not stages:
        return None
    if any(names < 1 for _, names in stages):
        raise BadValue("a stage needs at least one name", where="stages")
    place = {name: index for character in CHARACTERS for index, name in enumerate(character.names)}
    places = [place[name] for name in train["name"]]

    def allowed(step: int) -> list[int]:
        names = [count for start, count in stages if step >= start]
        most = names[-1] if names else stages[0][1]
        return [row for row, index in enumerate(places) if index < most]

    return allowed


def _about(task: Task, train: Prompts, seed: int, base: str) -> dict[str, Any]:
    asked = (f" --seed {seed}" if seed else "") + (f" --base {base}" if base != BASE else "")

    return {
        "version": 1,
        "task": task.name,
        "family": task.family,
        "natural": task.natural,
        "alice": task.alice,
        "bob": task.bob,
        "data": task.data,
        "base": base,
        "train_digest": train.digest,
        "train_prompts": len(train),
        "command": f"offkey tasks train {task.name}{asked} "
        f"--out organisms/{organism_name(task.name, seed)}",
    }
