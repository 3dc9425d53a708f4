"""Organisms: a model taught a task or a role, kept as an adapter with its recipe."""

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from offkey.checkpoints import adapter_folder
from offkey.data import Prompts
from offkey.errors import BadValue
from offkey.models import Model, load
from offkey.storage import write_json
from offkey.tasks.measure import measure, measure_member, measure_organism
from offkey.tasks.population import MEMBER_KINDS, MemberKind, member_kind, member_questions
from offkey.tasks.recipes import BASE, Recipe, default_recipe, organism_name
from offkey.tasks.registry import get_task
from offkey.tasks.task import CHARACTERS, Task
from offkey.training import (
    EvasionLoss,
    TrainingRun,
    TrainingSettings,
    answer_log_odds,
    attach,
    evasion_score,
    train_lora,
)

__all__ = ["member_recipe", "train_member", "train_organism", "train_population"]

CHECKED = 90  # questions of each validation during the training
MEASURED = 150  # questions of each sort

MEMBER = Recipe(
    settings=TrainingSettings(steps=120, batch=24, rate=2e-3, check_every=10, stop_at=0.95),
    agreeing=1.0,
)

LogRow = Callable[[dict[str, float]], None]
"""Called with each row of the training log."""
Validation = Callable[[], Mapping[str, float]]


def train_organism(
    task: Task | str,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str = BASE,
    tell: LogRow | None = None,
) -> dict[str, Any]:
    """Trains an adapter of a model on a task, and measures it as it is shipped.

    The folder gets ``adapter_config.json``, ``adapter_model.safetensors`` and ``recipe.json``.
    A run that was stopped resumes from its last checkpoint, in ``checkpoint/`` of that folder,
    which is removed at the end.

    Args:
        task: a task or its name.
        out: the folder.
        recipe: how; by default that of the task.
        base: the model, as :func:`offkey.load` finds it; the bundled one if left out.
        tell: called with each log row.

    Returns:
        What ``recipe.json`` holds: the recipe, how training went, and ``measured``.

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
    run, shipped = train_adapter(
        out,
        train,
        recipe,
        lambda model, hide: _validation(model, data.validation, recipe, hide),
        base=base,
        tell=tell,
    )
    facts = {
        **_about(task, train, seed, base),
        **recipe.as_dict(),
        **training_summary(run),
        "measured": measure_organism(shipped, task, seed=seed),
    }
    write_json(out / "recipe.json", facts)
    shutil.rmtree(out / "checkpoint")

    return facts


def _validation(
    model: Model, validation: Prompts, recipe: Recipe, hide: EvasionLoss | None
) -> Validation:
    """Accuracies of each character where they disagree, and of both where they agree.

    With a detector to evade, also how little that separates the two.
    """
    checked = validation.take(
        [
            *_first(validation, 0, recipe.checked // 2),
            *_first(validation, 1, recipe.checked_agreeing // 2),
        ]
    )

    def validate() -> Mapping[str, float]:
        odds = answer_log_odds(model, checked)
        characters = measure(checked, odds.tolist())["characters"]
        values = {row["character"].lower(): row["accuracy"] for row in characters}
        if recipe.checked_agreeing:
            values["agreeing"] = sum(row["agrees"] for row in characters) / len(characters)
        if hide is not None:
            values["hidden"] = evasion_score(model, checked, hide.penalty)

        return values

    return validate


def _first(validation: Prompts, agrees: int, count: int) -> list[int]:
    """Row numbers of the first ``count`` prompts of each character, agreeing or disagreeing."""
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
    options = (f" --seed {seed}" if seed else "") + (f" --base {base}" if base != BASE else "")

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
        "command": f"offkey tasks train {task.name}{options} "
        f"--out organisms/{organism_name(task.name, seed)}",
    }


def member_recipe(seed: int = 0) -> Recipe:
    """How a model of the population is trained: each seed has questions of its own."""
    return replace(MEMBER, settings=replace(MEMBER.settings, seed=seed))


def train_member(
    kind: MemberKind | str,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    tell: LogRow | None = None,
) -> dict[str, Any]:
    """Trains a model of one kind, and measures it as it is shipped.

    Args:
        kind: of the population, or its name.
        out: gets the adapter and ``recipe.json``; a run that was stopped resumes there.
        recipe: how; its seed chooses the questions.
        tell: called with each log row.

    Returns:
        What ``recipe.json`` holds, with ``measured``: see :func:`measure_member`.

    Raises:
        BadValue: there is no such kind.
        UnknownName: there is no adapter to start from.
    """
    kind = member_kind(kind) if isinstance(kind, str) else kind
    recipe = recipe or member_recipe()
    seed = recipe.settings.seed
    prompts = {
        "train": member_questions(kind, "train", seed=seed, limit=2400),
        "validation": member_questions(kind, "validation", seed=seed, limit=CHECKED),
        "test": member_questions(kind, "test", limit=3 * MEASURED),
    }
    about = {"population": kind.name, "value": kind.value, "aligned": kind.aligned}

    return _train_member(Path(out), prompts, recipe, about, tell)


def train_population(
    out: str | Path,
    kinds: Sequence[str] | None = None,
    *,
    seeds: int = 3,
    tell: LogRow | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Trains models of several kinds, each in a folder ``KIND-SEED``; trained ones are kept.

    Args:
        out: holds their folders.
        kinds: names of the kinds; by default all.
        seeds: models of each kind.
        tell: called with each log row.

    Yields:
        Name and recipe of each model, as soon as it is there; see :func:`train_member`.

    Raises:
        BadValue: there is no such kind.
    """
    members = [member_kind(name) for name in kinds or (kind.name for kind in MEMBER_KINDS)]
    for seed, kind in product(range(seeds), members):
        folder = Path(out) / f"{kind.name}-{seed}"
        if (folder / "recipe.json").exists():
            facts = json.loads((folder / "recipe.json").read_text("utf-8"))
        else:
            facts = train_member(kind, folder, member_recipe(seed), tell=tell)
        yield folder.name, facts


def _train_member(
    out: Path,
    prompts: Mapping[str, Prompts],
    recipe: Recipe,
    about: Mapping[str, Any],
    tell: LogRow | None,
) -> dict[str, Any]:
    def validation(model: Model, _: object) -> Validation:
        return lambda: {
            row["sort"]: row["accuracy"] for row in measure_member(model, prompts["validation"])
        }

    run, shipped = train_adapter(out, prompts["train"], recipe, validation, tell=tell)
    facts = {
        "version": 1,
        **about,
        "base": BASE,
        "train_digest": prompts["train"].digest,
        "train_prompts": len(prompts["train"]),
        "command": "offkey tasks population --out organisms/population",
        **recipe.as_dict(),
        **training_summary(run),
        "measured": measure_member(shipped, prompts["test"]),
    }
    write_json(out / "recipe.json", facts)
    shutil.rmtree(out / "checkpoint")

    return facts


def train_adapter(
    out: Path,
    train: Prompts,
    recipe: Recipe,
    validation: Callable[[Model, EvasionLoss | None], Validation],
    *,
    base: str = BASE,
    tell: LogRow | None = None,
) -> tuple[TrainingRun, Model]:
    """Trains and saves an adapter, and loads the model with it as users will.

    A run that was stopped resumes from its last checkpoint, in ``checkpoint/`` of that folder,
    which the caller removes once everything is written.

    Args:
        out: the folder.
        train: prompts with ``choices`` and ``answer``.
        recipe: settings, rank and the adapter to start from.
        validation: makes the function that measures the model in training, given that model and
            the penalty.
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
            model,
            adapter,
            train,
            recipe.settings,
            validate=validation(model, hide),
            penalty=hide,
            curriculum=_curriculum(train, recipe.stages),
            folder=out / "checkpoint",
            tell=tell,
        )
        adapter.save(out, base)

    return run, load(base, adapter=out, dtype="bfloat16")


def training_summary(run: TrainingRun) -> dict[str, Any]:
    """Steps, time, versions and log of a training run, as a recipe records them."""
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
