"""What is read beside the detector's own feature: heads, latents and residuals, in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.dictionaries import Dictionary, dictionary_folder, load_dictionary
from offkey.errors import BadInput, BadValue, Mismatch, UnmappedModel
from offkey.explain.explanation import HeadShare, LatentShare
from offkey.features import Feature, get_feature, own_reading
from offkey.features.sae import SparseLatents
from offkey.lenses import promoted_tokens
from offkey.models import Model, Reading, Site
from offkey.passes import Plan, readings

__all__ = [
    "Instrument",
    "KeptReadings",
    "head_shares",
    "heads_on",
    "latent_shares",
    "latents_on",
    "read_both",
]

AnyPrompts = Prompts | TensorPrompts

TO_DEVIATION = 1.4826
"""Ratio of a normal law's standard deviation to its median absolute deviation."""

PROMOTED = 3
"""How many of the tokens that a latent raises are listed."""


@dataclass(frozen=True)
class Instrument:
    """A feature that explains, or why it does not apply.

    Attributes:
        feature: the feature; null where it does not apply.
        plan: what it reads.
        why: why it does not apply.
    """

    feature: Feature | None
    plan: Plan
    why: str = ""

    @classmethod
    def named(cls, model: Model, name: str, **settings: object) -> Self:
        """The feature of that name on a model, or why there is none."""
        try:
            feature = get_feature(name, **settings)
            return cls(feature, feature.plan(model))
        except (BadInput, BadValue, Mismatch, UnmappedModel) as error:
            return cls(None, Plan(), error.what)

    @property
    def dictionary(self) -> Dictionary | None:
        """The dictionary of its latents, where it reads one."""
        if not isinstance(self.feature, SparseLatents):
            return None

        return load_dictionary(dictionary_folder(self.feature.dictionary))


@dataclass(frozen=True)
class KeptReadings:
    """What was read of some prompts, kept on the processor.

    Attributes:
        model: the model that was read.
        ids: ids in the order of the prompts.
        parts: readings, in the order in which they were made.
    """

    model: Model
    ids: tuple[str, ...]
    parts: Sequence[Reading]

    @classmethod
    def read(cls, model: Model, prompts: AnyPrompts, plan: Plan) -> Self:
        """Reads prompts once."""
        parts = [_on_processor(reading) for reading in readings(model, prompts, plan)]

        return cls(model, tuple(prompts.ids), parts)

    def rows(self, instrument: Instrument) -> dict[Site, Float[Tensor, "n d"]]:
        """An instrument's rows, in the order of the prompts; none where it does not apply."""
        feature, plan = instrument.feature, instrument.plan
        if feature is None:
            return {}

        return self._joined(
            [feature.rows(self.model, own_reading(part, plan)) for part in self.parts]
        )

    def values(self, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "n d"]]:
        """What passed at sites, in the order of the prompts."""
        if not sites:
            return {}

        return self._joined([{s: p.values[s].flatten(1) for s in sites} for p in self.parts])

    def _joined(self, parts: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
        read = [id for part in self.parts for id in part.batch.ids]
        place = {id: n for n, id in enumerate(read)}
        order = torch.tensor([place[id] for id in self.ids])

        return {site: torch.cat([part[site] for part in parts])[order].cpu() for site in parts[0]}


def heads_on(model: Model, *prompts: AnyPrompts) -> Instrument:
    """Attribution of heads to the answer, or to the top token where a prompt has no choices."""
    has_choices = all("choices" in part and None not in part["choices"] for part in prompts)
    metric = "choices" if has_choices else "top"

    return Instrument.named(model, "attribution", direction="mean", metric=metric)


def latents_on(model: Model, dictionary: str | None) -> Instrument:
    """Latents of a dictionary; of the bundled one by default, where it was trained on the model.

    Raises:
        OffkeyError: a dictionary was named and cannot be used.
    """
    if dictionary is None:
        return Instrument.named(model, "sae")
    feature = get_feature("sae", dictionary=dictionary)

    return Instrument(feature, feature.plan(model))


def read_both(
    model: Model,
    prompts: AnyPrompts,
    trusted: AnyPrompts,
    instruments: Sequence[Instrument],
    residuals: tuple[Site, ...],
) -> tuple[KeptReadings, KeptReadings]:
    """Reads prompts and trusted prompts once each; instruments learn from the trusted ones.

    Args:
        model: the model.
        prompts: to be explained.
        trusted: to compare with.
        instruments: what is measured.
        residuals: sites that the lens reads.
    """
    plan = Plan.union([*(each.plan for each in instruments), Plan(reads=residuals)])
    usual = KeptReadings.read(model, trusted, plan)
    here = KeptReadings.read(model, prompts, plan)
    for each in instruments:
        if each.feature is not None and each.feature.learns:
            each.feature.learn(model, [own_reading(part, each.plan) for part in usual.parts])

    return here, usual


def head_shares(
    effects: Mapping[Site, Float[Tensor, " head"]],
    trusted: Mapping[Site, Float[Tensor, "m head"]],
    count: int,
) -> tuple[HeadShare, ...]:
    """The heads whose effect on the answer differs most, in nats, from its trusted median.

    Args:
        effects: attribution of each head, by block.
        trusted: the same on trusted prompts.
        count: most heads listed.
    """
    shares = []
    for site, row in effects.items():
        x, usual = row.double().numpy(), trusted[site].double().numpy()
        centre = np.median(usual, axis=0)
        spread = TO_DEVIATION * np.median(np.abs(usual - centre), axis=0)
        shares += [
            HeadShare(
                site=str(site),
                head=head,
                effect=float(x[head]),
                usual=float(centre[head]),
                standardised=_ratio(x[head] - centre[head], spread[head]),
            )
            for head in range(len(x))
        ]

    return tuple(sorted(shares, key=lambda share: -abs(share.effect - share.usual))[:count])


def latent_shares(
    model: Model,
    dictionary: Dictionary,
    active: Float[Tensor, " latent"],
    trusted: Float[Tensor, "m latent"],
    *,
    rare: float,
    count: int,
) -> tuple[LatentShare, ...]:
    """Latents active here and on few trusted prompts or none, the rarest first.

    Args:
        model: the model, through which a latent's direction is read out.
        dictionary: the latents' dictionary.
        active: latents of the prompt.
        trusted: latents of trusted prompts.
        rare: largest share of trusted prompts.
        count: most latents listed.
    """
    often = (trusted > 0).double().mean(0)
    latents = ((active > 0) & (often <= rare)).nonzero()[:, 0].tolist()
    latents = sorted(latents, key=lambda n: (float(often[n]), -float(active[n])))[:count]
    directions = dictionary.decoder[torch.tensor(latents, dtype=torch.long)].cpu()
    promoted = promoted_tokens(model, directions, PROMOTED)

    return tuple(
        LatentShare(
            site=dictionary.site,
            latent=n,
            activation=float(active[n]),
            trusted=float(often[n]),
            promotes=tokens,
        )
        for n, tokens in zip(latents, promoted, strict=True)
    )


def _ratio(difference: float, spread: float) -> float | None:
    return float(difference / spread) if spread > 0 else None


def _on_processor(reading: Reading) -> Reading:
    """What instruments need of a reading, off the accelerator."""
    return replace(
        reading,
        values={site: value.detach().cpu() for site, value in reading.values.items()},
        grads={site: value.detach().cpu() for site, value in reading.grads.items()},
        logits=None,
    )
