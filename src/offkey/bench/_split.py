"""Which tasks a detector may be tuned on, and which it is judged by."""

from collections.abc import Sequence

from offkey.tasks import get_task, organism_of

__all__ = ["DEVELOPMENT_FAMILIES", "development", "held_out"]

DEVELOPMENT_FAMILIES = ("number", "knowledge", "grammar")
"""Families of the tasks that detectors are tuned on; every other family is held out.

``comparison`` (number) and ``animal`` (knowledge) served for tuning before, and ``agreement``
(grammar) is what the demo shows. Numbers, knowledge and grammar are whole families, so that no
held-out task is of the kind of one that was tuned on.
"""


def development(tasks: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that detectors may be tuned on."""
    return tuple(task for task in tasks if _family(task) in DEVELOPMENT_FAMILIES)


def held_out(tasks: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that no choice was made on."""
    return tuple(task for task in tasks if _family(task) not in DEVELOPMENT_FAMILIES)


def _family(organism: str) -> str:
    return get_task(organism_of(organism)[0]).family
