"""Affine arithmetic: bounds that remember dependence, proved rather than estimated.

Every result holds for all inputs of a box. It has no probabilities: a form bounds how far a value
can go, while a covariance estimates how far it usually goes.
"""

from offkey.estimate.affine.forms import AffineForm
from offkey.estimate.affine.propagation import interval_bounds, propagate, tail_bound

__all__ = [
    "AffineForm",
    "interval_bounds",
    "propagate",
    "tail_bound",
]
