"""Local volume: how much of parameter space behaves as this model does.

A volume is estimated by rays, in log space and float64, and comes with its effective number of
rays, its interval, and whether it is only a bound. Directions are made from seeds; weights come
back bit by bit; a stopped run goes on ray by ray. :func:`radii` gives each prompt's own radii.
"""

from offkey.volume._costs import Cost, FunctionCost
from offkey.volume._curvature import Power, PriorDamped
from offkey.volume._curve import check_cutoffs, volume_curve
from offkey.volume._estimate import check_volume, estimate_volume
from offkey.volume._fisher import fisher_dense, fisher_diagonal
from offkey.volume._integral import log_ball_volume, log_ray_integral, log_sphere_area
from offkey.volume._measures import Gaussian, Lebesgue, Measure
from offkey.volume._noise import Noise
from offkey.volume._precision import check_precision
from offkey.volume._proposals import Dense, Diagonal, Kronecker, Proposal, Tilted, Uniform
from offkey.volume._radii import Radii, radii, typical_radius
from offkey.volume._rays import Ray, Sampler, Step
from offkey.volume._result import VolumeResult, log_ratio
from offkey.volume._search import Search, find_crossings
from offkey.volume._space import Space
from offkey.volume._tail import Tail, later_half
from offkey.volume._token_costs import KLCost, LossCost
from offkey.volume._warnings import AnchorNotMinimum, DuplicateExamples, LowESS

__all__ = [
    "find_crossings",
    "check_precision",
    "Step",
    "Space",
    "Sampler",
    "Ray",
    "Noise",
    "AnchorNotMinimum",
    "Cost",
    "Dense",
    "Diagonal",
    "DuplicateExamples",
    "FunctionCost",
    "Gaussian",
    "KLCost",
    "Kronecker",
    "Lebesgue",
    "LossCost",
    "LowESS",
    "Measure",
    "Power",
    "PriorDamped",
    "Proposal",
    "Radii",
    "Search",
    "Tail",
    "Tilted",
    "Uniform",
    "VolumeResult",
    "check_cutoffs",
    "check_volume",
    "estimate_volume",
    "fisher_dense",
    "fisher_diagonal",
    "later_half",
    "log_ball_volume",
    "log_ratio",
    "log_ray_integral",
    "log_sphere_area",
    "radii",
    "typical_radius",
    "volume_curve",
]
