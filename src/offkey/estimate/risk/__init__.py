"""Tail risk: how likely is an output that no sample has shown?

A :class:`Problem` is a network, independent tokens that are put into it, and the token whose
logit should be the largest. Samplers run the network (:class:`ITGIS`, :class:`MHIS`); the others
extrapolate from the last activations of plain samples (:class:`Draws`). Where nothing was seen
the answer is "below resolution", never 0. ``effective_samples`` counts accepted samples.
"""

from offkey.estimate.risk.adversarial import (
    Adversary,
    Round,
    fitted_log_tail,
    harden,
    hardest_shift,
    linear_shift,
    shifted_probability,
)
from offkey.estimate.risk.calibration import (
    PowerFit,
    best_constant,
    fit_power,
    itakura_saito,
    leave_one_out,
)
from offkey.estimate.risk.decomposition import (
    Whitening,
    argmax_probability,
    halfspace_probability,
    qld,
    qld_tails,
)
from offkey.estimate.risk.draws import Draws, gld, monte_carlo
from offkey.estimate.risk.language import LanguageNetwork
from offkey.estimate.risk.problem import (
    ModuleNetwork,
    Problem,
    Pull,
    Remembered,
    TokenInputs,
    TokenNetwork,
    exact,
)
from offkey.estimate.risk.samplers import ITGIS, MHIS

__all__ = [
    "ITGIS",
    "MHIS",
    "Adversary",
    "Draws",
    "LanguageNetwork",
    "ModuleNetwork",
    "PowerFit",
    "Problem",
    "Pull",
    "Remembered",
    "Round",
    "TokenInputs",
    "TokenNetwork",
    "Whitening",
    "argmax_probability",
    "best_constant",
    "exact",
    "fitted_log_tail",
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
    "shifted_probability",
]
