"""Activations at sites, unchanged."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offkey.features.feature import Feature
from offkey.models import Model, Positions, Reading, Site
from offkey.passes import Plan

__all__ = ["Activations"]


class Activations(Feature):
    """Values at sites, flattened to one vector per prompt and site.

    At the last prompt token by default, where a decoder gathers what it is about to say.

    Args:
        sites: names and ranges of sites, such as ``"resid_post.later"`` or
            ``"resid_post.*, z.4-8"``.
        positions: tokens that are read: ``"last"``, ``"mean"`` over the prompt, or offsets from
            the end, whose vectors are joined.
    """

    name: ClassVar[str] = "activations"
    default_score: ClassVar[str] = "knn-cosine"

    def __init__(
        self, sites: str | tuple[str, ...] = "resid_post.*", positions: Positions = "last"
    ) -> None:
        self.sites, self.positions = sites, positions

    def plan(self, model: Model) -> Plan:
        """Reads the sites, and nothing else."""
        return Plan(reads=model.sites_at(self.sites), positions=self.positions)

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The values at each site."""
        return {site: value.flatten(1).float() for site, value in reading.values.items()}
