"""Features of the output alone: black-box baselines that every internal feature must beat."""

from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import check_choice
from offkey.features.feature import Feature
from offkey.models import Model, Reading, Site, choice_logits, preferred_answer
from offkey.passes import Plan

__all__ = ["Energy", "Entropy", "MaxProbability", "OwnAnswerLoss"]

LOGITS = Site("logits")
Over = Literal["choices", "vocabulary"]


class OutputFeature(Feature):
    """One number of the distribution over the next token."""

    def plan(self, model: Model) -> Plan:
        """Needs the logits at the last token."""
        return Plan(logits=True)

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits."""
        return (LOGITS,)

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The number of each prompt, as a vector of length one."""
        if reading.logits is None:
            raise TypeError(f"{self.name} was given a reading without logits")

        return {LOGITS: self.number(reading.logits.float(), reading)[:, None].float()}

    @abstractmethod
    def number(
        self, logits: Float[Tensor, "batch vocab"], reading: Reading
    ) -> Float[Tensor, " batch"]:
        """The number itself."""


class MaxProbability(OutputFeature):
    """Probability of the likeliest next token."""

    name: ClassVar[str] = "max-probability"

    def number(
        self, logits: Float[Tensor, "batch vocab"], reading: Reading
    ) -> Float[Tensor, " batch"]:
        """Largest probability of each row."""
        return logits.softmax(-1).amax(-1)


class Entropy(OutputFeature):
    """Entropy of the next token, in nats."""

    name: ClassVar[str] = "entropy"

    def number(
        self, logits: Float[Tensor, "batch vocab"], reading: Reading
    ) -> Float[Tensor, " batch"]:
        r"""Entropy :math:`-\sum_i p_i \ln p_i` of each row."""
        terms: Tensor = torch.special.entr(logits.softmax(-1))

        return terms.sum(-1)


class Energy(OutputFeature):
    r"""Energy :math:`-\log \sum_i e^{\ell_i}` of the logits, in nats; high where none is large.

    Args:
        over: ``"choices"``: the first tokens of a prompt's answer choices, or the whole vocabulary
            where it has none; ``"vocabulary"``: always the whole.

    Raises:
        BadValue: ``over`` is neither.

    References:
        Liu et al., 2020, eq. 4. https://arxiv.org/abs/2010.03759
    """

    name: ClassVar[str] = "energy"

    def __init__(self, over: Over = "choices") -> None:
        check_choice(f"feature {self.name}, over", over, get_args(Over))
        self.over = over

    def number(
        self, logits: Float[Tensor, "batch vocab"], reading: Reading
    ) -> Float[Tensor, " batch"]:
        """Energy of each row."""
        whole: Tensor = logits.logsumexp(-1)
        if reading.batch.choices is None or self.over == "vocabulary":
            return whole.neg()
        among = choice_logits(logits, reading.batch)
        has_choices = (among > -torch.inf).any(-1)
        chosen: Tensor = torch.where(has_choices, among.logsumexp(-1), whole)

        return chosen.neg()


class OwnAnswerLoss(OutputFeature):
    """Cross-entropy, in nats, of the answer that the model itself prefers.

    Where the prompt has choices, the preferred one among them, against the whole vocabulary;
    else the likeliest next token.
    """

    name: ClassVar[str] = "own-answer-loss"

    def number(
        self, logits: Float[Tensor, "batch vocab"], reading: Reading
    ) -> Float[Tensor, " batch"]:
        """Negative log-probability of each row's own answer."""
        own = preferred_answer(logits, reading.batch).token

        return logits.log_softmax(-1).gather(-1, own[:, None])[:, 0].neg()
