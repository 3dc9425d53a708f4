"""Tail risk: how likely is an output that no sample has shown?

A :class:`Problem` is a network, independent tokens that are put into it, and the token whose
logit should be the largest. Samplers run the network (:class:`ITGIS`, :class:`MHIS`); the others
extrapolate from the last activations of plain samples (:class:`Draws`). Where nothing was seen
the answer is "below resolution", never 0. ``effective_samples`` counts accepted samples.
"""

from offkey.estimate.risk.adversarial import Adversary, harden, hardest_shift, linear_shift
from offkey.estimate.risk.calibration import best_constant, fit_power, itakura_saito, leave_one_out
from offkey.estimate.risk.decomposition import (
    Whitening,
    argmax_probability,
    halfspace_probability,
    qld,
    qld_tails,
)
from offkey.estimate.risk.draws import Draws, gld, monte_carlo
from offkey.estimate.risk.language import LanguageNetwork
from offkey.estimate.risk.problem import ModuleNetwork, Problem, Remembered, TokenInputs, exact
from offkey.estimate.risk.samplers import ITGIS, MHIS

__all__ = [
    "Adversary",
    "Draws",
    "ITGIS",
    "LanguageNetwork",
    "MHIS",
    "ModuleNetwork",
    "Problem",
    "Remembered",
    "TokenInputs",
    "Whitening",
    "argmax_probability",
    "best_constant",
    "exact",
    "fit_power",
    "gld",
    "halfspace_probability",
    "harden",
    "hardest_shift",
    "itakura_saito",
    "leave_one_out",
    "linear_shift",
    "monte_carlo",
    "qld",
    "qld_tails",
]
