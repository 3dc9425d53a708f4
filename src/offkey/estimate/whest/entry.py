"""The entry for WhestBench: the propagation under the benchmark's own operation counter."""

import flopscope as flops
import flopscope.numpy as fnp
from whestbench import MLP, BaseEstimator

from offkey.estimate.whest.propagation import Array, Arrays, expected_activations

__all__ = ["Estimator"]


class Estimator(BaseEstimator):
    """Cumulants up to the third.

    Args:
        memory: for how many layers a third cumulant is carried in detail; all by default.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory

    def predict(self, mlp: MLP, budget: int) -> Array:
        """Means of every layer, ``[depth, width]``."""
        arrays = Arrays(fnp, flops.stats.norm.cdf)

        return fnp.stack(expected_activations(mlp.weights, memory=self.memory, arrays=arrays))
