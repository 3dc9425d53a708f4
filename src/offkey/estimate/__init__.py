"""Heuristic estimation: best guesses of what a network does, from arguments instead of samples.

An estimator is given an argument: which dependences to track. Everything else is presumed
independent. An :class:`Estimate` is a best guess that another argument may change; it is never a
:class:`Bound`. Everything is computed in float64; surprise is in bits.

- :mod:`~offkey.estimate.arithmetic`: circuits of sums and products, and searches for arguments;
- :mod:`~offkey.estimate.gaussian`: means and covariances through the layers of a network;
- :mod:`~offkey.estimate.activations`: a Gaussian a layer, with a mask over its covariance;
- :mod:`~offkey.estimate.risk`: probabilities of outputs that no test has shown;
- :mod:`~offkey.estimate.bilinear`: layers whose interactions can be read off their weights;
- :mod:`~offkey.estimate.sparse`: independent features instead of neurons;
- :mod:`~offkey.estimate.affine`: bounds that keep exact linear dependence;
- :mod:`~offkey.estimate.whest`: means of wide random networks, for the public benchmark.
"""

from offkey.estimate.quantities import (
    Argument,
    Bound,
    Estimate,
    Surprise,
    TrackedPairs,
    surprise_of_events,
)

__all__ = ["Argument", "Bound", "Estimate", "Surprise", "TrackedPairs", "surprise_of_events"]
