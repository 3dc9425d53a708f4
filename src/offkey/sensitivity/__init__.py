"""How a model's answers move when its activations or its weights are disturbed.

Both kinds of noise give the same :class:`Curve`. Models are compared by one number a curve; what a
population of models can and cannot tell apart is said before it is asked. A :class:`Kernel`
compares prompts instead: by how alike the losses of their answers respond.
"""

from offkey.sensitivity._activations import (
    PRESETS,
    ActivationNoise,
    activation_sensitivity,
    contrast_norm,
)
from offkey.sensitivity._compare import (
    Comparison,
    check_comparable,
    compare_models,
    smallest_detectable_auroc,
)
from offkey.sensitivity._curve import Curve, Summary, summarise
from offkey.sensitivity._kernels import (
    GradientKernel,
    Kernel,
    LangevinKernel,
    WeightNoiseKernel,
)
from offkey.sensitivity._langevin import Langevin
from offkey.sensitivity._own_answers import OwnAnswers, last_logits, preferred
from offkey.sensitivity._weights import WeightNoise, weight_sensitivity

__all__ = [
    "PRESETS",
    "ActivationNoise",
    "Comparison",
    "Curve",
    "GradientKernel",
    "Kernel",
    "Langevin",
    "LangevinKernel",
    "OwnAnswers",
    "Summary",
    "WeightNoise",
    "WeightNoiseKernel",
    "activation_sensitivity",
    "check_comparable",
    "compare_models",
    "contrast_norm",
    "last_logits",
    "preferred",
    "smallest_detectable_auroc",
    "summarise",
    "weight_sensitivity",
]
