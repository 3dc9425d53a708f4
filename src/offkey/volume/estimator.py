"""Estimates of volumes: rays, their crossings and their weights, resumed ray by ray.

One volume of any cost, a curve of them over several cutoffs, or those of a language model.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from offkey.data import Prompts, pack
from offkey.errors import InvalidAnchor, NonFiniteCost, RadiusNotFound, check, check_choice
from offkey.models import Model
from offkey.storage import RunFolder, ShardFolder, write_json
from offkey.volume.costs import Cost
from offkey.volume.measures import LebesgueMeasure, Measure
from offkey.volume.model_costs import KLCost, fisher_diagonal
from offkey.volume.proposals import Diagonal, Proposal, Tilted, Uniform
from offkey.volume.rays import Noise, Ray, RayStep, Sampler, Space, check_precision
from offkey.volume.result import LEAST_ESS, VolumeResult
from offkey.volume.search import STATUSES, Crossings, CrossingSearch, Guide, find_crossings

__all__ = [
    "AnchorNotMinimum",
    "LowESS",
    "VolumeSettings",
    "check_model_volume",
    "check_volume",
    "estimate_volume",
    "model_volume",
    "volume_curve",
]

Array = np.ndarray
Columns = dict[str, Array]
GUIDES = 5
"""Rays followed one by one; all later ones begin at the median of their crossings."""
BUDGET = 512
"""Tokens of a batch of a language model, whose logits are in memory at once."""


class LowESS(UserWarning):
    """So few rays carry the estimate that it is only a lower bound."""


class AnchorNotMinimum(UserWarning):
    """The cost falls below its value at the anchor."""


def estimate_volume(
    cost: Cost,
    eps: float,
    measure: Measure,
    *,
    proposal: Proposal | None = None,
    search: CrossingSearch | None = None,
    params: str | Sequence[str] = "*",
    n: int = 32,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
) -> VolumeResult:
    r"""Estimates how much of parameter space behaves as the anchor does.

    The volume of :math:`S = \{\delta : C(t\delta) < \epsilon\ \forall\, 0 \le t \le 1\}` by rays:
    a direction v of density q is followed to the first radius R at which the cost reaches the
    cutoff, and weighs :math:`\int_0^R r^{D-1} m(\theta + r v)\,dr / q(v)`, whose mean is the
    volume. Directions come from seeds, so the only thing of the parameters' size in memory
    is a copy of the weights; they are restored bit by bit, also after an error.

    Args:
        cost: model and data, and how its outputs are compared with the anchor's.
        eps: the cutoff, in the cost's unit (nats).
        measure: :class:`GaussianMeasure` or :class:`LebesgueMeasure`.
        proposal: distribution of the directions; uniform by default.
        search: how to search for a crossing.
        params: which parameters move: shell-like patterns of their names.
        n: number of rays.
        seed: seed of all directions.
        out: a folder that keeps each ray; given again, a stopped run continues there.

    Raises:
        BadValue: the cutoff is not positive, or there are no rays.
        NoMatchingParameters: a pattern matches none.
        InvalidAnchor: the cost of no perturbation is not zero.
        NonFiniteCost: the anchor's cost, or that of every ray, is NaN or infinite.
        RadiusNotFound: no ray crosses the cutoff; or one never does, under a flat measure.
        PrecisionTooLow: the dtype of the weights is too coarse for the steps.
        Mismatch: the folder holds another run.

    References:
        Scherlis, Belrose, 2025. https://arxiv.org/abs/2501.18812
    """
    proposal, search = proposal or Uniform(), search or CrossingSearch()
    space = _checked_space(cost, eps, params, n)
    sampler = proposal.sampler(space, eps, measure.width)
    meta = _meta(cost, eps, measure, proposal, search, space, seed)
    estimate = _Estimate(cost, eps, measure, sampler, search, seed)
    if out is None:
        columns = estimate.run(n, None)
    else:
        with _RayFolder.open(out, {**meta, "n": n, "seed": seed}) as folder:
            columns = estimate.run(n, folder)
    result = _result(columns, space, measure, cost, meta)
    if out is not None:
        folder.finish(result.summary(), result.rows())

    return result


def check_volume(
    cost: Cost, eps: float, measure: Measure, *, params: str | Sequence[str] = "*", n: int = 32
) -> dict[str, Any]:
    """Checks the settings of :func:`estimate_volume`, and raises its errors, without running it.

    Returns:
        The parameters that move, their number, the cutoff, the measure, and the number of rays.
    """
    space = _checked_space(cost, eps, params, n)

    return {
        "params": list(space.names),
        "dimensions": space.dimensions,
        "eps": eps,
        "measure": _named(measure),
        "rays": n,
    }


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


def _checked_space(cost: Cost, eps: float, params: str | Sequence[str], n: int) -> Space:
    check(bool(np.isfinite(eps) and eps > 0), f"{eps} is not a positive number", where="eps")
    check(n >= 1, f"{n} rays", where="n", mend="Give at least 1, better 32")
    check(
        cost.is_single,
        "it is one number for each example",
        where="cost",
        mend="Use reduce='mean', or radii() for examples",
    )
    space = Space.of(cost.parameters, params)
    cost.check_moving(space.names)

    return space


class _Estimate:
    """One estimate in progress."""

    def __init__(
        self,
        cost: Cost,
        eps: float,
        measure: Measure,
        sampler: Sampler,
        search: CrossingSearch,
        seed: int,
    ) -> None:
        self.cost, self.eps, self.measure = cost, eps, measure
        self.sampler, self.search, self.seed = sampler, search, seed
        self.space = sampler.space

    def run(self, n: int, folder: "_RayFolder | None") -> Columns:
        """All rays; those stored in the folder are read, and the first ones guide the others."""
        blocks: list[Columns] = []
        guides: list[Guide] = []
        checked, done = False, 0
        while done < n:
            size = 1 if done < GUIDES else min(self.cost.block, n - done)
            block = folder.read(done) if folder is not None else None
            if block is None:
                if not checked:
                    self.check_anchor()
                    checked = True
                block = self.block(range(done, done + size), _median(guides))
                if folder is not None:
                    folder.write(done, block)
            blocks.append(block)
            done += len(block["direction"])
            if done <= GUIDES:
                guides += _guides(block)

        return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}

    def check_anchor(self) -> None:
        """Checks that the cost is zero where nothing is perturbed."""
        value = float(self.cost({})[0]) if self.cost.block == 1 else float(self._cost_of_zero()[0])
        check(
            bool(np.isfinite(value)),
            f"the cost at the anchor is {value}",
            where="cost",
            mend="Load the model in float32",
            error=NonFiniteCost,
        )
        check(
            abs(value) <= 1e-3 * self.eps,
            f"the cost of no perturbation is {value:.3g}, not 0",
            where="cost",
            mend="Subtract its value at the anchor",
            error=InvalidAnchor,
        )

    def _cost_of_zero(self) -> Float64[Array, " m"]:
        return self.cost.many(
            {name: torch.zeros_like(value)[None] for name, value in self.space.anchors.items()}
        )

    def block(self, directions: range, guide: Guide | None) -> Columns:
        """Follows some rays to their crossings and weighs them."""
        rays = [self.sampler.ray(Noise(self.seed, number)) for number in directions]
        evaluate = self._stacked(rays) if self.cost.block > 1 else self._single(rays)
        lengths = np.array([ray.length for ray in rays])
        slopes = np.array([ray.slope for ray in rays])
        limit = self.measure.reach(self.space.dimensions, slopes) / lengths
        start = self._starts(rays, lengths, guide)
        power = guide.power if guide else 2.0
        crossings = find_crossings(evaluate, start, power, limit, self.eps, self.search)
        self._check(crossings, rays)
        columns = self._weighted(crossings, lengths, slopes, rays)
        for ray in rays:
            ray.forget()

        return {"direction": np.array(directions), **columns}

    def _starts(self, rays: list[Ray], lengths: Array, guide: Guide | None) -> Array:
        if self.search.start == "jvp":
            curvature = np.array([self.cost.curvature(RayStep(ray, 1.0)) for ray in rays])
            if (curvature > 0).all():
                return np.asarray(np.sqrt(2 * self.eps / curvature))
        if guide is not None:
            return np.full(len(rays), guide.radius)
        width = self.measure.width
        if np.isinf(width):
            width = (self.space.squared / self.space.dimensions) ** 0.5 or 1.0

        return np.asarray(1e-2 * width * self.space.dimensions**0.5 / lengths)

    def _single(self, rays: list[Ray]) -> Any:
        def evaluate(rows: Int64[Array, " k"], t: Float64[Array, " k"]) -> Float64[Array, " k"]:
            costs = [
                float(self.cost(RayStep(rays[row], float(x)))[0])
                for row, x in zip(rows, t, strict=True)
            ]
            return np.array(costs)

        return evaluate

    def _stacked(self, rays: list[Ray]) -> Any:
        stacks = {name: torch.stack([ray.part(name) for ray in rays]) for name in self.space.names}

        def evaluate(rows: Int64[Array, " k"], t: Float64[Array, " k"]) -> Float64[Array, " k"]:
            return self.cost.many({name: _scaled(x[rows], t) for name, x in stacks.items()})

        return evaluate

    def _check(self, crossings: Crossings, rays: list[Ray]) -> None:
        infinite = crossings.status == "infinite"
        if isinstance(self.measure, LebesgueMeasure) and infinite.any():
            raise RadiusNotFound(
                "the cost never crosses the cutoff, so the volume is infinite",
                where=f"direction {rays[int(infinite.argmax())].noise}",
                mend="Use the Gaussian measure",
            )
        if self.cost.is_signed and (crossings.lowest < -self.search.rtol * self.eps).any():
            warnings.warn(
                f"the cost falls to {crossings.lowest.min():.3g}: the anchor is not a minimum",
                AnchorNotMinimum,
                stacklevel=4,
            )
        for row in (crossings.status == "ok").nonzero()[0][:1]:
            check_precision(RayStep(rays[row], float(crossings.radius[row])), self.space)

    def _weighted(
        self, crossings: Crossings, lengths: Array, slopes: Array, rays: list[Ray]
    ) -> Columns:
        radius = crossings.radius * lengths
        reach = self.measure.reach(self.space.dimensions, slopes)
        used = np.minimum(radius, reach)
        some = used > 0
        mass = np.full(len(rays), -np.inf)
        if some.any():
            mass[some] = self.measure.log_mass(
                self.space.dimensions, self.space.squared, slopes[some], used[some]
            )
        density = self.sampler.log_density(rays)

        return {
            "radius": radius,
            "cost": crossings.cost,
            "evaluated": crossings.evaluated * lengths,
            "power": crossings.power,
            "status": crossings.status,
            "evaluations": crossings.evals,
            "lowest": crossings.lowest,
            "length": lengths,
            "slope": slopes,
            "log_weight": mass - density,
        }


class _RayFolder:
    """The rays of one run on disk, a file for each block of them, then the summary.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.shards = ShardFolder(run.file("rays"), run.config)

    @classmethod
    def open(cls, path: str | PathLike[str], config: Mapping[str, Any]) -> Self:
        """A new folder, or the one of the same run.

        Raises:
            Mismatch: it holds another run; names the setting.
        """
        return cls(RunFolder.open(path, config))

    def __enter__(self) -> Self:
        self.run.__enter__()

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.run.__exit__(kind, error, trace)

    def read(self, number: int) -> Columns | None:
        """The stored block that begins with this ray, if there is one."""
        if not self.shards.file(number).exists():
            return None
        columns = {name: tensor.numpy() for name, tensor in self.shards.read(number).items()}
        columns["status"] = np.array(STATUSES)[columns["status"]]

        return columns

    def write(self, number: int, columns: Mapping[str, Array]) -> None:
        """Stores a block."""
        status = np.array([STATUSES.index(name) for name in columns["status"]])
        stored = {**columns, "status": status}
        self.shards.write(number, {name: torch.as_tensor(x) for name, x in stored.items()})

    def finish(self, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``rays.parquet`` and ``volume.json``."""
        self.run.write_table("rays", rows)
        write_json(self.run.file("volume.json"), dict(summary))


def _scaled(x: Tensor, t: Float64[Array, " k"]) -> Tensor:
    multiple = torch.as_tensor(t, dtype=x.dtype, device=x.device)

    return x * multiple.view(-1, *[1] * (x.ndim - 1))


def _guides(block: Columns) -> list[Guide]:
    """The crossings, as multiples of their directions."""
    return [
        Guide(float(block["radius"][row] / block["length"][row]), float(block["power"][row]))
        for row in (block["status"] == "ok").nonzero()[0]
    ]


def _median(guides: list[Guide]) -> Guide | None:
    """Where a ray begins: at the median of the first crossings."""
    if not guides:
        return None
    power = float(np.median([guide.power for guide in guides]))

    return Guide(
        float(np.median([guide.radius for guide in guides])), float(np.clip(power, 0.5, 8.0))
    )


def _meta(
    cost: Cost,
    eps: float,
    measure: Measure,
    proposal: Proposal,
    search: CrossingSearch,
    space: Space,
    seed: int,
) -> dict[str, Any]:
    fingerprint = cost.fingerprint()

    return {
        "eps": eps,
        "measure": _named(measure),
        "proposal": proposal.settings(),
        "search": asdict(search),
        "params": list(space.names),
        "dimensions": space.dimensions,
        "data": fingerprint.get("data"),
        "cost": fingerprint,
        "seed": seed,
    }


def _named(measure: Measure) -> dict[str, Any]:
    named: dict[str, Any] = {"name": measure.name}

    return {**named, "sigma": measure.width} if np.isfinite(measure.width) else named


def _result(
    columns: Columns, space: Space, measure: Measure, cost: Cost, meta: dict[str, Any]
) -> VolumeResult:
    status = columns["status"]
    lost = np.isin(status, ("nonfinite", "budget"))
    if lost.all():
        error = NonFiniteCost if (status == "nonfinite").all() else RadiusNotFound
        raise error(
            f"no ray crosses the cutoff: {len(status)} rays ended as "
            + " or ".join(sorted(set(status))),
            where="search",
            mend="Allow more evaluations, or check the cost along one direction",
        )
    flat = np.isinf(measure.width)
    result = VolumeResult(
        rays=columns,
        norm_term=0.0 if flat else -space.squared / (2 * measure.width**2),
        is_probability=not flat,
        evaluations=int(columns["evaluations"].sum()) + 1,
        meta=meta,
    )
    if result.ess < LEAST_ESS:
        warnings.warn(
            f"{result.ess:.1f} effective rays of {len(status)}: the volume is a lower bound",
            LowESS,
            stacklevel=3,
        )

    return result


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
