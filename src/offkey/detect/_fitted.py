"""What a detector learned, and how rows are scored by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offkey.detect._combine import Scale
from offkey.features import Feature
from offkey.scores import Score

__all__ = ["ALL_SITES", "Fitted", "raw_scores", "row_name"]

Array = np.ndarray
ALL_SITES = "all sites"


@dataclass(frozen=True)
class Fitted:
    """What a detector learned.

    Attributes:
        model: fingerprint of the model it was fitted on.
        sites: the sites whose rows are scored.
        scores: one score a site, or one for :data:`ALL_SITES`.
        scale: centre and spread of each site's scores.
        calibration: combined scores of the calibration prompts, sorted.
        counts: trusted prompts used to fit, standardise and calibrate.
        left_out: sites without variation on trusted prompts, and why.
        pool: ids of the pool's prompts; empty where none was used.
        reason: why nothing could be learned; such a detector gives no scores.
    """

    model: str
    sites: tuple[str, ...]
    scores: Mapping[str, Score]
    scale: Scale
    calibration: Float64[Array, " n"]
    counts: Mapping[str, int]
    left_out: Mapping[str, str]
    pool: frozenset[str] = frozenset()
    reason: str = ""

    @classmethod
    def nothing(cls, model: str, counts: Mapping[str, int], reason: str) -> Self:
        """What a detector is left with that could not learn."""
        none = np.empty(0)

        return cls(model, (), {}, Scale(none, none), none, counts, {}, reason=reason)


def row_name(feature: Feature, site: str) -> str:
    """What a feature's rows at a site are called in the record of a pass.

    Features that differ only in the sites they were given name the same rows, unless they learn
    something from these sites first.
    """
    settings = {
        name: value
        for name, value in sorted(feature.settings().items())
        if (name != "sites" or feature.learns) and isinstance(value, str | int | float | list)
    }
    told = ",".join(f"{name}={value}" for name, value in settings.items())

    return f"{feature.name}({told})|{site}"


def raw_scores(
    scores: Mapping[str, Score], columns: Mapping[str, Float[Tensor, "n d"]]
) -> Float64[Array, "n sites"]:
    """Scores rows site by site, or all sites at once; NaN where a prompt lacks a row."""
    known = ~torch.stack([x.isnan().any(dim=1) for x in columns.values()]).any(dim=0)
    out = np.full((len(known), len(scores)), np.nan)
    given = {site: x[known] for site, x in columns.items()}
    if bool(known.any()):
        for place, (site, score) in enumerate(scores.items()):
            told = score(given) if site == ALL_SITES else score(given[site])
            out[known.numpy(), place] = told.double().numpy()

    return out
