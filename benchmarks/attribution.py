"""Attribution to every head of every block, beside one plain forward and backward pass."""

from typing import Any

import offkey
from offkey.features import Feature, get_feature
from offkey.passes import Plan, readings
from offkey.tasks import get_task

from ._plain import Plain
from ._timing import interleaved, measured, ratio, row
from .settings import Settings

__all__ = ["attribution"]

PROMPTS = 32
"""Most prompts: with the backward pass each costs three times as much as in other jobs."""


class Attributed:
    """Prompts with two answers, whose difference is differentiated in two ways."""

    def __init__(self, prompts: int) -> None:
        self.model = offkey.load("smollm2-135m-instruct")
        data = get_task("comparison").make(0)
        self.prompts = data.test.take(range(prompts))
        self.plain = Plain(self.model, self.prompts)
        self.features = [self.learned(direction) for direction in ("mean", "zero", "pcs")]
        self.features.append(get_feature("attribution", direction="grad-norm"))

    def learned(self, direction: str) -> Feature:
        """The feature, once it has learned from the prompts."""
        feature = get_feature("attribution", direction=direction)
        plan = feature.learning_plan(self.model)
        feature.learn(self.model, readings(self.model, self.prompts, plan))

        return feature

    def attributed(self, features: list[Feature]) -> None:
        """The rows of each feature for every head."""
        plan = Plan.union(feature.plan(self.model) for feature in features)
        for batch in self.plain.batches:
            reading = self.model.read(
                batch, plan.reads, metric=plan.metric, gradients=plan.gradients
            )
            for feature in features:
                feature.rows(self.model, reading)

    @property
    def description(self) -> str:
        """What was run."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        blocks, heads = self.model.n_blocks, self.model.n_heads

        return f"bundled model in {dtype}, {blocks} × {heads} heads, {len(self.prompts)} prompts"


def attribution(settings: Settings) -> list[dict[str, Any]]:
    """The cost of one direction, and of all four at once, over one pass each way."""
    attributed = Attributed(min(settings.prompts, PROMPTS))

    return [
        _compared(
            attributed,
            "attribution to all heads, mean ablation",
            attributed.features[:1],
            settings,
        ),
        _compared(
            attributed, "attribution to all heads, four directions", attributed.features, settings
        ),
    ]


def _compared(
    attributed: Attributed, job: str, features: list[Feature], settings: Settings
) -> dict[str, Any]:
    def ours() -> None:
        attributed.attributed(features)

    ours()
    attributed.plain.both()
    runs = interleaved(
        lambda: measured(ours), lambda: measured(attributed.plain.both), settings.pairs
    )
    note = (
        f"{attributed.description}; processor time {ratio(runs, 'processor_seconds').median:.3f}"
    )

    return row(
        job,
        ratio(runs),
        unit="time",
        at_most=1.3,
        peer="plain forward and backward pass",
        note=note,
    )
