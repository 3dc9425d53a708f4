"""How a model's answers move when its activations or its weights are perturbed.

Both kinds of noise give the same :class:`Curve`. Models are compared by one number for each curve,
with the smallest difference that a population of that size can show. A :class:`Kernel` compares
prompts instead, by how alike the losses of their answers respond.
"""

from offkey.sensitivity.activations import (
    PRESETS,
    ActivationNoise,
    activation_sensitivity,
    contrast_norm,
)
from offkey.sensitivity.compare import (
    Comparison,
    CurveComparison,
    check_comparable,
    compare_curves,
    compare_models,
    smallest_detectable_auroc,
)
from offkey.sensitivity.curve import Curve, Summary, load_curves, summarise
from offkey.sensitivity.kernels import (
    GradientKernel,
    Kernel,
    Langevin,
    LangevinKernel,
    WeightNoiseKernel,
)
from offkey.sensitivity.weights import WeightNoise, weight_sensitivity

__all__ = [
    "PRESETS",
    "ActivationNoise",
    "Comparison",
    "Curve",
    "CurveComparison",
    "GradientKernel",
    "Kernel",
    "Langevin",
    "LangevinKernel",
    "Summary",
    "WeightNoise",
    "WeightNoiseKernel",
    "activation_sensitivity",
    "check_comparable",
    "compare_curves",
    "compare_models",
    "contrast_norm",
    "load_curves",
    "smallest_detectable_auroc",
    "summarise",
    "weight_sensitivity",
]
