"""Gaussians through networks: means and covariances carried from layer to layer."""

from offkey.estimate.gaussian.catastrophe import ArgMax, Fires, Threshold, finite_data, probability
from offkey.estimate.gaussian.distribution import bivariate_normal_cdf
from offkey.estimate.gaussian.elementwise import Elementwise, through
from offkey.estimate.gaussian.functions import ERF, GELU, PROBIT, RELU, by_name, for_module
from offkey.estimate.gaussian.language import logits_at, residual_stream, through_blocks
from offkey.estimate.gaussian.normal import Normal, divergence, fit
from offkey.estimate.gaussian.propagation import PropagationSettings, Residual, propagate, register
from offkey.estimate.gaussian.transitions import Transition, layer_norm, linear, rms_norm

__all__ = [
    "ArgMax",
    "ERF",
    "Elementwise",
    "Fires",
    "GELU",
    "Normal",
    "PROBIT",
    "PropagationSettings",
    "RELU",
    "Residual",
    "Threshold",
    "Transition",
    "bivariate_normal_cdf",
    "by_name",
    "divergence",
    "finite_data",
    "fit",
    "for_module",
    "layer_norm",
    "linear",
    "logits_at",
    "probability",
    "propagate",
    "register",
    "residual_stream",
    "rms_norm",
    "through",
    "through_blocks",
]
