"""All that is measured to explain some prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.detect import Detector, Scores, harvest, text_of
from offkey.dictionaries import Dictionary, dictionary_folder, load_dictionary
from offkey.errors import BadInput
from offkey.explain._instruments import Instrument, heads_on, latents_on, read_both
from offkey.explain._neighbours import nearest
from offkey.explain._swaps import swap_shares, variants
from offkey.explain.explanation import Detail, Swap
from offkey.features.sae import SparseLatents
from offkey.lenses import residual_sites, why_unreadable
from offkey.models import Model, Site
from offkey.passes import Rows, World

__all__ = ["AnyPrompts", "Pair", "Seen", "Task", "look"]

AnyPrompts = Prompts | TensorPrompts
Array = np.ndarray
Pair = tuple[Mapping[Site, Float[Tensor, "n d"]], Mapping[Site, Float[Tensor, "m d"]]]
"""Rows of the prompts, and of the trusted prompts."""


@dataclass(frozen=True)
class Task:
    """What is to be explained, by what, beside what."""

    detector: Detector
    model: Model
    prompts: AnyPrompts
    trusted: AnyPrompts
    detail: Detail
    folder: Path

    def rows(self, prompts: AnyPrompts, name: str) -> Rows:
        """What the detector's feature says of prompts."""
        folder = self.folder / name

        return harvest(self.model, prompts, [self.detector], folder, world=World(), quiet=True)[0]


@dataclass(frozen=True)
class Seen:
    """What was measured.

    Attributes:
        scores: of the prompts.
        shares: what each site adds to them.
        places, distances: the nearest trusted prompts, by number.
        heads: attribution of heads; empty where there is none.
        latents: latents; empty where there are none.
        streams: residual streams that the lens reads.
        dictionary: of the latents.
        swaps: exchanges of words that lower the score, by prompt.
        notes: why a part is missing.
    """

    scores: Scores
    shares: Float64[Array, "n sites"]
    places: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]
    heads: Pair
    latents: Pair
    streams: Pair
    dictionary: Dictionary | None
    swaps: Mapping[str, tuple[Swap, ...]]
    notes: Mapping[str, str]


def look(task: Task) -> Seen:
    """Measures all of it.

    Raises:
        BadInput: a prompt has no score.
    """
    detector, detail, model = task.detector, task.detail, task.model
    rows = task.rows(task.prompts, "prompts")
    scores = detector.score_rows(rows)
    for id, why in scores.reasons.items():
        raise BadInput(f"it has no score: {why}", where=f"prompt {id}",
                       mend="Explain prompts that have one")  # fmt: skip
    columns = detector.columns(rows), detector.columns(task.rows(task.trusted, "trusted"))
    places, distances = nearest(*columns, detail.nearest)
    heads, latents = (
        heads_on(model, task.prompts, task.trusted),
        latents_on(model, detail.dictionary),
    )
    unread = why_unreadable(model)
    read = () if unread else residual_sites(model, detector.fitted.sites)
    told, usual = read_both(model, task.prompts, task.trusted, (heads, latents), read)
    swaps, unswapped = _swaps(task, scores, places)
    reasons = {
        "sites": "" if scores.sites == detector.fitted.sites
        else "its score looks at all sites at once, so none has a share of its own",
        "heads": heads.why,
        "latents": latents.why,
        "read_outs": unread or ("" if read else "no site of the detector lies in a block"),
        "swaps": unswapped,
    }  # fmt: skip

    return Seen(
        scores=scores,
        shares=detector.combine.shares(scores.by_site),
        places=places,
        distances=distances,
        heads=(told.rows(heads), usual.rows(heads)),
        latents=(told.rows(latents), usual.rows(latents)),
        streams=(told.values(read), usual.values(read)),
        dictionary=_dictionary(latents),
        swaps=swaps,
        notes={part: why for part, why in reasons.items() if why},
    )


def _swaps(
    task: Task, scores: Scores, places: Int[Tensor, "n k"]
) -> tuple[dict[str, tuple[Swap, ...]], str]:
    """Exchanges that matter, and why there are none where that holds for all prompts."""
    if task.detail.redact:
        return {}, "texts are redacted"
    if not task.detail.swaps:
        return {}, "not asked for"
    if not isinstance(task.prompts, Prompts):
        return {}, "the prompts are arrays"
    trusted = list(zip(task.trusted.ids, text_of(task.trusted), strict=True))
    near = {
        id: [trusted[place] for place in row]
        for id, row in zip(task.prompts.ids, places.tolist(), strict=True)
    }
    made, changed = variants(task.prompts, near)
    if changed is None:
        return {}, ""
    found = task.detector.score_rows(task.rows(changed, "swaps")).score
    whole = dict(zip(scores.ids, scores.score.tolist(), strict=True))

    return swap_shares(made, found, whole, task.detail.top), ""


def _dictionary(latents: Instrument) -> Dictionary | None:
    feature = latents.feature
    if not isinstance(feature, SparseLatents):
        return None

    return load_dictionary(dictionary_folder(feature.dictionary))
