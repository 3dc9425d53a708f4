"""Tail risk: how likely is an output that no sample has shown?

A :class:`Problem` is a network, independent tokens that enter it, and the token whose
logit may be the largest. Samplers run the network (:class:`ITGIS`, :class:`MHIS`); the others
extrapolate from the last activations of plain samples (:class:`Draws`). Where no sample has the
event the answer is "below resolution", never 0. Every answer is an estimate and never a bound;
``effective_samples`` counts accepted samples. :func:`estimate_risk` asks several methods about a
language model's next token.
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
from offkey.estimate.risk.language import (
    RISK_METHODS,
    LanguageNetwork,
    RiskQuestion,
    RiskReport,
    RiskRow,
    RiskSettings,
    estimate_risk,
)
from offkey.estimate.risk.problem import CachedNetwork, ModuleNetwork, Problem, TokenInputs, exact
from offkey.estimate.risk.samplers import ITGIS, MHIS

__all__ = [
    "Adversary",
    "Draws",
    "ITGIS",
    "LanguageNetwork",
    "RISK_METHODS",
    "RiskQuestion",
    "RiskReport",
    "RiskRow",
    "RiskSettings",
    "estimate_risk",
    "MHIS",
    "ModuleNetwork",
    "Problem",
    "CachedNetwork",
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
