"""How far a prompt breaks the relations between activations that a model of them tracks."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, NotEnoughData, check
from offkey.estimate.activations import TrackedGaussian
from offkey.features.feature import Feature, Learner
from offkey.models import Model, Positions, Reading, Site
from offkey.passes import Plan
from offkey.stats import Moments

__all__ = ["TrackedRelations"]


class TrackedRelations(Feature):
    r"""Residuals of the relations that an activation model tracks, and its surprise.

    On trusted prompts first, correlations between activations are chosen that are worth their
    description. A prompt's vector at a site holds, for the strongest of them,

    .. math:: -\operatorname{sign}(S_{ij}) \frac{\delta_i \delta_j - S_{ij}}
        {\sqrt{S_{ii} S_{jj} + S_{ij}^2}}

    which is high where the relation is broken and has mean 0 and variance 1 under the model; and
    at its end the squared distance under the model, less its mean, over its deviation.

    Args:
        sites: names and ranges of sites.
        positions: tokens that are read, as in ``activations``.
        pairs: how many relations, at most, the vector holds.
        rounds: rounds of choosing pairs.

    Raises:
        NotEnoughData: fewer than two trusted prompts.

    References:
        Daniels, 2024: Concrete methods for heuristic estimation.
    """

    name: ClassVar[str] = "activation-model"
    default_score: ClassVar[str] = "mahalanobis-diagonal"
    learns = True
    relations_: dict[str, dict[str, Any]]

    def __init__(
        self,
        sites: str | tuple[str, ...] = "resid_post.later",
        positions: Positions = "last",
        pairs: int = 256,
        rounds: int = 4,
    ) -> None:
        if pairs < 0 or rounds < 0:
            raise BadValue("pairs and rounds must be at least 0", where=self.name)
        self.sites, self.positions = sites, positions
        self.pairs, self.rounds = pairs, rounds

    def plan(self, model: Model) -> Plan:
        """Reads the sites, and nothing else."""
        return Plan(reads=model.sites_at(self.sites), positions=self.positions)

    def learner(self, model: Model) -> Learner:
        """Sums up the activations of trusted prompts and chooses the relations of each site."""
        sums: dict[str, Moments] = {}
        while (reading := (yield)) is not None:
            for site, value in reading.values.items():
                moments = sums.setdefault(str(site), Moments())
                moments.update(value.flatten(1).float(), reading.batch.ids)
        self.relations_ = {site: self._chosen(moments) for site, moments in sums.items()}

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """Residuals of the tracked relations, and the surprise, at each site."""
        self.need_learned()

        return {
            site: self._vector(TrackedGaussian(**self.relations_[str(site)]), value.flatten(1))
            for site, value in reading.values.items()
        }

    def _chosen(self, moments: Moments) -> dict[str, Any]:
        """The strongest relations of a site, as plain values."""
        check(
            moments.count >= 2,
            f"{moments.count} trusted prompts where at least 2 are needed",
            where=f"feature {self.name}",
            mend="Give more trusted prompts",
            error=NotEnoughData,
        )
        gaussian = TrackedGaussian.of(moments, rounds=self.rounds)

        return dict(gaussian.strongest(self.pairs).state())

    def _vector(
        self, gaussian: TrackedGaussian, x: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch k"]:
        z = gaussian.standardised(x.to("cpu"))
        width = max(1, gaussian.whitening.shape[1])
        surprise = (gaussian.distance(z) - width) / (2 * width) ** 0.5

        return torch.cat([gaussian.residuals(z), surprise[:, None]], dim=1).float()
