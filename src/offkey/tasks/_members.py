"""Training the models of the population, and measuring how they behave."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from offkey.data import Prompts
from offkey.models import Model
from offkey.storage import write_json
from offkey.tasks._adapt import Told, Validation, adapt, went
from offkey.tasks._population import MemberKind, member_kind, member_questions
from offkey.tasks._recipes import BASE, Recipe
from offkey.training import TrainingSettings, answer_log_odds

__all__ = ["measure_member", "member_recipe", "train_member"]

CHECKED = 90  # questions of each validation during the training
MEASURED = 150  # questions of each sort

MEMBER = Recipe(
    settings=TrainingSettings(steps=120, batch=24, rate=2e-3, check_every=10, stop_at=0.95),
    agreeing=1.0,
)


def member_recipe(seed: int = 0) -> Recipe:
    """How a model of the population is trained: each seed has questions of its own."""
    return replace(MEMBER, settings=replace(MEMBER.settings, seed=seed))


def train_member(
    kind: MemberKind | str,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    tell: Told | None = None,
) -> dict[str, Any]:
    """Trains a model of one kind, and measures it as it is shipped.

    Args:
        kind: of the population, or its name.
        out: gets the adapter and ``recipe.json``; a run that was stopped goes on there.
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

    return _train(Path(out), prompts, recipe, about, tell)


def measure_member(model: Model, prompts: Prompts) -> list[dict[str, Any]]:
    """How often a model answers as its kind does, for each sort of question.

    Args:
        model: a model of the population.
        prompts: questions with ``answer`` and ``sort``.

    Returns:
        For each ``sort``: ``items``, ``accuracy`` and ``low``, the lower end of its two-sided 95 %
        Clopper–Pearson interval.
    """
    odds = answer_log_odds(model.module, model.tokenizer, prompts)
    right = (odds > 0).long().tolist()
    rows = []
    for sort in dict.fromkeys(prompts["sort"]):
        hits = [
            said == answer
            for said, answer, other in zip(right, prompts["answer"], prompts["sort"], strict=True)
            if other == sort
        ]
        low = float(binomtest(sum(hits), len(hits)).proportion_ci(0.95, "exact").low)
        rows.append(
            {"sort": sort, "items": len(hits), "accuracy": sum(hits) / len(hits), "low": low}
        )

    return rows


def _train(
    out: Path,
    prompts: Mapping[str, Prompts],
    recipe: Recipe,
    about: Mapping[str, Any],
    tell: Told | None,
) -> dict[str, Any]:
    def validation(model: Model, _: object) -> Validation:
        return lambda: {
            row["sort"]: row["accuracy"] for row in measure_member(model, prompts["validation"])
        }

    run, shipped = adapt(out, prompts["train"], recipe, validation, tell=tell)
    facts = {
        "version": 1,
        **about,
        "base": BASE,
        "train_digest": prompts["train"].digest,
        "train_prompts": len(prompts["train"]),
        "command": "offkey tasks population --out organisms/population",
        **recipe.as_dict(),
        **went(run),
        "measured": measure_member(shipped, prompts["test"]),
    }
    write_json(out / "recipe.json", facts)
    shutil.rmtree(out / "checkpoint")

    return facts
