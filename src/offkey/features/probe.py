"""Log-odds of the true answer by probes that were trained on trusted prompts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.features.feature import Feature, Learner
from offkey.models import Model, Positions, Reading, Site
from offkey.passes import Plan
from offkey.probes import (
    PENALTIES,
    CrossFittedProbe,
    LabelledRows,
    check_penalties,
    check_targets,
)

__all__ = ["ProbeTrajectory"]

LOGITS = Site("logits")


class ProbeTrajectory(Feature):
    r"""Log-odds of the true answer by a probe at each layer, as one vector.

    At each site a logistic regression is trained on trusted prompts: their activations, and their
    column ``target``, which says whether the second of two choices is true. A prompt's vector
    holds the log-odds by each probe, :math:`w_l^\top h_l + b_l`, in nats, of the second choice
    against the first. The targets of prompts that are scored are never used.

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
    learns = True
    probes_: dict[str, dict[str, Any]]

    def __init__(
        self,
        sites: str | tuple[str, ...] = "resid_post.*",
        positions: Positions = "last",
        penalties: Sequence[float] = PENALTIES,
        folds: int = 2,
    ) -> None:
        self.sites, self.positions = sites, positions
        self.penalties = tuple(float(value) for value in penalties)
        self.folds = folds
        check_penalties(self.penalties, folds, self.name)

    def plan(self, model: Model) -> Plan:
        """Reads the sites, and nothing else."""
        return Plan(reads=model.sites_at(self.sites), positions=self.positions)

    def learning_plan(self, model: Model) -> Plan:
        """The same sites, of trusted prompts whose true answer is known."""
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
        check_targets(prompts, self.name, self.folds)

    def learner(self, model: Model) -> Learner:
        """Keeps activations and targets of trusted prompts, and trains a probe at each site."""
        labelled = LabelledRows(self.name, self.folds)
        while (reading := (yield)) is not None:
            labelled.add(reading)
        probes = labelled.probes(self.penalties)
        self.probes_ = {site: probe.state() for site, probe in probes.items()}

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The log-odds by each probe, as one vector a prompt."""
        self.need_learned()
        probes = {site: CrossFittedProbe.from_state(s) for site, s in self.probes_.items()}
        odds = [
            probes[str(site)](value.flatten(1), reading.batch.ids)
            for site, value in reading.values.items()
        ]

        return {LOGITS: torch.stack(odds, dim=1).float()}
