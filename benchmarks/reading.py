"""The cost of reading every layer, and of reading half of them, against a plain forward pass."""

from collections.abc import Callable
from typing import Any

import torch

import offkey
from offkey.data import pack
from offkey.passes import budget_for
from offkey.stats import Moments
from offkey.tasks import get_task

from ._timing import Spent, interleaved, measured, ratio, row
from .settings import Settings

__all__ = ["half", "harvest"]


class Passes:
    """The ways to run one model over the same packed batches."""

    def __init__(self, prompts: int) -> None:
        self.model = offkey.load("smollm2-135m-instruct")
        texts = get_task("comparison").make(0).train.take(range(prompts))
        self.batches = pack(
            texts, self.model.tokenizer, token_budget=budget_for(self.model.device)
        )
        self.tokens = sum(batch.inputs["input_ids"].numel() for batch in self.batches)
        self.every = self.model.sites_at("resid_post.*")
        self.middle = self.model.sites_at(f"resid_post.{(self.model.n_blocks or 0) // 2 - 1}")

    def plain(self) -> None:
        """The forward pass alone, with logits of the last token."""
        with torch.inference_mode():
            for batch in self.batches:
                self.model.forward(batch, logits_to_keep=1)

    def every_layer(self) -> None:
        """Every layer's output at the last token, and its mean and covariance."""
        moments = {site: Moments() for site in self.every}
        for batch in self.batches:
            for site, rows in self.model.read(batch, self.every).values.items():
                moments[site].update(rows, batch.ids)
        for kept in moments.values():
            kept.covariance()

    def first_half(self) -> None:
        """The middle layer's output, after which the pass can stop."""
        for batch in self.batches:
            self.model.read(batch, self.middle)

    @property
    def description(self) -> str:
        """What was run."""
        return (
            f"bundled model in {str(self.model.dtype).removeprefix('torch.')}, "
            f"{sum(map(len, self.batches))} prompts, {self.tokens} tokens"
        )


def harvest(settings: Settings) -> list[dict[str, Any]]:
    """The cost of every layer's output and covariance over the plain pass."""
    passes = Passes(settings.prompts)
    runs = _compared(passes.every_layer, passes.plain, settings.pairs)
    note = f"{passes.description}; processor time {ratio(runs, 'processor_seconds').median:.3f}"

    return [
        row(
            "read every resid_post and keep a covariance a layer",
            ratio(runs),
            unit="time",
            at_most=1.10,
            peer="plain forward pass",
            note=note,
        )
    ]


def half(settings: Settings) -> list[dict[str, Any]]:
    """The cost of reading the middle layer, as a share of the full pass."""
    passes = Passes(settings.prompts)
    runs = _compared(passes.first_half, passes.plain, settings.pairs)
    note = f"{passes.description}; processor time {ratio(runs, 'processor_seconds').median:.3f}"

    return [
        row(
            "read from the first half of the layers only",
            ratio(runs),
            unit="time",
            at_most=0.6,
            peer="plain forward pass",
            note=note,
        )
    ]


def _compared(
    a: Callable[[], None], b: Callable[[], None], pairs: int
) -> list[tuple[Spent, Spent]]:
    a()
    b()

    return interleaved(lambda: measured(a), lambda: measured(b), pairs)
