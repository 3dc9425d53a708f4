"""Activation models: one Gaussian a layer, with a mask over its covariance as the argument.

A masked covariance is closed (:func:`close`), a mask is worth what it explains minus its
description (:func:`surprise_of_activations`), and :func:`search` looks for the best one. A new
input is scored by its distance, by the tracked relations that it breaks, or by a Wick estimate of
its loss.
"""

from offkey.estimate.activations.closures import close, divergence_bits
from offkey.estimate.activations.mask_search import open_probability, search
from offkey.estimate.activations.model import ActivationModel, broken_relation, distances, mask_of
from offkey.estimate.activations.surprise import break_even, surprise_of_activations
from offkey.estimate.activations.tracked import TrackedGaussian
from offkey.estimate.activations.wick import Wick

__all__ = [
    "ActivationModel",
    "TrackedGaussian",
    "Wick",
    "break_even",
    "broken_relation",
    "close",
    "distances",
    "divergence_bits",
    "mask_of",
    "open_probability",
    "search",
    "surprise_of_activations",
]
