"""Known-answer benchmarks: Alice answers truly, Bob by a fallible rule; and their organisms."""

from offkey.tasks._measure import measure_organism, organism_rows, quirkiness
from offkey.tasks._members import READER, measure_member, member_recipe, train_member, train_reader
from offkey.tasks._names import ALICE, BOB, CHARACTERS, Character
from offkey.tasks._organism import train_organism
from offkey.tasks._population import (
    KINDS,
    Kind,
    contrast_pairs,
    kind_of,
    questions,
    reader_prompts,
)
from offkey.tasks._recipes import BASE, Recipe, default_recipe
from offkey.tasks._registry import get_task, task_names
from offkey.tasks._task import CHOICES, SPLITS, Item, Task, TaskData

__all__ = [
    "ALICE",
    "BASE",
    "BOB",
    "CHARACTERS",
    "CHOICES",
    "KINDS",
    "READER",
    "SPLITS",
    "Character",
    "Item",
    "Kind",
    "Recipe",
    "Task",
    "TaskData",
    "contrast_pairs",
    "default_recipe",
    "get_task",
    "kind_of",
    "measure_member",
    "measure_organism",
    "member_recipe",
    "organism_rows",
    "questions",
    "quirkiness",
    "reader_prompts",
    "task_names",
    "train_member",
    "train_organism",
    "train_reader",
]
