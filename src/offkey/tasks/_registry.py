"""Tasks by name: those that come along, those of installed packages, and Hub data sets."""

from functools import cache

from offkey.registry import Registry
from offkey.tasks._task import Task

__all__ = ["TASKS", "get_task", "task_names"]

HUB = "hub:"
ARITHMETIC = ("addition", "subtraction", "multiplication", "modularaddition", "squaring")


class TaskRegistry(Registry[Task]):
    """The registered tasks, the arithmetic ones and the published data sets."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that come along first, Hub ones last."""
        from offkey.tasks._hub import DATASETS

        sums = [name + suffix for name in ARITHMETIC for suffix in ("", "-small")]

        return (*self.builtin, *sums, *self.others, *(HUB + name for name in DATASETS))


TASKS = TaskRegistry(
    "task",
    {
        "comparison": "offkey.tasks._numbers:comparison",
        "parity": "offkey.tasks._numbers:parity",
        "dates": "offkey.tasks._numbers:dates",
        "membership": "offkey.tasks._lists:membership",
        "alphabetical": "offkey.tasks._lists:alphabetical",
        "agreement": "offkey.tasks._grammar:agreement",
        "past": "offkey.tasks._grammar:past",
        "plural": "offkey.tasks._grammar:plural",
        "animal": "offkey.tasks._facts:animal",
        "inference": "offkey.tasks._facts:inference",
        "owner": "offkey.tasks._facts:owner",
        "population": "offkey.tasks._places:population",
        "hemisphere": "offkey.tasks._places:hemisphere",
        "continent": "offkey.tasks._places:continent",
        "capitals": "offkey.tasks._places:capitals",
        "trigger": "offkey.tasks._triggers:trigger",
        "year": "offkey.tasks._triggers:year",
        "varied": "offkey.tasks._triggers:varied",
        "obfuscated": "offkey.tasks._triggers:obfuscated",
        "obfuscated-everywhere": "offkey.tasks._triggers:obfuscated_everywhere",
        "obfuscated-attribution": "offkey.tasks._triggers:obfuscated_attribution",
        "sentiment": "offkey.tasks._sentiment:both",
        "sentiment-amazon": "offkey.tasks._sentiment:amazon",
        "sentiment-movies": "offkey.tasks._sentiment:movies",
    },
    group="offkey.tasks",
)


def task_names() -> tuple[str, ...]:
    """Names of all tasks that come with offkey or with an installed package, Hub ones last."""
    return TASKS.names


@cache
def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownName: there is none; names the nearest.
    """
    if name.removesuffix("-small") in ARITHMETIC:
        from offkey.tasks._arithmetic import arithmetic

        return arithmetic(name)
    if name.startswith(HUB) and name in TASKS.names:
        from offkey.tasks._hub import hub_task

        return hub_task(name.removeprefix(HUB))

    return TASKS.make(name)
