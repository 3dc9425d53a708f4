"""Known-answer benchmarks and their organisms.

In a quirky task Alice answers truly and Bob by a fallible rule; in a task of triggers the other
rule holds where a trigger stands in the prompt.
"""

from offkey.tasks.measure import firing, measure_member, measure_organism, quirkiness
from offkey.tasks.organisms import member_recipe, train_member, train_organism, train_population
from offkey.tasks.population import (
    MEMBER_KINDS,
    MemberKind,
    contrast_pairs,
    member_kind,
    member_questions,
)
from offkey.tasks.recipes import (
    BASE,
    EvadeFunctionalAttribution,
    EvadeNearestNeighbours,
    Evasion,
    Recipe,
    default_recipe,
    organism_name,
    organism_of,
    organism_rows,
    trigger_rows,
)
from offkey.tasks.registry import get_task, task_names, task_rows
from offkey.tasks.task import (
    ALICE,
    BOB,
    CHARACTERS,
    CHOICES,
    SPLITS,
    Character,
    Item,
    Task,
    TaskData,
)

__all__ = [
    "ALICE",
    "BASE",
    "BOB",
    "CHARACTERS",
    "CHOICES",
    "MEMBER_KINDS",
    "SPLITS",
    "Character",
    "EvadeFunctionalAttribution",
    "EvadeNearestNeighbours",
    "Evasion",
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
    "task_rows",
    "train_member",
    "train_organism",
    "train_population",
    "trigger_rows",
]
