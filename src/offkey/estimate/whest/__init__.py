"""Expected activations of wide random networks, from their weights instead of from samples.

Made for the public benchmark WhestBench, whose own packages are needed only by
``offkey.estimate.whest.entry``: ``pip install offkey[whest]``.
"""

from offkey.estimate.whest.propagation import expected_activations
from offkey.estimate.whest.sampled import Sampled, debiased_mse, sampled_activations

__all__ = [
    "Sampled",
    "debiased_mse",
    "expected_activations",
    "sampled_activations",
]
