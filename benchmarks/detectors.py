"""Many detectors in one pass, against one detector and against a pass for each."""

from collections.abc import Sequence
from typing import Any

import offkey
from offkey.detect import Detector, Session
from offkey.tasks import get_task

from ._timing import interleaved, measured, ratio, row
from .settings import Settings

__all__ = ["six_in_one_pass", "ten_in_one_pass"]

SIX = (
    "mahalanobis",
    "mahalanobis-diagonal",
    "mahalanobis-relative",
    "mahalanobis-l2",
    "mahalanobis-pca",
    "knn-cosine",
)
TEN = (*SIX, "knn", "knn-ratio", "lof", "isolation-forest")


class Watched:
    """A model with trusted and test prompts, on which detectors are fitted and scored."""

    def __init__(self, prompts: int) -> None:
        self.model = offkey.load("smollm2-135m-instruct")
        data = get_task("comparison").make(0)
        self.trusted = data.trusted.take(range(prompts))
        self.test = data.test.take(range(prompts * 2 // 3))
        self.description = f"{len(self.trusted)} trusted and {len(self.test)} test prompts"

    def detect(self, names: Sequence[str]) -> None:
        """Fits on the trusted prompts and scores the test prompts, in one pass over each."""
        made = [Detector("activations", name, sites="resid_post.later") for name in names]
        session = Session(self.model)
        session.fit(made, self.trusted)
        session.score(made, self.test)


def six_in_one_pass(settings: Settings) -> list[dict[str, Any]]:
    """The cost of six detectors over one."""
    watched = Watched(settings.prompts)
    watched.detect(SIX)
    runs = interleaved(
        lambda: measured(lambda: watched.detect(SIX)),
        lambda: measured(lambda: watched.detect(SIX[:1])),
        settings.pairs,
    )
    note = f"{', '.join(SIX)}; {watched.description}"

    return [
        row(
            "six detectors in one pass",
            ratio(runs),
            unit="time",
            at_most=1.3,
            peer="one detector",
            note=_noted(note, runs),
        )
    ]


def ten_in_one_pass(settings: Settings) -> list[dict[str, Any]]:
    """How much longer ten detectors take with a model run each."""
    watched = Watched(settings.prompts)

    def one_by_one() -> None:
        for name in TEN:
            watched.detect([name])

    watched.detect(TEN)
    runs = interleaved(
        lambda: measured(one_by_one),
        lambda: measured(lambda: watched.detect(TEN)),
        settings.pairs,
    )
    note = f"{', '.join(TEN)}; {watched.description}"

    return [
        row(
            "ten detectors with a model run each",
            ratio(runs),
            unit="time",
            at_least=5.0,
            peer="ten detectors in one pass",
            note=_noted(note, runs),
        )
    ]


def _noted(note: str, runs: list) -> str:
    return f"{note}; processor time {ratio(runs, 'processor_seconds').median:.3f}"
