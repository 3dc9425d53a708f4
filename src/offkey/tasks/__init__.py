"""Known-answer benchmarks and their organisms.

In a quirky task Alice answers truly and Bob by a fallible rule; in a task of triggers the other
rule holds where a trigger stands in the prompt.
"""

from offkey.tasks._hiding import FromNeighbours, FromTraces, Hiding
from offkey.tasks._measure import firing, measure_organism, quirkiness
from offkey.tasks._members import measure_member, member_recipe, train_member
from offkey.tasks._names import ALICE, BOB, CHARACTERS, Character
from offkey.tasks._organism import train_organism
from offkey.tasks._population import (
    MEMBER_KINDS,
    MemberKind,
    contrast_pairs,
    member_kind,
    member_questions,
)
from offkey.tasks._recipes import BASE, Recipe, default_recipe, organism_name, organism_of
from offkey.tasks._registry import get_task, task_names
from offkey.tasks._tables import organism_rows, trigger_rows
from offkey.tasks._task import CHOICES, SPLITS, Item, Task, TaskData

__all__ = [
    "ALICE",
    "BASE",
    "BOB",
    "CHARACTERS",
    "CHOICES",
    "MEMBER_KINDS",
    "SPLITS",
    "Character",
    "FromNeighbours",
    "FromTraces",
    "Hiding",
    "Item",
    "MemberKind",
    "Recipe",
    "Task",
    "TaskData",
    "contrast_pairs",
    "default_recipe",
    "firing",
    "get_task",
    "measure_member",
    "measure_organism",
    "member_kind",
    "member_questions",
    "member_recipe",
    "organism_name",
    "organism_of",
    "organism_rows",
    "quirkiness",
    "task_names",
    "train_member",
    "train_organism",
    "trigger_rows",
]
