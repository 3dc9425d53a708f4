"""Affine arithmetic: bounds that remember dependence, proved rather than estimated.

Every result holds for all inputs of a box. What they lack is probability: a form says how far a
value can go, a covariance how far it usually goes.
"""

from offkey.estimate.affine.forms import AffineForm
from offkey.estimate.affine.propagation import interval_bounds, propagate, tail_bound

__all__ = [
    "AffineForm",
    "interval_bounds",
    "propagate",
    "tail_bound",
]
