"""One row of the table on one model: fitted, scored and kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from jaxtyping import Float64

from offkey.bench._entry import ALPHA
from offkey.detect import Detector, Mode, Scores
from offkey.models import Model
from offkey.passes import Plan
from offkey.storage import flatten, load_state, save_state

__all__ = ["Cell", "costs"]

Array = np.ndarray
KIND = "bench cell"
VERSION = 1


@dataclass(frozen=True)
class Cell:
    """What one row says of the test prompts on one model.

    Attributes:
        ids: ids of the test prompts.
        score: one a prompt.
        p_value: the same, conformal; NaN in transductive mode.
        mode: how the row stands to the test prompts.
        sites: names of the sites that were combined.
        by_site: standardised score of each site.
        calibration: standardised scores of the calibration prompts, by site.
        forwards: forward passes a prompt at scoring time.
        backwards: backward passes a prompt at scoring time.
        seconds: of reading trusted and test prompts, fitting and scoring; a pass that several
            features share counts in full; null where a part was interrupted.
        memory_mib: what the fitted detector holds, in MiB.
        reason: why there are no scores.
    """

    ids: tuple[str, ...]
    score: Float64[Array, " n"]
    p_value: Float64[Array, " n"]
    mode: Mode = "online"
    sites: tuple[str, ...] = ()
    by_site: Float64[Array, "n sites"] = field(default_factory=lambda: np.empty((0, 0)))
    calibration: Float64[Array, "m sites"] = field(default_factory=lambda: np.empty((0, 0)))
    forwards: int = 0
    backwards: int = 0
    seconds: float | None = None
    memory_mib: float | None = None
    reason: str = ""

    @classmethod
    def failed(cls, ids: Sequence[str], reason: str) -> Self:
        """No scores, and why."""
        none = np.full(len(ids), np.nan)

        return cls(tuple(ids), none, none, reason=reason)

    @classmethod
    def of(
        cls,
        detector: Detector,
        model: Model,
        told: Scores,
        calibration: Scores,
        seconds: float | None,
    ) -> Self:
        """What a fitted detector said."""
        forwards, backwards = costs(detector.feature.plan(model))

        return cls(
            told.ids, told.score, told.p_value, told.mode, told.sites, told.by_site,
            calibration.by_site, forwards, backwards, seconds, _held(detector),
        )  # fmt: skip

    @property
    def flagged(self) -> Array:
        """Whether the p-value is at most the false-alarm rate asked for."""
        return np.asarray(self.p_value <= ALPHA)

    def scores(self, name: str) -> Scores:
        """The same as a detector gives it."""
        reasons = dict.fromkeys(self.ids, self.reason) if self.reason else {}

        return Scores(name, self.mode, ALPHA, self.ids, self.score, self.p_value, self.sites,
                      self.by_site.reshape(len(self.ids), len(self.sites)), reasons)  # fmt: skip

    def save(self, folder: Path) -> None:
        """Keeps it."""
        save_state(folder, asdict(self), kind=KIND, version=VERSION)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The cell that :meth:`save` kept.

        Raises:
            Damaged: a file was truncated or edited.
        """
        state: dict[str, Any] = load_state(folder, KIND, version=VERSION)
        assert state["mode"] in get_args(Mode)

        return cls(**{**state, "ids": tuple(state["ids"]), "sites": tuple(state["sites"])})


def _held(detector: Detector) -> float | None:
    """MiB of what the scores of a detector learned; null where it is fitted to nothing."""
    if detector.fitted_ is None:
        return None
    states = [score.state() for score in detector.fitted.scores.values()]
    tensors = [tensor for state in states for tensor in flatten(state)[1].values()]

    return sum(tensor.nbytes for tensor in tensors) / 2**20


def costs(plan: Plan) -> tuple[int, int]:
    """Forward and backward passes a prompt at scoring time."""
    reads = bool(plan.reads or plan.gradients or plan.logits or plan.metric)

    return plan.extra_forwards + reads, plan.extra_backwards + bool(plan.gradients)
