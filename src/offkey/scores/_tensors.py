"""What scores of rows of one site share, and checks of settings."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch
from offkey.scores._score import Score

__all__ = [
    "BLOCK",
    "TensorScore",
    "check_choice",
    "check_number",
]

BLOCK = 2048
"""Rows scored at once, so that a score of many rows needs no float64 copy of them all."""


def check_number(
    name: str, value: float, *, least: float, most: float = float("inf"), whole: bool = False
) -> None:
    """Refuses a setting outside ``[least, most]``.

    Raises:
        BadValue: it is outside, or not a (whole) number.
    """
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        span = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise BadValue(
            f"{value!r} is not allowed",
            where=name,
            mend=f"Use a {'whole ' if whole else ''}number {span}",
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses a setting that is none of ``choices``.

    Raises:
        BadValue: it is none of them.
    """
    if value not in choices:
        raise BadValue(
            f"{value!r} is not allowed", where=name, mend="Use " + " or ".join(map(repr, choices))
        )


class TensorScore(Score):
    """A score of rows of one site.

    A subclass learns in ``finish`` and scores blocks of rows in ``_score``; where it learns no
    ``mean_``, it says in ``_width`` how wide rows are.
    """

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Scores rows; float64, higher is more anomalous.

        Raises:
            Mismatch: rows of another width than the trusted ones.
        """
        if x.ndim != 2 or x.shape[1] != self._width():
            raise Mismatch(
                f"rows of shape {tuple(x.shape)} where the trusted ones had width {self._width()}",
                where=self.name,
                mend="Score the feature and site that it was fitted on",
            )
        if not len(x):
            return torch.empty(0, dtype=torch.float64)
        dense = x.detach() if x.layout is torch.strided else x.detach().to_dense()
        parts = [
            self._score(dense[start : start + BLOCK].to("cpu", torch.float64))
            for start in range(0, len(x), BLOCK)
        ]

        return torch.cat(parts)

    def _width(self) -> int:
        """Width of the rows that it learned from."""
        return int(self.mean_.shape[-1])

    @abstractmethod
    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Scores a block of one or more rows, given in float64 on the CPU."""
