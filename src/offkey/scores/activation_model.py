"""Oddness under Gaussians whose tracked correlations were chosen by their worth in bits."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.errors import Mismatch, NotEnoughData, check_choice
from offkey.estimate.activations import TrackedGaussian
from offkey.scores.score import Score, TensorScore, check_number
from offkey.stats import Moments, Sample, Statistic

__all__ = ["ActivationModelScore", "JointActivationModel"]

WAYS = ("distance", "relations", "residuals")
_ROWS = 256
"""Rows whose products of pairs are held at a time."""
_SAMPLE = 8192
_RCOND = 1e-10
"""Components whose variance is below this share of the first are rounding."""


def scored(gaussian: TrackedGaussian, x: Float[Tensor, "n d"], way: str) -> Float[Tensor, " n"]:
    """Scores rows in one of the ways; by distance where no pair is tracked."""
    z = gaussian.standardised(x)
    if way == "distance" or not len(gaussian.pairs):
        return gaussian.distance(z)
    parts = [gaussian.residuals(z[n : n + _ROWS]) for n in range(0, len(z), _ROWS)]

    return torch.cat([w.amax(1) if way == "relations" else w.square().sum(1) for w in parts])


class ActivationModelScore(TensorScore):
    r"""Scores a row under a Gaussian that tracks only correlations worth their description.

    A pair of dimensions is tracked if that explains more bits of the N trusted rows than it takes
    to name the pair and its value, :math:`\log_2 \binom d2 + \frac12 \log_2 N`; the masked
    covariance is completed to the one of largest entropy, :math:`\hat S`. By ``way``:

    .. math:: \delta^\top \hat S^{-1} \delta, \qquad
        \max_{(i, j)} -\operatorname{sign}(S_{ij})\, w_{ij}, \qquad
        \sum_{(i, j)} w_{ij}^2, \qquad
        w_{ij} = \frac{\delta_i \delta_j - S_{ij}}{\sqrt{S_{ii} S_{jj} + S_{ij}^2}}

    over the tracked pairs. ``"distance"`` answers to all departures; ``"relations"`` to a tracked
    relation of the wrong sign, and ``"residuals"`` to any change of one: where no pair is tracked
    they are the distance. On planted flips of four correlations of .9 to -.9 the first two reach
    AUROCs of .977 and .996; on shifts of the mean the distance is far ahead. Dimensions that never
    varied are left out. Higher is more anomalous. Unitless.

    Args:
        way: what of the model scores a row.
        rounds: rounds of choosing pairs, each at most one fewer than there are dimensions.

    Raises:
        NotEnoughData: fewer than two trusted rows.

    References:
        Daniels, 2024: Concrete methods for heuristic estimation.
        Dempster, 1972: Covariance selection.
    """

    name = "activation-model"
    mean_: Float[Tensor, " d"]
    precision_: Float[Tensor, " d"]
    pairs_: Int[Tensor, "k 2"]
    correlation_: Float[Tensor, " k"]
    whitening_: Float[Tensor, "d r"]

    def __init__(
        self, way: Literal["distance", "relations", "residuals"] = "distance", rounds: int = 4
    ) -> None:
        check_choice(f"{self.name} way", way, WAYS)
        check_number(f"{self.name} rounds", rounds, least=0, whole=True)
        self.way, self.rounds = way, rounds

    def statistic(self) -> Statistic:
        """Mean and covariance."""
        return Moments()

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Chooses the tracked pairs and closes their covariance."""
        assert isinstance(trusted, Moments)
        self._need(trusted, 2)
        for name, value in TrackedGaussian.of(trusted, rounds=self.rounds).state().items():
            setattr(self, f"{name}_", value)

        return self

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        gaussian = TrackedGaussian(
            self.mean_, self.precision_, self.pairs_, self.correlation_, self.whitening_
        )

        return scored(gaussian, x, self.way)


class JointActivationModel(Score):
    r"""Scores a prompt under one Gaussian over all sites, so that relations between them count.

    The leading components of each site are put side by side, and correlations within and between
    sites are tracked where they are worth their description; see :class:`ActivationModelScore`.
    Higher is more anomalous. Unitless.

    Args:
        way: what of the model scores a prompt.
        components: principal components of each site.
        rounds: rounds of choosing pairs.

    Raises:
        NotEnoughData: fewer than two trusted prompts that have a row at every site.
    """

    name = "activation-model-joint"
    scope = "sites"
    axes_: list[dict[str, Any]]
    gaussian_: dict[str, Tensor]

    def __init__(
        self,
        way: Literal["distance", "relations", "residuals"] = "distance",
        components: int = 16,
        rounds: int = 4,
    ) -> None:
        check_choice(f"{self.name} way", way, WAYS)
        check_number(f"{self.name} components", components, least=1, whole=True)
        check_number(f"{self.name} rounds", rounds, least=0, whole=True)
        self.way, self.components, self.rounds = way, components, rounds

    def statistic(self) -> Statistic:
        """The rows of the prompts whose ids hash lowest: the same prompts at every site."""
        return Sample(_SAMPLE)

    def finish(
        self, trusted: Mapping[str, Sample], pool: object, generator: torch.Generator
    ) -> Self:
        """Finds each site's components, then the pairs that are worth tracking."""
        shared = set.intersection(*(set(sample.ids) for sample in trusted.values()))
        if len(shared) < 2:
            raise NotEnoughData(
                f"{len(shared)} trusted prompts with a row at every site where at least 2 are "
                "needed",
                where=self.name,
                mend="Give more trusted prompts",
            )
        rows = {site: _shared_rows(sample, shared) for site, sample in trusted.items()}
        self.axes_ = [{"site": site, **_axes(x, self.components)} for site, x in rows.items()]
        moments = Moments()
        moments.update(self._side_by_side(rows), sorted(shared))
        self.gaussian_ = dict(TrackedGaussian.of(moments, rounds=self.rounds).state())

        return self

    def __call__(self, x: Mapping[str, Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        """Scores prompts by their rows at every site.

        Raises:
            Mismatch: rows of other sites, or of another width.
        """
        gaussian = TrackedGaussian(**self.gaussian_)
        given = {site: value.shape[1] for site, value in x.items()}
        known = {part["site"]: len(part["mean"]) for part in self.axes_}
        if given != known:
            raise Mismatch(
                f"rows at {_told(given)} where the trusted ones were at {_told(known)}",
                where=self.name,
                mend="Score the feature and sites that it was fitted on",
            )
        if len({len(value) for value in x.values()}) > 1:
            raise Mismatch(
                "unlike numbers of rows at its sites",
                where=self.name,
                mend="Give one row a prompt at every site",
            )

        return scored(gaussian, self._side_by_side(x), self.way)

    def _side_by_side(self, rows: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        return torch.cat(
            [(rows[part["site"]].double() - part["mean"]) @ part["axes"] for part in self.axes_],
            dim=1,
        )


def _shared_rows(sample: Sample, shared: set[str]) -> Float[Tensor, "n d"]:
    """Rows of prompts that every site has, in the order of their ids."""
    place = {id: row for row, id in enumerate(sample.ids)}

    return sample.rows[[place[id] for id in sorted(shared)]].double()


def _axes(x: Float[Tensor, "n d"], count: int) -> dict[str, Tensor]:
    """Mean and leading principal axes, those of rounding left out."""
    mean = x.mean(0)
    _, sizes, axes = torch.linalg.svd(x - mean, full_matrices=False)
    kept = int((sizes.square() > _RCOND * sizes[0].square()).sum()) if float(sizes[0]) else 0
    chosen = axes[: min(count, kept)]
    # an axis has no sign of its own: its largest entry is made positive
    largest = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)) if kept else chosen[:, :1]

    return {"mean": mean, "axes": (chosen * largest.sign()).T.contiguous()}


def _told(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{site} ({width})" for site, width in widths.items())
