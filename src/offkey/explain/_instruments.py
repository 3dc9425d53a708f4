"""One pass for all that is read beside the detector's own feature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.errors import BadInput, BadValue, Mismatch, UnmappedModel
from offkey.features import Feature, get_feature, own_reading
from offkey.models import Model, Reading, Site
from offkey.passes import Plan, readings

__all__ = ["Instrument", "Readings", "heads_on", "latents_on", "read_both"]

AnyPrompts = Prompts | TensorPrompts


@dataclass(frozen=True)
class Instrument:
    """A feature used to explain, or why it cannot be.

    Attributes:
        feature: the feature; null where it does not apply.
        plan: what it reads.
        why: why it does not apply.
    """

    feature: Feature | None
    plan: Plan
    why: str = ""

    @classmethod
    def of(cls, model: Model, name: str, **settings: object) -> Self:
        """The feature of that name on a model, or why there is none."""
        try:
            feature = get_feature(name, **settings)
            return cls(feature, feature.plan(model))
        except (BadInput, BadValue, Mismatch, UnmappedModel) as error:
            return cls(None, Plan(), error.what)

    def own(self, reading: Reading) -> Reading:
        """What it asked for, of a reading made for several."""
        return own_reading(reading, self.plan)


def heads_on(model: Model, *prompts: AnyPrompts) -> Instrument:
    """Attribution of heads to the answer, or to the top token where a prompt has no choices."""
    has_choices = all("choices" in part and None not in part["choices"] for part in prompts)
    metric = "choices" if has_choices else "top"

    return Instrument.of(model, "attribution", direction="mean", metric=metric)


def latents_on(model: Model, dictionary: str | None) -> Instrument:
    """Latents of a dictionary; of the bundled one by default, where it was trained on the model.

    Raises:
        OffkeyError: a dictionary was named and cannot be used.
    """
    if dictionary is None:
        return Instrument.of(model, "sae")
    feature = get_feature("sae", dictionary=dictionary)

    return Instrument(feature, feature.plan(model))


@dataclass(frozen=True)
class Readings:
    """What was read of some prompts, kept on the processor.

    Attributes:
        model: that was read.
        ids: in the order of the prompts.
        parts: readings, in the order in which they were made.
    """

    model: Model
    ids: tuple[str, ...]
    parts: Sequence[Reading]

    @classmethod
    def of(cls, model: Model, prompts: AnyPrompts, plan: Plan) -> Self:
        """Reads prompts once."""
        return cls(model, tuple(prompts.ids), [_kept(r) for r in readings(model, prompts, plan)])

    def rows(self, instrument: Instrument) -> dict[Site, Float[Tensor, "n d"]]:
        """An instrument's rows, in the order of the prompts; none where it does not apply."""
        feature = instrument.feature
        if feature is None:
            return {}

        return self._gathered(
            [feature.rows(self.model, instrument.own(part)) for part in self.parts]
        )

    def values(self, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "n d"]]:
        """What passed at sites, in the order of the prompts."""
        if not sites:
            return {}

        return self._gathered([{s: p.values[s].flatten(1) for s in sites} for p in self.parts])

    def _gathered(self, parts: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
        made = [id for part in self.parts for id in part.batch.ids]
        place = {id: n for n, id in enumerate(made)}
        order = torch.tensor([place[id] for id in self.ids])

        return {site: torch.cat([part[site] for part in parts])[order].cpu() for site in parts[0]}


def read_both(
    model: Model,
    prompts: AnyPrompts,
    trusted: AnyPrompts,
    instruments: Sequence[Instrument],
    streams: tuple[Site, ...],
) -> tuple[Readings, Readings]:
    """Reads prompts and trusted prompts once each; instruments learn from the trusted ones.

    Args:
        model: the model.
        prompts: to be explained.
        trusted: to compare with.
        instruments: what is measured.
        streams: residual streams that the lens reads.
    """
    plan = Plan.union([*(one.plan for one in instruments), Plan(reads=streams)])
    usual, told = (Readings.of(model, part, plan) for part in (trusted, prompts))
    for one in instruments:
        if one.feature is not None and one.feature.learns:
            one.feature.learn(model, [one.own(part) for part in usual.parts])

    return told, usual


def _kept(reading: Reading) -> Reading:
    """What instruments need of a reading, off the accelerator."""
    return replace(
        reading,
        values={site: value.detach().cpu() for site, value in reading.values.items()},
        grads={site: value.detach().cpu() for site, value in reading.grads.items()},
        logits=None,
    )
