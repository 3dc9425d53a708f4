"""Bilinear layers: networks that can be read off their weights.

Every output is a quadratic form of the input. Its interaction matrix is exact, and its few
largest eigenvectors are its components.
"""

from offkey.estimate.bilinear.interactions import (
    Spectrum,
    effective_rank,
    in_basis,
    in_latents,
    interactions,
)
from offkey.estimate.bilinear.layer import Bilinear

__all__ = [
    "Bilinear",
    "Spectrum",
    "effective_rank",
    "in_basis",
    "in_latents",
    "interactions",
]
