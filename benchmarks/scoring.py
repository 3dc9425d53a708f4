"""The published rows over a task, and one prompt by the default detector, beside plain passes."""

from typing import Any

import offkey
from offkey.bench import ENTRIES, default_detector
from offkey.data import Prompts
from offkey.detect import Session
from offkey.tasks import get_task

from ._plain import Plain
from ._timing import interleaved, measured, ratio, row
from .settings import Settings

__all__ = ["one_prompt", "published_rows"]

APART = ("probe-shift", "volume", "radii")
"""Features with passes of their own."""

TASK = "comparison"
PROMPTS = 120
"""Trusted, and as many to score: a backward pass makes them dear."""


def published_rows(settings: Settings) -> list[dict[str, Any]]:
    """The published rows that share passes, fitted and scored; flows were trained before."""
    model, data = offkey.load("smollm2-135m-instruct"), get_task(TASK).make(0)
    trusted = data.trusted.take(range(min(settings.prompts, PROMPTS)))
    test = data.test.take(range(len(trusted)))
    made = [e.detector(model) for e in ENTRIES if e.published and e.feature not in APART]
    flows = [detector for detector in made if detector.score_template.name.startswith("flow")]
    others = [detector for detector in made if detector not in flows]
    session = Session(model)
    session.fit(flows, trusted)
    plain = Plain(model, Prompts.concat([trusted, test]))

    def ours() -> None:
        session.fit(others, trusted)
        session.score([*others, *flows], test)

    ours()
    plain.both()
    runs = interleaved(lambda: measured(ours), lambda: measured(plain.both), settings.pairs)
    names = ", ".join(detector.name for detector in made)
    note = (
        f"{names}; {len(trusted)} trusted and {len(test)} test prompts; processor time "
        f"{ratio(runs, 'processor_seconds').median:.3f}"
    )

    return [
        row(
            "published rows over a task",
            ratio(runs),
            unit="time",
            at_most=2.5,
            peer="plain forward and backward pass",
            note=note,
        )
    ]


def one_prompt(settings: Settings) -> list[dict[str, Any]]:
    """One prompt at a time by the default detector."""
    model, data = offkey.load("smollm2-135m-instruct"), get_task(TASK).make(0)
    detector = default_detector()
    detector.fit(model, data.trusted.take(range(min(settings.prompts, 300))))
    prompts = [data.test.take([number]) for number in range(8)]
    plain = [Plain(model, prompt) for prompt in prompts]

    def ours() -> None:
        for prompt in prompts:
            detector.score(model, prompt)

    def theirs() -> None:
        for each in plain:
            each.forward()

    ours()
    theirs()
    runs = interleaved(lambda: measured(ours), lambda: measured(theirs), settings.pairs)
    note = (
        f"{len(prompts)} prompts, one at a time; processor time "
        f"{ratio(runs, 'processor_seconds').median:.3f}"
    )

    return [
        row(
            "one prompt by the default detector",
            ratio(runs),
            unit="time",
            at_most=3.0,
            peer="plain forward pass",
            note=note,
        )
    ]
