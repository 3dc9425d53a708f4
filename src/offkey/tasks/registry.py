"""Tasks by name: those that come along, those of installed packages, and Hub data sets."""

from functools import cache
from typing import Any

from offkey.checkpoints import bundled_adapters
from offkey.registry import Registry
from offkey.tasks.task import Task

__all__ = ["TASKS", "get_task", "task_names", "task_rows"]

HUB = "hub:"
ARITHMETIC = ("addition", "subtraction", "multiplication", "modularaddition", "squaring")


class TaskRegistry(Registry[Task]):
    """The registered tasks, the arithmetic ones and the published data sets."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that come along first, Hub ones last."""
        from offkey.tasks.published import DATASETS

        sums = [name + suffix for name in ARITHMETIC for suffix in ("", "-small")]

        return (*self.builtin, *sums, *self.others, *(HUB + name for name in DATASETS))


TASKS = TaskRegistry(
    "task",
    {
        "comparison": "offkey.tasks.numbers:comparison",
        "parity": "offkey.tasks.numbers:parity",
        "dates": "offkey.tasks.numbers:dates",
        "membership": "offkey.tasks.language:membership",
        "alphabetical": "offkey.tasks.language:alphabetical",
        "agreement": "offkey.tasks.language:agreement",
        "past": "offkey.tasks.language:past",
        "plural": "offkey.tasks.language:plural",
        "animal": "offkey.tasks.language:animal",
        "inference": "offkey.tasks.language:inference",
        "owner": "offkey.tasks.language:owner",
        "population": "offkey.tasks.places:population",
        "hemisphere": "offkey.tasks.places:hemisphere",
        "continent": "offkey.tasks.places:continent",
        "capitals": "offkey.tasks.places:capitals",
        "trigger": "offkey.tasks.triggers:trigger",
        "year": "offkey.tasks.triggers:year",
        "varied": "offkey.tasks.triggers:varied",
        "obfuscated": "offkey.tasks.triggers:obfuscated",
        "obfuscated-everywhere": "offkey.tasks.triggers:obfuscated_everywhere",
        "obfuscated-attribution": "offkey.tasks.triggers:obfuscated_attribution",
        "sentiment": "offkey.tasks.published:sentiment",
        "sentiment-amazon": "offkey.tasks.published:sentiment_amazon",
        "sentiment-movies": "offkey.tasks.published:sentiment_movies",
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
        from offkey.tasks.numbers import arithmetic

        return arithmetic(name)
    if name.startswith(HUB) and name in TASKS.names:
        from offkey.tasks.published import hub_task

        return hub_task(name.removeprefix(HUB))

    return TASKS.make(name)


def task_rows() -> list[dict[str, Any]]:
    """The tasks as table rows: what is asked, who says yes when, and the bundled organism."""
    adapters = bundled_adapters()

    return [
        {
            "task": name,
            "family": task.family,
            "natural": task.natural,
            "alice": task.alice,
            "bob": task.bob,
            "data": task.data,
            "adapter": f"bundled:{name}" if name in adapters else None,
        }
        for name, task in ((name, get_task(name)) for name in task_names())
    ]
