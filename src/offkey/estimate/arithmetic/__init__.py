"""Arithmetic circuits: estimates of sums and products from tracked covariances.

A circuit is written with ``+``, ``-`` and ``*`` on leaves. Its argument is the set of pairs of
nodes whose covariance is tracked; all others are presumed to be 0. Estimates come from
:func:`propagate` and :class:`Cumulants`, bounds from :func:`bounds`, and the two never mix.
Arguments are scored by surprise, in bits, and searched for.
"""

from offkey.estimate.arithmetic.circuit import Circuit
from offkey.estimate.arithmetic.cumulants import Cumulants, cumulant_terms, hafnian
from offkey.estimate.arithmetic.formal import (
    accuracy,
    clause_solutions,
    permanent,
    permanent_estimates,
)
from offkey.estimate.arithmetic.nodes import bernoulli, block, both, differ, either, leaf, negation
from offkey.estimate.arithmetic.propagation import propagate
from offkey.estimate.arithmetic.proved import bounds, exact_mean
from offkey.estimate.arithmetic.scrubbing import Scrubbing, bell
from offkey.estimate.arithmetic.search import (
    ArgumentSearch,
    Events,
    Values,
    account,
    exhaustive,
    greedy,
    guided,
    relaxed,
)

__all__ = [
    "ArgumentSearch",
    "Circuit",
    "Cumulants",
    "Events",
    "Scrubbing",
    "Values",
    "account",
    "accuracy",
    "bell",
    "bernoulli",
    "block",
    "both",
    "bounds",
    "clause_solutions",
    "cumulant_terms",
    "differ",
    "either",
    "exact_mean",
    "exhaustive",
    "greedy",
    "guided",
    "hafnian",
    "leaf",
    "negation",
    "permanent",
    "permanent_estimates",
    "propagate",
    "relaxed",
]
