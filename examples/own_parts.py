"""A feature and a score of one's own, used together without registering either."""

from torch import Tensor

import offkey
from offkey.detect import evaluate
from offkey.features import Feature
from offkey.models import Model, Reading, Site
from offkey.passes import Plan
from offkey.scores import TensorScore
from offkey.stats import Moments
from offkey.tasks import get_task


class HeadNorms(Feature):
    """How long each head's output is: one number a head, one vector a block."""

    name = "head-norms"

    def plan(self, model: Model) -> Plan:
        """Reads the later half of the blocks."""
        return Plan(reads=model.sites_at("z.later"))

    def rows(self, model: Model, reading: Reading) -> dict[Site, Tensor]:
        """Euclidean length of each head."""
        return {site: z.float().norm(dim=-1) for site, z in reading.values.items()}


class MeanDeviation(TensorScore):
    """Mean deviation over dimensions, in standard deviations."""

    name = "mean-deviation"

    def statistic(self) -> Moments:
        """Mean and variances."""
        return Moments(diagonal=True)

    def finish(self, trusted: Moments, pool: object, generator: object) -> "MeanDeviation":
        """Keeps mean and spread."""
        self.mean_, self.spread_ = trusted.mean, trusted.variance().sqrt().clamp_min(1e-9)
        return self

    def _score(self, x: Tensor) -> Tensor:
        return ((x - self.mean_).abs() / self.spread_).mean(dim=1)


def main(limit: int = 150) -> float:
    """Prints and returns the AUROC on the bundled organism."""
    model = offkey.load("smollm2-135m-instruct", adapter="bundled:comparison")
    data = get_task("comparison").make(seed=0, limit=limit)
    detector = offkey.Detector(HeadNorms(), MeanDeviation()).fit(model, data.trusted)
    auroc: float = evaluate(detector.score(model, data.test), data.test).auroc.value
    print(f"{detector.name}: AUROC {auroc:.3f}")
    return auroc


if __name__ == "__main__":
    main()
