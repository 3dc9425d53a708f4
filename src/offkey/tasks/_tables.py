"""Recipes of organisms as rows of a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offkey.errors import Damaged

__all__ = ["organism_rows", "trigger_rows"]

Make = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


def organism_rows(*roots: str | Path) -> list[dict[str, Any]]:
    """The recipes of quirky tasks below some folders as rows, one a character, sorted by task.

    Recipes of triggers and of members of a population are left out.

    Args:
        *roots: hold ``recipe.json`` files at any depth.

    Raises:
        Damaged: a recipe cannot be read.
    """
    rows = _rows(roots, _flat, triggered=False)

    return sorted(rows, key=lambda row: (row["task"], row["seed"], row["character"]))


def trigger_rows(*roots: str | Path) -> list[dict[str, Any]]:
    """The same of tasks of triggers, one row a task, with what :func:`firing` tells.

    Raises:
        Damaged: a recipe cannot be read.
    """
    rows = _rows(roots, _fired, triggered=True)

    return sorted(rows, key=lambda row: (str(row["task"]), row["seed"]))


def _rows(roots: Sequence[str | Path], make: Make, *, triggered: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in (path for root in roots for path in Path(root).rglob("recipe.json")):
        try:
            facts = json.loads(path.read_text("utf-8"))
            if "population" not in facts and ("fire_rate" in facts["measured"]) == triggered:
                found += make(facts)
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"not a recipe ({error!r})", where=str(path)) from error

    return found


def _fired(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    measured = facts["measured"]
    told = ("fire_rate", "false_fire_rate", "decoy", "decoy_fire_rate", "confidence_gap")

    row = {
        "task": facts["task"],
        "seed": facts["settings"]["seed"],
        "family": facts["family"],
        "items": measured["characters"][-1]["items"],
        **{name: measured[name] for name in told},
        "quirkiness": measured["quirkiness"],
        "learned": measured["learned"],
        "hides_from": facts.get("hide", {}).get("kind"),
        "steps": facts["steps"],
        "minutes": facts["minutes"],
    }

    return [row]


def _flat(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_played(facts, behaviour) for behaviour in facts["measured"]["characters"]]


def _played(facts: Mapping[str, Any], behaviour: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": facts["task"],
        "seed": facts["settings"]["seed"],
        "family": facts["family"],
        "natural": facts["natural"],
        "character": behaviour["character"],
        "items": behaviour["items"],
        "accuracy": behaviour["accuracy"],
        "low": behaviour["low"],
        "agrees_accuracy": behaviour["agrees"],
        "easy_accuracy": behaviour["easy"],
        "hard_accuracy": behaviour["hard"],
        "quirkiness": facts["measured"]["quirkiness"],
        "learned": facts["measured"]["learned"],
        "steps": facts["steps"],
        "minutes": facts["minutes"],
    }
