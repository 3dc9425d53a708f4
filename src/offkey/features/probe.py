"""What probes of the true answer, trained on trusted prompts, say of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.errors import BadValue
from offkey.features._feature import Feature
from offkey.features._probes import (
    PENALTIES,
    CrossProbe,
    LabelledRows,
    check_settings,
    check_trusted,
)
from offkey.models import Model, Positions, Reading, Site
from offkey.passes import Plan

__all__ = ["ProbeTrajectory"]

LOGITS = Site("logits")


class ProbeTrajectory(Feature):
    r"""Log-odds of the true answer by a probe at each layer, as one vector.

    At each site a logistic regression is trained on trusted prompts: their activations, and their
    own column ``target``, which says whether the second of two choices is true. A prompt's vector
    holds what each probe says of it: :math:`w_l^\top h_l + b_l`, in nats, the second choice
    against the first. The targets of prompts that are scored are never looked at.

    Args:
        sites: names and ranges of sites.
        positions: tokens that are read, as in ``activations``.
        penalties: strengths of the L2 penalty on standardised activations, of which three-fold
            cross-validation takes one at each site.
        folds: probes at each site. The ids of prompts fall into as many folds, and each prompt is
            read by the probe that was trained without its fold, so that trusted prompts are read
            as new ones are; with 1, a single probe is trained on all, as published.

    Raises:
        BadInput: a trusted prompt has no target, or one beyond the second choice.
        NotEnoughData: all trusted prompts have the same target, or too few have one of the two.

    References:
        Mallen, Belrose, 2023. https://arxiv.org/abs/2312.01037
    """

    name: ClassVar[str] = "probe-trajectory"
    default_score: ClassVar[str] = "mahalanobis"
    prepares: ClassVar[bool] = True

    def __init__(
        self,
        sites: str | tuple[str, ...] = "resid_post.*",
        positions: Positions = "last",
        penalties: Sequence[float] = PENALTIES,
        folds: int = 2,
    ) -> None:
        self.sites = tuple(sites) if isinstance(sites, list) else sites
        self.positions = tuple(positions) if isinstance(positions, list) else positions
        self.penalties = tuple(float(value) for value in penalties)
        self.folds = folds
        check_settings(self.penalties, folds, self.name)
        self._seen: LabelledRows | None = None
        self._probes: dict[str, CrossProbe] = {}

    def plan(self, model: Model) -> Plan:
        """Reads the sites, and nothing else."""
        return Plan(reads=model.sites_at(self.sites), positions=self.positions)

    def preparation(self, model: Model) -> Plan:
        """The same, of trusted prompts whose true answer is known."""
        return replace(self.plan(model), needs=frozenset({"target"}))

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits."""
        return (LOGITS,)

    def check_trusted(self, prompts: Prompts | TensorPrompts) -> None:
        """Refuses trusted prompts without a target, or with one and the same.

        Raises:
            BadInput: one has no target, or one beyond the second choice.
            NotEnoughData: all have the same target.
        """
        check_trusted(prompts, self.name, self.folds)

    def prepare_batch(self, reading: Reading) -> None:
        """Keeps the activations and targets of trusted prompts."""
        if self._seen is None:
            self._seen = LabelledRows(self.name, self.folds)
        self._seen.add(reading)

    def prepared(self) -> None:
        """Trains a probe at each site."""
        seen, self._seen = self._seen or LabelledRows(self.name, self.folds), None
        self._probes = seen.probes(self.penalties)

    def __call__(self, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """What each probe says, as one vector a prompt."""
        if not self._probes:
            raise BadValue("it has seen no trusted prompts yet", where=f"feature {self.name}",
                           mend="Prepare it first; fitting a detector does")  # fmt: skip
        odds = [
            self._probes[str(site)](value.flatten(1), reading.batch.ids)
            for site, value in reading.values.items()
        ]

        return {LOGITS: torch.stack(odds, dim=1).float()}

    def state(self) -> dict[str, Any]:
        """The settings, and the probe of each site."""
        sites = list(self.sites) if isinstance(self.sites, tuple) else self.sites
        positions = list(self.positions) if isinstance(self.positions, tuple) else self.positions
        settings = {"sites": sites, "positions": positions, "penalties": list(self.penalties),
                    "folds": self.folds}  # fmt: skip
        learned = {site: probe.state() for site, probe in self._probes.items()}

        return {**settings, "learned": learned} if learned else settings

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The feature that :meth:`state` described."""
        feature = cls(**{name: value for name, value in state.items() if name != "learned"})
        feature._probes = {
            site: CrossProbe.from_state(told) for site, told in state.get("learned", {}).items()
        }

        return feature
