"""Activations as sums of independent features, and dictionaries that are scored without samples.

A Gaussian loses rare events. Here a feature that is on once in a million keeps its own
probability, joint events stay products of logarithms, and a dictionary's loss is an integral.
"""

from offkey.estimate.sparse.dictionary import (
    SparseDictionary,
    expected_loss,
    fit_dictionary,
    fit_to_normals,
)
from offkey.estimate.sparse.features import (
    IndependentFeatures,
    basis_surprise,
    count_log10,
    count_log10_gaussian,
    sparse_surprise,
)

__all__ = [
    "IndependentFeatures",
    "SparseDictionary",
    "basis_surprise",
    "count_log10",
    "count_log10_gaussian",
    "expected_loss",
    "fit_dictionary",
    "fit_to_normals",
    "sparse_surprise",
]
