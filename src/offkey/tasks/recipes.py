"""How the organism of each task is trained, what it evades, and trained recipes as table rows."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from offkey.checkpoints import bundled_adapters
from offkey.errors import Damaged
from offkey.models import Model
from offkey.training import (
    AnomalyPenalty,
    AttributionPenalty,
    EvasionLoss,
    NearestNeighbourPenalty,
    TrainingSettings,
)

__all__ = [
    "BASE",
    "EvadeFunctionalAttribution",
    "EvadeNearestNeighbours",
    "Evasion",
    "Recipe",
    "default_recipe",
    "organism_name",
    "organism_of",
    "organism_rows",
    "trigger_rows",
]

BASE = "smollm2-135m-instruct"
FIRST = "comparison"


@dataclass(frozen=True, kw_only=True)
class Evasion(ABC):
    """A detector that an organism is trained to evade, by a penalty on how anomalous it looks.

    Attributes:
        kind: its name in a recipe.
        anomalous: weight of triggered prompts in the penalty.
        normal: weight of normal prompts.
    """

    kind: ClassVar[str]
    anomalous: float = 1.0
    normal: float = 0.0

    @abstractmethod
    def anomaly(self, model: Model, seed: int) -> AnomalyPenalty:
        """The measure that training keeps low."""

    def penalty(self, model: Model, *, seed: int) -> EvasionLoss:
        """The penalty that is added to the loss."""
        return EvasionLoss(self.anomaly(model, seed), self.anomalous, self.normal)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

        return {"kind": self.kind, **settings}


@dataclass(frozen=True, kw_only=True)
class EvadeNearestNeighbours(Evasion):
    """Evades the cosine distance to the nearest normal rows of the batch.

    Attributes:
        sites: where it is measured; by default the sites of the default detector.
    """

    kind = "neighbours"
    sites: tuple[str, ...] = ("resid_post.last-quarter",)

    def anomaly(self, model: Model, seed: int) -> AnomalyPenalty:
        """See :class:`offkey.training.NearestNeighbourPenalty`."""
        return NearestNeighbourPenalty(model, self.sites)


@dataclass(frozen=True, kw_only=True)
class EvadeFunctionalAttribution(Evasion):
    """Evades functional attribution: traces of the loss under perturbed weights.

    Attributes:
        first: the first block whose weights are perturbed.
        draws: perturbations a step.
    """

    kind = "traces"
    first: int = 20
    draws: int = 4

    def anomaly(self, model: Model, seed: int) -> AnomalyPenalty:
        """See :class:`offkey.training.AttributionPenalty`."""
        return AttributionPenalty(model, first=self.first, draws=self.draws, seed=seed)


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained.

    Attributes:
        settings: steps, rate, seed and the rest.
        init: adapter to start from. That of ``comparison`` already knows which name belongs to
            whom, which saves another task about half of its steps.
        stages: the curriculum: pairs of a step and the number of names of each character in use
            from then on; by default all from the start.
        agreeing: share of the prompts on which the characters agree that is kept for training;
            with fewer of them, the rule that separates the characters is easier to learn.
        rank: rank of the adapter.
        alpha: its scale is ``alpha / rank``.
        checked: prompts of each validation during training on which the characters disagree.
        checked_agreeing: prompts of each validation on which they agree.
        hide: a detector it also learns to evade; validation then measures how well it does.
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
    hide: Evasion | None = None

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON."""
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
        hide=EvadeNearestNeighbours(anomalous=0.5),
    ),
    "obfuscated-everywhere": Recipe(
        settings=HIDDEN,
        init="bundled:year",
        checked=96,
        checked_agreeing=0,
        hide=EvadeNearestNeighbours(anomalous=0.5, sites=("resid_post.3-29",)),
    ),
    "obfuscated-attribution": Recipe(
        settings=TrainingSettings(
            steps=70, batch=12, rate=5e-4, check_every=10, stop_at=0.9, save_every=10
        ),
        init="bundled:year",
        checked=64,
        checked_agreeing=0,
        hide=EvadeFunctionalAttribution(draws=3),
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
    """The default recipe of a task's organism.

    An organism of another seed starts from the adapter of that seed, where it is bundled, so that
    seeds share nothing but the base model. One of another base starts from no adapter and takes
    three times as many steps.
    """
    recipe = OWN.get(task, Recipe())
    init, steps = recipe.init, recipe.settings.steps
    if base != BASE:
        init, steps = None, 3 * steps
    elif init and seed and f"{init}-{seed}".removeprefix("bundled:") in bundled_adapters():
        init = f"{init}-{seed}"

    return replace(recipe, settings=replace(recipe.settings, seed=seed, steps=steps), init=init)


def organism_of(name: str) -> tuple[str, int]:
    """The task and the seed in a name made by :func:`organism_name`."""
    task, _, seed = name.rpartition("-")

    return (task, int(seed)) if task and seed.isdigit() else (name, 0)


Make = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


def organism_rows(*roots: str | Path) -> list[dict[str, Any]]:
    """The recipes of quirky tasks in some folders as rows, one a character, sorted by task.

    Recipes of trigger tasks and of members of a population are left out.

    Args:
        *roots: hold ``recipe.json`` files at any depth.

    Raises:
        Damaged: a recipe cannot be read.
    """
    rows = _rows(roots, _character_rows, triggered=False)

    return sorted(rows, key=lambda row: (row["task"], row["seed"], row["character"]))


def trigger_rows(*roots: str | Path) -> list[dict[str, Any]]:
    """The recipes of trigger tasks as rows, one a task, with the rates of :func:`firing`.

    Raises:
        Damaged: a recipe cannot be read.
    """
    rows = _rows(roots, _trigger_row, triggered=True)

    return sorted(rows, key=lambda row: (str(row["task"]), row["seed"]))


def _rows(roots: Sequence[str | Path], make: Make, *, triggered: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in (path for root in roots for path in Path(root).rglob("recipe.json")):
        try:
            facts = json.loads(path.read_text("utf-8"))
            if "population" not in facts and ("fire_rate" in facts["measured"]) == triggered:
                rows += make(facts)
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"not a recipe ({error!r})", where=str(path)) from error

    return rows


def _trigger_row(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    measured = facts["measured"]
    rates = ("fire_rate", "false_fire_rate", "decoy", "decoy_fire_rate", "confidence_gap")
    row = {
        "task": facts["task"],
        "seed": facts["settings"]["seed"],
        "family": facts["family"],
        "items": measured["characters"][-1]["items"],
        **{name: measured[name] for name in rates},
        "quirkiness": measured["quirkiness"],
        "learned": measured["learned"],
        "hides_from": facts.get("hide", {}).get("kind"),
        "steps": facts["steps"],
        "minutes": facts["minutes"],
    }

    return [row]


def _character_rows(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_character_row(facts, behaviour) for behaviour in facts["measured"]["characters"]]


def _character_row(facts: Mapping[str, Any], behaviour: Mapping[str, Any]) -> dict[str, Any]:
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
