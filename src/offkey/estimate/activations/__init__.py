"""Activation models: one Gaussian a layer, with a mask over its covariance as the argument.

A masked covariance is closed (:func:`close`), a mask is worth what it explains less its
description (:func:`surprise_of_activations`), and is searched for against that total
(:func:`search`; for wide layers :func:`tracked_in_rounds`). A new input is scored by its distance,
by relations that it breaks, or by a Wick estimate of its loss.
"""

from offkey.estimate.activations.closures import Closure, close, divergence_bits
from offkey.estimate.activations.mask_search import (
    MaskSearch,
    description_bits,
    gate_price,
    hard_concrete_gates,
    marginal_gain,
    open_probability,
    search,
    still_gates,
    tracked_in_rounds,
)
from offkey.estimate.activations.model import (
    ActivationModel,
    broken_relation,
    conformal_threshold,
    distances,
    mask_of,
    pair_residuals,
    pairs_of,
    squared_residuals,
)
from offkey.estimate.activations.surprise import (
    break_even,
    fraction_explained,
    pair_gain,
    surprise_of_activations,
    surprise_of_events_under,
    surprise_of_losses,
)
from offkey.estimate.activations.tracked import TrackedGaussian, shrinkage_of
from offkey.estimate.activations.wick import Wick, wick_elementwise

__all__ = [
    "ActivationModel",
    "Closure",
    "MaskSearch",
    "TrackedGaussian",
    "Wick",
    "break_even",
    "broken_relation",
    "close",
    "conformal_threshold",
    "description_bits",
    "distances",
    "divergence_bits",
    "fraction_explained",
    "gate_price",
    "hard_concrete_gates",
    "marginal_gain",
    "mask_of",
    "open_probability",
    "pair_gain",
    "pair_residuals",
    "pairs_of",
    "search",
    "shrinkage_of",
    "squared_residuals",
    "surprise_of_activations",
    "surprise_of_events_under",
    "surprise_of_losses",
    "still_gates",
    "tracked_in_rounds",
    "wick_elementwise",
]
