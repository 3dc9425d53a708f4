"""Features of the prompt alone, without the model: baselines for surface novelty."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue
from offkey.features.feature import Feature
from offkey.models import Model, Reading, Site
from offkey.passes import Plan

__all__ = ["BagOfWords", "Length"]

INPUT = Site("embed")
PRIME = 2_147_483_647


class BagOfWords(Feature):
    """Counts of tokens, hashed into a fixed number of bins; the model is not run.

    Args:
        bins: length of the vector.
    """

    name: ClassVar[str] = "bag-of-words"

    def __init__(self, bins: int = 256) -> None:
        self.bins = bins

    def plan(self, model: Model) -> Plan:
        """Needs nothing of the model.

        Raises:
            BadValue: no bins, or a model that does not read tokens.
        """
        if self.bins < 1:
            raise BadValue("must be at least 1", where=f"feature {self.name}, bins")
        _tokens_needed(self, model)
        return Plan()

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The input."""
        return (INPUT,)

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """Count of each bin; padding is not counted."""
        tokens, mask = reading.batch.inputs["input_ids"], reading.batch.mask
        bins = (tokens.long() * 48_271 % PRIME) % self.bins
        weight = torch.ones_like(tokens) if mask is None else mask
        counts = torch.zeros(len(tokens), self.bins, device=tokens.device)
        return {INPUT: counts.scatter_add_(1, bins, weight.float())}


class Length(Feature):
    """Number of tokens of the prompt; the model is not run."""

    name: ClassVar[str] = "length"

    def plan(self, model: Model) -> Plan:
        """Needs nothing of the model."""
        _tokens_needed(self, model)
        return Plan()

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The input."""
        return (INPUT,)

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """Tokens of each prompt."""
        tokens, mask = reading.batch.inputs["input_ids"], reading.batch.mask
        count = torch.ones_like(tokens) if mask is None else mask
        return {INPUT: count.sum(-1, keepdim=True).float()}


def _tokens_needed(feature: Feature, model: Model) -> None:
    if model.tokenizer is None:
        raise BadValue(
            "counts tokens, and this model reads none",
            where=f"feature {feature.name}",
            mend="Use activations",
        )
