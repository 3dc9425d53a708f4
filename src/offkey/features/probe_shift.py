"""Whether heads move the answer as they move what probes of the truth say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch, Prompts, TensorPrompts
from offkey.errors import BadInput, BadValue
from offkey.features._feature import Feature
from offkey.features._graph import Graph, run_graph
from offkey.features._probes import (
    PENALTIES,
    CrossProbe,
    LabelledRows,
    check_settings,
    check_trusted,
)
from offkey.features.attribution import Attribution
from offkey.models import ChoiceLogitDifference, Model, Reading, Site
from offkey.passes import Plan

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
    prepares: ClassVar[bool] = True

    def __init__(
        self,
        sites: str | tuple[str, ...] | None = None,
        penalties: Sequence[float] = PENALTIES,
        folds: int = 2,
    ) -> None:
        self.sites = tuple(sites) if isinstance(sites, list) else sites
        self.penalties = tuple(float(value) for value in penalties)
        self.folds = folds
        check_settings(self.penalties, folds, self.name)
        self._effects = Attribution("mean")
        self._seen: LabelledRows | None = None
        self._probes: dict[str, CrossProbe] = {}

    def plan(self, model: Model) -> Plan:
        """One forward pass, and one backward pass a probed layer."""
        self._effects.plan(model)

        return Plan(extra_forwards=1, extra_backwards=len(self.sites_on(model)),
                    needs=frozenset({"choices"}))  # fmt: skip

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The residuals that are probed."""
        if self.sites is None:
            blocks = model.n_blocks or 0
            return model.sites_at([f"resid_post.{n}" for n in range(blocks // 2, blocks, STRIDE)])
        sites = model.sites_at(self.sites)
        for site in sites:
            if site.kind != "resid_post":
                raise BadValue("it is not the residual after a block", where=f"site {site}",
                               mend="Use resid_post.* or some of them")  # fmt: skip

        return sites

    def preparation(self, model: Model) -> Plan:
        """The heads and the residuals, of trusted prompts whose true answer is known."""
        sites = self.sites_on(model)

        return Plan(reads=(*_upstream(model, sites), *sites), needs=frozenset({"target"}))

    def check_trusted(self, prompts: Prompts | TensorPrompts) -> None:
        """Refuses trusted prompts without a target, or with one and the same.

        Raises:
            BadInput: one has no target, or one beyond the second choice.
            NotEnoughData: all have the same target.
        """
        check_trusted(prompts, self.name, self.folds)

    def prepare_batch(self, reading: Reading) -> None:
        """Sums up heads, and keeps residuals and targets, of trusted prompts."""
        if self._seen is None:
            self._seen = LabelledRows(self.name, self.folds)
        heads = {site: x for site, x in reading.values.items() if site.kind == "z"}
        self._effects.prepare_batch(replace(reading, values=heads))
        probed = {site: x for site, x in reading.values.items() if site.kind != "z"}
        self._seen.add(replace(reading, values=probed))

    def prepared(self) -> None:
        """Takes the mean of each head and trains a probe at each residual."""
        seen, self._seen = self._seen or LabelledRows(self.name, self.folds), None
        self._effects.prepared()
        self._probes = seen.probes(self.penalties)

    def __call__(self, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """Nothing can be told from a reading alone."""
        raise TypeError(f"{self.name} runs the model itself; use extract")

    def extract(self, model: Model, batch: Batch) -> dict[Site, Float[Tensor, "batch d"]]:
        """Differences of effects of all heads before each probed residual.

        Raises:
            BadInput: a prompt has not exactly two choices.
            NonFinite: NaN or infinity in the logits or a gradient.
        """
        if not self._probes:
            raise BadValue("it has seen no trusted prompts yet", where=f"feature {self.name}",
                           mend="Prepare it first; fitting a detector does")  # fmt: skip
        _check_two_choices(batch, self.name)
        sites = self.sites_on(model)
        heads = _upstream(model, sites)
        with torch.inference_mode(False), torch.enable_grad():
            graph = run_graph(model, batch, (*heads, *sites))
            odds = ChoiceLogitDifference()(graph.logits, graph.batch)
            # All that a head does to the answer goes through every later residual.
            to_answer = graph.gradients(odds, sites)

            return {site: self._shift(graph, site, heads, to_answer[site]) for site in sites}

    def state(self) -> dict[str, Any]:
        """The settings, the mean of each head and the probe of each residual."""
        sites = list(self.sites) if isinstance(self.sites, tuple) else self.sites
        settings = {"sites": sites, "penalties": list(self.penalties),
                    "folds": self.folds}  # fmt: skip
        if not self._probes:
            return settings
        probes = {site: probe.state() for site, probe in self._probes.items()}

        return {**settings, "learned": {"heads": self._effects.state(), "probes": probes}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The feature that :meth:`state` described."""
        feature = cls(**{name: value for name, value in state.items() if name != "learned"})
        if learned := state.get("learned"):
            feature._effects = Attribution.from_state(learned["heads"])
            feature._probes = {
                site: CrossProbe.from_state(told) for site, told in learned["probes"].items()
            }

        return feature

    def _shift(
        self, graph: Graph, site: Site, heads: Sequence[Site], to_answer: Tensor
    ) -> Float[Tensor, "batch d"]:
        assert site.block is not None
        before = [head for head in heads if head.block is not None and head.block <= site.block]
        away = to_answer.clone()
        away[:, -1] -= self._probes[str(site)].weights(graph.batch.ids).to(away)
        grads = graph.gradients(graph.tensors[site], before, away)
        values = {head: graph.last(head) for head in before}
        last = {head: grad[:, -1] for head, grad in grads.items()}
        effects = self._effects(Reading(graph.batch, values, last))

        return torch.cat([effects[head] for head in before], dim=1)


def _upstream(model: Model, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The heads of all blocks up to the last of the sites."""
    last = max(site.block or 0 for site in sites)

    return model.sites_at([f"z.{block}" for block in range(last + 1)])


def _check_two_choices(batch: Batch, who: str) -> None:
    counts = torch.zeros(len(batch)) if batch.choices is None else (batch.choices >= 0).sum(1)
    wrong = counts != 2
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise BadInput(f"it has {int(counts[row])} choices, and the shift is of two",
                       where=f"feature {who}, prompt {batch.ids[row]}",
                       mend="Give the prompts two choices")  # fmt: skip
