"""Arithmetic circuits: estimates of sums and products from tracked covariances.

A circuit is written with ``+``, ``-`` and ``*`` on leaves. Its argument is the set of pairs of
nodes whose covariance is tracked; all others are presumed to be 0. Estimates come from
:func:`propagate` and :class:`Cumulants`, bounds from :func:`bounds`, and the two never mix.
Arguments are scored by surprise, in bits, and searched for.
"""

from offkey.estimate.arithmetic.circuit import Circuit, CircuitStep, Pair
from offkey.estimate.arithmetic.cumulants import (
    Cumulants,
    cumulant_terms,
    gaussian_moment,
    hafnian,
)
from offkey.estimate.arithmetic.formal import (
    Accuracy,
    PermanentEstimates,
    accuracy,
    clause_solutions,
    permanent,
    permanent_estimates,
)
from offkey.estimate.arithmetic.nodes import (
    Leaf,
    LeafBlock,
    Node,
    Product,
    Sum,
    bernoulli,
    block,
    both,
    differ,
    either,
    leaf,
    linear,
    negation,
)
from offkey.estimate.arithmetic.propagation import (
    Masked,
    Propagation,
    closure,
    missing,
    needs,
    presumed,
    propagate,
)
from offkey.estimate.arithmetic.proved import bounds, exact_mean
from offkey.estimate.arithmetic.scrubbing import PathPartition, Scrubbing, bell, path_partitions
from offkey.estimate.arithmetic.search import (
    ArgumentSearch,
    Events,
    Outcome,
    Values,
    account,
    adjoints,
    exhaustive,
    greedy,
    guided,
    relaxed,
)

__all__ = [
    "Accuracy",
    "LeafBlock",
    "Circuit",
    "Cumulants",
    "Events",
    "Leaf",
    "Masked",
    "Node",
    "Outcome",
    "Pair",
    "PathPartition",
    "PermanentEstimates",
    "Product",
    "Propagation",
    "Scrubbing",
    "ArgumentSearch",
    "CircuitStep",
    "Sum",
    "Values",
    "account",
    "accuracy",
    "adjoints",
    "bell",
    "bernoulli",
    "block",
    "both",
    "bounds",
    "clause_solutions",
    "closure",
    "cumulant_terms",
    "differ",
    "either",
    "exact_mean",
    "exhaustive",
    "gaussian_moment",
    "greedy",
    "guided",
    "hafnian",
    "leaf",
    "linear",
    "missing",
    "needs",
    "negation",
    "path_partitions",
    "permanent",
    "permanent_estimates",
    "presumed",
    "propagate",
    "relaxed",
]
