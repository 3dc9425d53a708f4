"""Permanents, random clauses, and estimates that are accurate on average."""

import itertools
from typing import Any

import numpy as np

from offkey.estimate.arithmetic import accuracy, clause_solutions, permanent, permanent_estimates

from . import row


def rows() -> list[dict[str, Any]]:
    """Numbers of section 1."""
    return permanents() + clauses() + slopes()


def permanents() -> list[dict[str, Any]]:
    """One small matrix, and a constant one."""
    matrix = np.arange(1.0, 10.0).reshape(3, 3)
    estimates = permanent_estimates(matrix)
    constant = np.full((6, 6), 1.7)
    kinds = permanent_estimates(constant)._asdict().items()

    return [
        row("permanent of 1 to 9", 450.0, permanent(matrix)),
        row("permanent of 1 to 9, from its rows", 480.0, float(estimates.rows)),
        row("permanent of 1 to 9, from its columns", 720.0, float(estimates.columns)),
        row("permanent of 1 to 9, from its total", 750.0, float(estimates.total)),
        *(
            row(f"constant matrix, from its {kind}", permanent(constant), float(estimate))
            for kind, estimate in kinds
        ),
    ]


def clauses(seed: int = 0, formulas: int = 4000) -> list[dict[str, Any]]:
    """Mean number of solutions of 12 clauses on 8 variables, beside drawn formulas."""
    estimate = float(clause_solutions(8, 12))
    rng = np.random.default_rng(seed)
    inputs = np.array(list(itertools.product((False, True), repeat=8)))
    counts = np.empty(formulas)
    for place in range(formulas):
        alive = np.ones(len(inputs), dtype=bool)
        for _ in range(12):
            chosen = rng.choice(8, 3, replace=False)
            alive &= (inputs[:, chosen] ^ (rng.random(3) < 0.5)).any(axis=1)
        counts[place] = alive.sum()
    error = float(counts.std(ddof=1)) / formulas**0.5

    return [
        row("mean number of solutions, 12 clauses on 8 variables", 2**8 * (7 / 8) ** 12, estimate),
        row("the same, of 4000 drawn formulas", estimate, counts.mean(), 5 * error / estimate),
    ]


def slopes(seed: int = 0, matrices: int = 4000) -> list[dict[str, Any]]:
    """Random matrices: truth on estimate has slope 1, for rows and for columns."""
    rng = np.random.default_rng(seed)
    drawn = rng.exponential(size=(matrices, 4, 4))
    truths = np.array([permanent(matrix) for matrix in drawn])
    gathered = []
    for kind in ("rows", "columns"):
        estimates = [float(getattr(permanent_estimates(matrix), kind)) for matrix in drawn]
        fit = accuracy(truths, np.array(estimates))
        name = f"slope of permanents on estimates from {kind}"
        gathered.append(row(name, 1.0, fit.slope, 5 * fit.slope_error))

    return gathered
