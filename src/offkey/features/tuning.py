"""How much a prompt's answer changes when a copy of the model is tuned on trusted prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from offkey.data import Batch
from offkey.errors import BadInput, BadValue, Mismatch, NonFinite, check_choice
from offkey.features._sample import TrustedSample, joined
from offkey.features.feature import Feature, Learner
from offkey.models import (
    KLToReference,
    Model,
    Reading,
    Site,
    choice_logits,
    last_logits,
    preferred_answer,
)
from offkey.passes import Plan
from offkey.training import Adapter, TrainingSettings, attach, train

__all__ = ["TunedDivergence"]

LOGITS = Site("logits")
LOW = -1e30
"""Logit of a choice that a prompt does not have."""


class TunedDivergence(Feature):
    r"""Divergence of the model's answer from that of a copy tuned on trusted prompts.

    .. math:: D\big(p(\cdot \mid x) \,\|\, p_{\mathrm{tuned}}(\cdot \mid x)\big)

    in nats, at the last token. The copy is the model with a LoRA adapter that was trained to give
    the answers which the model itself gives to trusted prompts; no labels are used.

    Training also makes the model surer of what it is trained on, so that prompts like the trusted
    ones may move more than others. The default score takes what is unusual on either side;
    ``exceedance`` is the published reading, by which large divergences alone are anomalous.

    Args:
        over: the whole ``"vocabulary"``, or the prompt's ``"choices"`` alone.
        steps: of training.
        rate: learning rate.
        batch: trusted prompts a step.
        rank: of the adapter.
        trusted: how many trusted prompts are tuned on, at most.
        seed: of the adapter and of the order of prompts.

    References:
        EleutherAI and cupbearer, 2024 (fine-tuning on trusted data as a detector).
        Hu et al., 2021 (LoRA). https://arxiv.org/abs/2106.09685
    """

    name: ClassVar[str] = "tuned-divergence"
    default_score: ClassVar[str] = "mahalanobis"
    learns = True
    adapter_: dict[str, Tensor]

    def __init__(
        self,
        over: Literal["vocabulary", "choices"] = "vocabulary",
        steps: int = 40,
        rate: float = 1e-3,
        batch: int = 8,
        rank: int = 4,
        trusted: int = 512,
        seed: int = 0,
    ) -> None:
        check_choice(f"feature {self.name}, over", over, ("vocabulary", "choices"))
        if min(steps, batch, rank, trusted) < 1 or not rate > 0:
            raise BadValue(
                "needs a step, a prompt, a rank and a rate above 0", where=f"feature {self.name}"
            )
        self.over, self.steps, self.rate, self.batch = over, steps, rate, batch
        self.rank, self.trusted, self.seed = rank, trusted, seed

    def plan(self, model: Model) -> Plan:
        """One pass of the model and one of the copy.

        Raises:
            BadValue: no linear map that an adapter could be put on.
        """
        _maps(model, self.name)
        needs: frozenset[Any] = frozenset({"choices"} if self.over == "choices" else ())

        return Plan(extra_forwards=2, needs=needs)

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits."""
        return (LOGITS,)

    def learner(self, model: Model) -> Learner:
        """Keeps trusted prompts and tunes the copy on them; the model is afterwards as it was.

        Raises:
            NotEnoughData: there are no trusted prompts.
            NonFinite: the training diverged; names the step and the loss.
        """
        sample = TrustedSample(self.name, self.trusted)
        while (reading := (yield)) is not None:
            sample.add(reading.batch)
        self.adapter_ = self._tuned_on(model, sample.rows())

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The divergence of each prompt.

        Raises:
            BadValue: no copy was tuned yet.
            BadInput: a prompt has fewer than two choices where they are needed.
            Mismatch: the copy was of a model with other maps.
        """
        self.need_learned()
        batch = reading.batch.to(model.device)
        self._check(batch)
        with self._attached(model) as adapter:
            own = {name: value.shape for name, value in adapter.parameters.items()}
            if own != {name: value.shape for name, value in self.adapter_.items()}:
                raise Mismatch(
                    "it was tuned on a model with other linear maps",
                    where=f"feature {self.name}",
                    mend="Let it learn anew",
                )
            with torch.no_grad():
                for name, value in adapter.parameters.items():
                    value.copy_(self.adapter_[name])
            after = self._answers(model, batch)
        before = self._answers(model, batch)
        divergence = KLToReference(dict(zip(batch.ids, before, strict=True)))(after, batch)

        return {LOGITS: divergence.clamp(min=0).float()[:, None]}

    def _tuned_on(self, model: Model, rows: list[Batch]) -> dict[str, Tensor]:
        with torch.no_grad():
            answers = [
                int(preferred_answer(_logits(model, row), row.to(model.device)).token)
                for row in rows
            ]
        wanted = torch.tensor(answers, device=model.device)

        def loss(numbers: list[int]) -> Tensor:
            logits = _logits(model, joined([rows[n] for n in numbers])).float()

            return cross_entropy(logits, wanted[numbers])

        settings = TrainingSettings(
            steps=self.steps, batch=min(self.batch, len(rows)), rate=self.rate, seed=self.seed
        )
        lengths = [0 if row.mask is None else row.mask.shape[1] for row in rows]
        with self._attached(model) as adapter, torch.enable_grad():
            try:
                train(adapter.parameters, loss, len(rows), settings, lengths=lengths)
            except NonFinite as error:
                raise NonFinite(
                    error.what, where=f"feature {self.name}, {error.where}", mend="Lower its rate"
                ) from error
            return {name: p.detach().cpu().clone() for name, p in adapter.parameters.items()}

    @contextmanager
    def _attached(self, model: Model) -> Iterator[Adapter]:
        """Puts a fresh adapter on the model and takes it off again."""
        maps = _maps(model, self.name)
        with attach(model.module, rank=self.rank, maps=maps, seed=self.seed) as adapter:
            for layer in adapter.layers.values():
                layer.to(model.device)
            yield adapter

    def _answers(self, model: Model, batch: Batch) -> Float[Tensor, "batch k"]:
        """The logits that are compared, in float64."""
        with torch.no_grad():
            logits = _logits(model, batch).double()
        if self.over == "vocabulary":
            return logits
        return choice_logits(logits, batch).clamp(min=LOW)

    def _check(self, batch: Batch) -> None:
        """Refuses prompts without choices where they are needed, before the model runs."""
        if self.over == "vocabulary":
            return
        counts = (
            [0] * len(batch) if batch.choices is None else (batch.choices >= 0).sum(1).tolist()
        )
        if min(counts) < 2:
            row = counts.index(min(counts))
            raise BadInput(
                f"it has {counts[row]} choices, and {self.name} over choices needs two",
                where=f"prompt {batch.ids[row]}",
                mend="Give the prompts a column 'choices'",
            )


def _logits(model: Model, batch: Batch) -> Float[Tensor, "batch vocab"]:
    return last_logits(model.forward(batch.to(model.device), logits_to_keep=1))


def _maps(model: Model, feature: str) -> tuple[str, ...]:
    """Last names of the linear maps that are adapted: those in blocks, or all without blocks."""
    parts: list[nn.Module] = [model.module]
    if model.wiring is not None:
        parts = [block.module for block in model.wiring.blocks]
    names = {
        path.rpartition(".")[2]
        for part in parts
        for path, inner in part.named_modules()
        if path and isinstance(inner, nn.Linear)
    }
    if not names:
        raise BadValue(
            "there is no linear map that an adapter could be put on",
            where=f"feature {feature}, model {model.name}",
            mend="Use functional, which needs none",
        )

    return tuple(sorted(names))
