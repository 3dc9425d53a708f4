"""Estimates of formally stated quantities, and a test of whether estimates are accurate."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData
from offkey.estimate.quantities import Estimate

__all__ = [
    "PermanentEstimates",
    "Accuracy",
    "permanent",
    "permanent_estimates",
    "clause_solutions",
    "accuracy",
]

_MOST = 22
"""Most rows of a matrix whose permanent is summed."""


class PermanentEstimates(NamedTuple):
    """Three estimates of a permanent, from different sums of the matrix.

    Attributes:
        rows: from its row sums.
        columns: from its column sums.
        total: from the sum of all entries.
    """

    rows: Estimate
    columns: Estimate
    total: Estimate


@dataclass(frozen=True)
class Accuracy:
    r"""Least squares of truths on estimates.

    An estimator is accurate over a distribution of expressions where :math:`\mathbb E[(Y - \hat Y)
    X] = 0`, for X the estimate itself and the constant 1: slope 1, intercept 0, no bias.

    Attributes:
        slope: of the fitted line.
        slope_error: its standard error, also where the residuals' spread varies.
        intercept: of the fitted line.
        bias: mean of truth minus estimate.
        bias_error: its standard error.
    """

    slope: float
    slope_error: float
    intercept: float
    bias: float
    bias_error: float


def permanent(matrix: Float[np.ndarray, "n n"]) -> float:
    """The permanent, by Ryser's formula.

    Raises:
        BadInput: not a square and finite matrix.
        BadValue: more than 22 rows.
    """
    matrix = _square(matrix)
    size = len(matrix)
    if size > _MOST:
        raise BadValue(f"{size} rows, and at most {_MOST} are summed", where="permanent")
    total = 0.0
    sums = np.zeros(size)
    for step in range(1, 1 << size):
        column = (step & -step).bit_length() - 1
        gray = step ^ (step >> 1)
        sums += matrix[:, column] if gray >> column & 1 else -matrix[:, column]
        total += (-1) ** (size - gray.bit_count()) * float(sums.prod())

    return total if size else 1.0


def permanent_estimates(matrix: Float[np.ndarray, "n n"]) -> PermanentEstimates:
    r"""Presumes the entries independent, given row sums, column sums, or the total alone.

    :math:`\frac{n!}{n^n} \prod_i \sum_j a_{ij}`, the same of columns, and :math:`\frac{n!}{n^{2n}}
    (\sum_{ij} a_{ij})^n`; all exact where the entries are equal.

    Raises:
        BadInput: not a square and finite matrix.

    References:
        Christiano, Neyman, Xu, 2022. https://arxiv.org/abs/2211.06738
    """
    matrix = _square(matrix)
    size = len(matrix)
    share = math.factorial(size) / size**size if size else 1.0
    rows, columns = matrix.sum(axis=1), matrix.sum(axis=0)
    cost = size * size + size

    return PermanentEstimates(
        Estimate(share * float(rows.prod()), flops=cost),
        Estimate(share * float(columns.prod()), flops=cost),
        Estimate(share * float(matrix.sum() / max(size, 1)) ** size, flops=cost),
    )


def clause_solutions(variables: int, clauses: int, *, length: int = 3) -> Estimate:
    r"""Presumes random clauses independent: :math:`2^n (1 - 2^{-l})^m` solutions on average.

    Args:
        variables: n, how many Boolean variables.
        clauses: m, how many clauses.
        length: l, literals of different variables in a clause.

    Raises:
        BadValue: a negative number, or clauses longer than there are variables.
    """
    if clauses < 0 or not 1 <= length <= variables:
        raise BadValue(
            f"{variables} variables, {clauses} clauses of {length}", where="clause_solutions"
        )

    return Estimate(math.exp(variables * math.log(2) + clauses * math.log1p(-(2.0**-length))))


def accuracy(truths: Float[np.ndarray, " n"], estimates: Float[np.ndarray, " n"]) -> Accuracy:
    """Fits truths to estimates of the same quantities, drawn from a distribution of expressions.

    Raises:
        Mismatch: not as many truths as estimates.
        BadInput: a value is not finite.
        NotEnoughData: fewer than three, or all estimates equal.
    """
    y, x = np.asarray(truths, dtype=np.float64), np.asarray(estimates, dtype=np.float64)
    if y.shape != x.shape or y.ndim != 1:
        raise Mismatch(f"truths of shape {y.shape}, estimates of {x.shape}", where="accuracy")
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise BadInput("a truth or estimate is not finite", where="accuracy")
    centred = x - x.mean() if len(x) else x
    spread = float(centred @ centred)
    if len(x) < 3 or spread == 0:
        raise NotEnoughData(
            f"{len(x)} estimates without a spread",
            where="accuracy",
            mend="Give at least three that differ",
        )
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    off = y - x

    return Accuracy(
        slope=slope,
        slope_error=float(np.sqrt((centred**2 * residual**2).sum())) / spread,
        intercept=float(y.mean() - slope * x.mean()),
        bias=float(off.mean()),
        bias_error=float(off.std(ddof=1)) / math.sqrt(len(off)),
    )


def _square(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    given = np.asarray(matrix, dtype=np.float64)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not np.isfinite(given).all():
        raise BadInput(f"shape {given.shape} is not a square and finite matrix", where="permanent")

    return given
