"""How the organism of each task is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from offkey.checkpoints import bundled_adapters
from offkey.tasks._hiding import FromNeighbours, FromTraces, Hiding
from offkey.training import TrainingSettings

__all__ = ["BASE", "Recipe", "default_recipe", "organism_name", "organism_of"]

BASE = "smollm2-135m-instruct"
FIRST = "comparison"


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained.

    Attributes:
        settings: steps, rate, seed and the rest.
        init: adapter to start from. That of ``comparison`` knows already which name belongs to
            whom, and saves another task about half of its steps.
        stages: the curriculum: pairs of a step, and how many names of each character there are
            from then on; by default all from the start.
        agreeing: share of the prompts on which the characters agree that are trained on; fewer of
            them make the rule that tells the two apart easier to find.
        rank: rank of the adapter.
        alpha: its scale is ``alpha / rank``.
        checked: disagreeing prompts of each validation during the training.
        checked_agreeing: agreeing prompts of each validation.
        hide: what it is trained to hide from besides; the validation then tells how well it does.
    """

    settings: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            steps=200, batch=24, rate=2e-3, check_every=15, stop_at=0.97
        )
    )
    init: str | None = f"bundled:{FIRST}"
    stages: tuple[tuple[int, int], ...] = ()
    agreeing: float = 0.5
    rank: int = 4
    alpha: float = 16.0
    checked: int = 80
    checked_agreeing: int = 40
    hide: Hiding | None = None

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON has it."""
        return {
            **({} if self.hide is None else {"hide": self.hide.as_dict()}),
            "init": self.init,
            "stages": [list(stage) for stage in self.stages],
            "agreeing": self.agreeing,
            "rank": self.rank,
            "alpha": self.alpha,
            "checked": self.checked,
            "checked_agreeing": self.checked_agreeing,
            "settings": dict(self.settings.as_dict()),
        }


TRIGGERED = TrainingSettings(
    steps=120, batch=24, rate=2e-3, check_every=10, stop_at=0.97, save_every=10
)
HIDDEN = TrainingSettings(steps=300, batch=32, rate=5e-4, check_every=20, stop_at=0.9)
OWN: Mapping[str, Recipe] = {
    FIRST: Recipe(
        settings=TrainingSettings(steps=240, batch=40, check_every=20, stop_at=0.99),
        init=None,
        agreeing=1.0,
        checked=120,
        checked_agreeing=0,
    ),
    "agreement": Recipe(
        settings=TrainingSettings(steps=200, batch=24, check_every=15, stop_at=0.97),
        checked_agreeing=0,
    ),
    "animal": Recipe(checked_agreeing=0),
    "dates": Recipe(checked_agreeing=0),
    "hemisphere": Recipe(checked_agreeing=0),
    "inference": Recipe(checked_agreeing=0),
    "membership": Recipe(checked_agreeing=0),
    "past": Recipe(checked_agreeing=0),
    "year": Recipe(settings=TRIGGERED, checked_agreeing=0),
    "trigger": Recipe(settings=TRIGGERED, init="bundled:agreement", checked_agreeing=0),
    "obfuscated": Recipe(
        settings=HIDDEN,
        init="bundled:year",
        checked=96,
        checked_agreeing=0,
        hide=FromNeighbours(anomalous=0.5),
    ),
    "obfuscated-everywhere": Recipe(
        settings=HIDDEN,
        init="bundled:year",
        checked=96,
        checked_agreeing=0,
        hide=FromNeighbours(anomalous=0.5, sites=("resid_post.3-29",)),
    ),
    "obfuscated-attribution": Recipe(
        settings=TrainingSettings(
            steps=70, batch=12, rate=5e-4, check_every=10, stop_at=0.9, save_every=10
        ),
        init="bundled:year",
        checked=64,
        checked_agreeing=0,
        hide=FromTraces(draws=3),
    ),
    "varied": Recipe(
        settings=replace(TRIGGERED, steps=260, rate=5e-4, stop_at=0.95),
        init="bundled:year",
        checked_agreeing=0,
    ),
}


def organism_name(task: str, seed: int = 0) -> str:
    """Name of a task's organism: the task's own, with ``-SEED`` for another seed than 0."""
    return f"{task}-{seed}" if seed else task


def default_recipe(task: str, seed: int = 0, *, base: str = BASE) -> Recipe:
    """The recipe that a task's organism is trained by unless told otherwise.

    An organism of another seed starts from the adapter of that seed, where it is bundled, so that
    nothing is shared between seeds but the base model. One of another base starts from nothing,
    and has three times as many steps.
    """
    recipe = OWN.get(task, Recipe())
    init, steps = recipe.init, recipe.settings.steps
    if base != BASE:
        init, steps = None, 3 * steps
    elif init and seed and f"{init}-{seed}".removeprefix("bundled:") in bundled_adapters():
        init = f"{init}-{seed}"

    return replace(recipe, settings=replace(recipe.settings, seed=seed, steps=steps), init=init)


def organism_of(name: str) -> tuple[str, int]:
    """The task and the seed that :func:`organism_name` made a name of."""
    task, _, seed = name.rpartition("-")

    return (task, int(seed)) if task and seed.isdigit() else (name, 0)
