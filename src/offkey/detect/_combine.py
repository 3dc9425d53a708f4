"""Many sites, one score a prompt."""

import re
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float64

from offkey.errors import BadValue

__all__ = ["Combine", "Scale"]

Array = np.ndarray


@dataclass(frozen=True)
class Combine:
    """How the standardised scores of several sites become one.

    ``mean`` and ``max`` over the sites, ``later-half`` the mean over the later half of them, in
    the model's order, ``top-M`` the mean of the M highest of each prompt.

    Attributes:
        name: ``"mean"``, ``"max"``, ``"later-half"`` or ``"top-M"``, such as ``"top-3"``.
    """

    name: str = "mean"

    def __post_init__(self) -> None:
        if self.name not in ("mean", "max", "later-half") and not self._top:
            raise BadValue(f"unknown way {self.name!r} to combine sites", where="combine",
                           mend="Use mean, max, later-half or top-M, such as top-3")  # fmt: skip

    @property
    def _top(self) -> int:
        match = re.fullmatch(r"top-(\d+)", self.name)
        return int(match[1]) if match else 0

    def __call__(self, z: Float64[Array, "n sites"]) -> Float64[Array, " n"]:
        """Combines standardised scores; a NaN at any site makes the prompt's NaN."""
        if self.name == "max":
            return np.asarray(z.max(axis=1))
        if self.name == "later-half":
            return np.asarray(z[:, z.shape[1] // 2 :].mean(axis=1))
        if self._top:
            highest = np.sort(z, axis=1)[:, -min(self._top, z.shape[1]) :]
            return np.asarray(highest.mean(axis=1))

        return np.asarray(z.mean(axis=1))

    def shares(self, z: Float64[Array, "n sites"]) -> Float64[Array, "n sites"]:
        """What each site adds to the combined score; a row's shares sum to it.

        A site that the combination passes over adds 0: with ``max`` all but the highest one.
        """
        order = np.argsort(z, axis=1, kind="stable")
        taken = np.ones_like(z)
        if self.name == "later-half":
            taken[:, : z.shape[1] // 2] = 0
        elif self.name == "max" or self._top:
            most = min(self._top or 1, z.shape[1])
            np.put_along_axis(taken, order[:, : z.shape[1] - most], 0, axis=1)

        return np.asarray(z * taken / taken.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Scale:
    """Centre and spread of each site's scores on trusted prompts.

    The median and the median absolute deviation (times 1.4826, its ratio to the standard
    deviation of a normal law), so that a few odd trusted prompts do not set the scale; the
    standard deviation where more than half the scores are equal.
    """

    centre: Float64[Array, " sites"]
    spread: Float64[Array, " sites"]

    @classmethod
    def of(cls, scores: Float64[Array, "n sites"]) -> Self:
        """Measures scores; the spread is 0 at a site where they are all equal."""
        centre = np.nanmedian(scores, axis=0)
        spread = 1.4826 * np.nanmedian(np.abs(scores - centre), axis=0)

        return cls(centre, np.where(spread > 0, spread, np.nanstd(scores, axis=0)))

    def __call__(self, scores: Float64[Array, "n sites"]) -> Float64[Array, "n sites"]:
        """Scores as robust z values."""
        return np.asarray((scores - self.centre) / self.spread)

    def keep(self, sites: Any) -> Self:
        """The same for some of the sites."""
        return type(self)(self.centre[sites], self.spread[sites])
