"""Local volume: how much of parameter space behaves as this model does.

A volume is estimated along rays, in log space and float64, and comes with its effective number of
rays, its interval, and whether it is only a bound. Directions are made from seeds, weights are
restored bit by bit, and a stopped run continues ray by ray. :func:`radii` gives the radii of each
prompt.
"""

from offkey.volume.costs import Cost, FunctionCost
from offkey.volume.estimator import (
    AnchorNotMinimum,
    LowESS,
    VolumeSettings,
    check_model_volume,
    check_volume,
    estimate_volume,
    model_volume,
    volume_curve,
)
from offkey.volume.measures import (
    GaussianMeasure,
    LebesgueMeasure,
    Measure,
    log_ball_volume,
    log_ray_integral,
    log_sphere_area,
)
from offkey.volume.model_costs import (
    DuplicateExamples,
    KLCost,
    LossCost,
    ModelCost,
    fisher_dense,
    fisher_diagonal,
    later_half,
)
from offkey.volume.proposals import (
    Dense,
    Diagonal,
    Kronecker,
    Power,
    PriorDamped,
    Proposal,
    Tilted,
    Uniform,
)
from offkey.volume.radii import ExampleRadii, radii, typical_radius
from offkey.volume.rays import Noise, Ray, RayStep, Sampler, Space, check_precision
from offkey.volume.result import VolumeResult, log_ratio
from offkey.volume.search import CrossingSearch, find_crossings

__all__ = [
    "AnchorNotMinimum",
    "Cost",
    "CrossingSearch",
    "Dense",
    "Diagonal",
    "DuplicateExamples",
    "ExampleRadii",
    "FunctionCost",
    "GaussianMeasure",
    "KLCost",
    "Kronecker",
    "LebesgueMeasure",
    "LossCost",
    "LowESS",
    "Measure",
    "ModelCost",
    "Noise",
    "Power",
    "PriorDamped",
    "Proposal",
    "Ray",
    "RayStep",
    "Sampler",
    "Space",
    "Tilted",
    "Uniform",
    "VolumeResult",
    "VolumeSettings",
    "check_model_volume",
    "check_precision",
    "check_volume",
    "estimate_volume",
    "find_crossings",
    "fisher_dense",
    "fisher_diagonal",
    "later_half",
    "log_ball_volume",
    "log_ratio",
    "log_ray_integral",
    "log_sphere_area",
    "model_volume",
    "radii",
    "typical_radius",
    "volume_curve",
]
