"""Volumes at several cutoffs, on the same directions; and those of a language model on prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from offkey.data import Prompts, pack
from offkey.errors import check, check_choice
from offkey.models import Model
from offkey.volume.costs import Cost, KLCost
from offkey.volume.estimator import check_volume, estimate_volume
from offkey.volume.fisher import fisher_diagonal
from offkey.volume.measures import Measure
from offkey.volume.proposals import Diagonal, Proposal, Tilted, Uniform
from offkey.volume.result import VolumeResult
from offkey.volume.search import CrossingSearch

__all__ = ["VolumeSettings", "check_model_volume", "model_volume", "volume_curve"]

BUDGET = 512
"""Tokens of a batch, whose logits are in memory at once."""


def volume_curve(
    cost: Cost,
    cutoffs: Sequence[float],
    measure: Measure,
    *,
    proposal: Proposal | None = None,
    search: CrossingSearch | None = None,
    params: str | Sequence[str] = "*",
    n: int = 32,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
) -> list[VolumeResult]:
    """A volume for each cutoff, each by :func:`estimate_volume`.

    Args:
        cost: as there; the outputs at the anchor are computed once.
        cutoffs: in the cost's unit, all different.
        measure: as there.
        proposal: as there; a prior-damped one depends on the cutoff.
        search: as there.
        params: as there.
        n: number of rays, the same directions for each cutoff.
        seed: as there.
        out: a folder in which each cutoff gets a folder of its own, ``eps-…``.

    Raises:
        BadValue: there are no cutoffs, or one is given twice.
    """
    _check_cutoffs(cutoffs)

    return [
        estimate_volume(
            cost,
            eps,
            measure,
            proposal=proposal,
            search=search,
            params=params,
            n=n,
            seed=seed,
            out=None if out is None else Path(out) / f"eps-{eps:g}",
        )
        for eps in cutoffs
    ]


@dataclass(frozen=True)
class VolumeSettings:
    """How the volume around a language model is estimated.

    Attributes:
        measure: a Gaussian or plain volume.
        cutoffs: cutoffs of the mean KL, in nats per token.
        params: which weights move: shell-like patterns of names, separated by commas.
        rays: number of rays.
        tokens: whose KL counts: ``"all"`` tokens, or the ``"last"`` of each prompt.
        proposal: how directions are drawn: ``"uniform"``, by the ``"diagonal"`` of the model's
            Fisher information, or by that and ``"tilted"`` towards the centre of the measure.
        seed: seed of directions and of the Fisher diagonal.

    Raises:
        BadValue: a setting is not allowed.
    """

    measure: Measure
    cutoffs: tuple[float, ...] = (1e-2,)
    params: str = "*"
    rays: int = 32
    tokens: Literal["all", "last"] = "all"
    proposal: Literal["uniform", "diagonal", "tilted"] = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_cutoffs(self.cutoffs)
        check_choice("tokens", self.tokens, ("all", "last"))
        check_choice("proposal", self.proposal, ("uniform", "diagonal", "tilted"))


def model_volume(
    model: Model,
    prompts: Prompts,
    settings: VolumeSettings,
    *,
    out: str | PathLike[str] | None = None,
) -> list[VolumeResult]:
    """Estimates how much of a language model's weight space answers prompts as the model does.

    Args:
        model: a language model, in float32 or better.
        prompts: the prompts whose answers must stay.
        settings: measure, cutoffs and the rest.
        out: a folder that keeps each ray; given again, a stopped run continues there.

    Returns:
        A volume for each cutoff, in order.

    Raises:
        OffkeyError: as :func:`estimate_volume`.
    """
    cost, _ = _prepared(model, prompts, settings)

    return volume_curve(
        cost,
        settings.cutoffs,
        settings.measure,
        proposal=_proposal(settings, cost),
        params=settings.params,
        n=settings.rays,
        seed=settings.seed,
        out=out,
    )


def check_model_volume(model: Model, prompts: Prompts, settings: VolumeSettings) -> dict[str, Any]:
    """Checks what :func:`model_volume` would run, without running it.

    Returns:
        The number of prompts, and what :func:`check_volume` returns for the last cutoff.
    """
    return {"prompts": len(prompts), **_prepared(model, prompts, settings)[1]}


def _prepared(
    model: Model, prompts: Prompts, settings: VolumeSettings
) -> tuple[KLCost, dict[str, Any]]:
    """The cost, and what is to be run, both checked at every cutoff."""
    batches = pack(
        prompts, model.tokenizer, token_budget=BUDGET, context_length=model.context_length
    )
    cost = KLCost(model, batches, tokens=settings.tokens)
    checked = [
        check_volume(cost, eps, settings.measure, params=settings.params, n=settings.rays)
        for eps in settings.cutoffs
    ]

    return cost, checked[-1]


def _proposal(settings: VolumeSettings, cost: KLCost) -> Proposal:
    if settings.proposal == "uniform":
        return Uniform()
    diagonal = Diagonal(fisher_diagonal(cost, settings.params, seed=settings.seed))

    return diagonal if settings.proposal == "diagonal" else Tilted(diagonal)


def _check_cutoffs(cutoffs: Sequence[float]) -> None:
    check(
        bool(cutoffs) and len(set(cutoffs)) == len(cutoffs),
        f"{list(cutoffs)} are not different cutoffs",
        where="eps",
    )
