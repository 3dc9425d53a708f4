"""Whether heads move the answer as they move the log-odds of probes of the truth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch, Prompts, TensorPrompts
from offkey.errors import BadInput, BadValue
from offkey.features.attribution import Attribution
from offkey.features.feature import Feature, Learner
from offkey.models import ChoiceLogitDifference, Model, Pass, Reading, Site
from offkey.passes import Plan
from offkey.probes import (
    PENALTIES,
    CrossFittedProbe,
    LabelledRows,
    check_penalties,
    check_targets,
)

__all__ = ["ProbeShift"]

STRIDE = 4


class ProbeShift(Feature):
    r"""What ablating a head would do to the answer, less what it would do to a probe's.

    At each probed layer :math:`\ell` a logistic regression is trained on trusted prompts to tell
    the true answer. With :math:`z_h` the output of a head at the last token, in a block that
    :math:`\ell` comes after, and :math:`\bar z_h` its trusted mean, the vector of the layer holds

    .. math:: e_h(S) - e_h(p_\ell), \qquad
        e_h(f) = (\bar z_h - z_h) \cdot \frac{\partial f}{\partial z_h}

    for every such head, block by block. :math:`S` are the log odds of the second choice against
    the first by the model, :math:`p_\ell` those by the probe, both in nats. Where the answer is
    worked out from what the probe reads, the two shift alike.

    The model is run forward once, and backward at most once a probed layer: :math:`S` and
    :math:`p_\ell` go back together from layer :math:`\ell` on.

    Args:
        sites: residuals that are probed; every fourth block of the later half if left out.
        penalties: as in ``probe-trajectory``.
        folds: as there.

    Raises:
        BadInput: a trusted prompt has no target, or a prompt not exactly two choices.
        BadValue: a site is not the residual after a block, or the model has no heads.
        NotEnoughData: all trusted prompts have the same target, or too few have one of the two.

    References:
        EleutherAI, 2024: updates on mechanistic anomaly detection.
    """

    name: ClassVar[str] = "probe-shift"
    default_score: ClassVar[str] = "lof"
    learns = True
    heads_: dict[str, dict[str, Tensor]]
    probes_: dict[str, dict[str, Any]]

    def __init__(
        self,
        sites: str | tuple[str, ...] | None = None,
        penalties: Sequence[float] = PENALTIES,
        folds: int = 2,
    ) -> None:
        self.sites = sites
        self.penalties = tuple(float(value) for value in penalties)
        self.folds = folds
        check_penalties(self.penalties, folds, self.name)

    def plan(self, model: Model) -> Plan:
        """One forward pass, and one backward pass a probed layer."""
        Attribution("mean").plan(model)

        return Plan(
            extra_forwards=1,
            extra_backwards=len(self.sites_on(model)),
            needs=frozenset({"choices"}),
        )

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The residuals that are probed."""
        if self.sites is None:
            blocks = model.n_blocks or 0
            return model.sites_at([f"resid_post.{n}" for n in range(blocks // 2, blocks, STRIDE)])
        sites = model.sites_at(self.sites)
        for site in sites:
            if site.kind != "resid_post":
                raise BadValue(
                    "it is not the residual after a block",
                    where=f"site {site}",
                    mend="Use resid_post.* or some of them",
                )

        return sites

    def learning_plan(self, model: Model) -> Plan:
        """The heads and the residuals, of trusted prompts whose true answer is known."""
        sites = self.sites_on(model)

        return Plan(reads=(*_upstream(model, sites), *sites), needs=frozenset({"target"}))

    def check_trusted(self, prompts: Prompts | TensorPrompts) -> None:
        """Refuses trusted prompts without a target, or with one and the same.

        Raises:
            BadInput: one has no target, or one beyond the second choice.
            NotEnoughData: all have the same target.
        """
        check_targets(prompts, self.name, self.folds)

    def learner(self, model: Model) -> Learner:
        """Takes the mean of each head and trains a probe at each residual."""
        labelled = LabelledRows(self.name, self.folds)
        effects = Attribution("mean")
        means = effects.learner(model)
        next(means)
        while (reading := (yield)) is not None:
            heads = {site: x for site, x in reading.values.items() if site.kind == "z"}
            means.send(replace(reading, values=heads))
            probed = {site: x for site, x in reading.values.items() if site.kind != "z"}
            labelled.add(replace(reading, values=probed))
        next(means, None)
        probes = labelled.probes(self.penalties)
        self.heads_ = effects.usual_
        self.probes_ = {site: probe.state() for site, probe in probes.items()}

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """Differences of effects of all heads before each probed residual.

        Raises:
            BadInput: a prompt has not exactly two choices.
            NonFinite: NaN or infinity in the logits or a gradient.
        """
        self.need_learned()
        _check_two_choices(reading.batch, self.name)
        sites = self.sites_on(model)
        heads = _upstream(model, sites)
        with model.passing(reading.batch, graph=True) as run:
            values = run.run((*heads, *sites), logits=True).values
            # All that a head does to the answer goes through every later residual.
            to_answer = run.gradients(ChoiceLogitDifference(), sites)
            shifts = {}
            for site in sites:
                before = {head: values[head] for head in heads if _is_before(head, site)}
                grads = self._gradients(run, site, tuple(before), to_answer[site])
                effects = self._effects(model, Reading(run.batch, before, grads))
                shifts[site] = torch.cat([effects[head] for head in before], dim=1)

        return shifts

    def _gradients(
        self, run: Pass, site: Site, heads: Sequence[Site], to_answer: Tensor
    ) -> dict[Site, Tensor]:
        """Gradients, at the heads, of the answer's log odds less those by the probe of a site."""
        probe = CrossFittedProbe.from_state(self.probes_[str(site)])
        difference = to_answer.clone()
        difference[:, -1] -= probe.weights(run.batch.ids).to(difference)
        grads = run.gradients(run.tensors[site], heads, difference)

        return {head: grad[:, -1] for head, grad in grads.items()}

    def _effects(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch head"]]:
        """What ablating each head does, by the gradients of a reading."""
        attribution = Attribution("mean")
        attribution.usual_ = self.heads_

        return attribution.rows(model, reading)


def _upstream(model: Model, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The heads of all blocks up to the last of the sites."""
    last = max(site.block or 0 for site in sites)

    return model.sites_at([f"z.{block}" for block in range(last + 1)])


def _is_before(head: Site, site: Site) -> bool:
    assert head.block is not None
    assert site.block is not None

    return head.block <= site.block


def _check_two_choices(batch: Batch, who: str) -> None:
    counts = torch.zeros(len(batch)) if batch.choices is None else (batch.choices >= 0).sum(1)
    wrong = counts != 2
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise BadInput(
            f"it has {int(counts[row])} choices, and the shift is of two",
            where=f"feature {who}, prompt {batch.ids[row]}",
            mend="Give the prompts two choices",
        )
