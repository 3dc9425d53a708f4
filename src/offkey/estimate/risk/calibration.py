"""Itakura-Saito loss, and the fit that repairs a method's systematic error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from offkey.errors import BadInput, Mismatch, NotEnoughData

__all__ = ["itakura_saito", "PowerFit", "fit_power", "leave_one_out", "best_constant"]

_Array = NDArray[np.float64]


def itakura_saito(truth: float, estimate: float) -> float:
    """``p / q - ln(p / q) - 1`` for truth p and estimate q, in nats; infinite where q is 0.

    It is least in the mean where q is the mean of p, and it is 0 where they are equal.

    Raises:
        BadInput: the truth is not positive, or the estimate is negative or not a number.
    """
    if not truth > 0 or not estimate >= 0:
        raise BadInput(
            f"truth {truth} and estimate {estimate}",
            where="Itakura-Saito loss",
            mend="It needs a truth above 0 and an estimate of at least 0",
        )
    if estimate == 0:
        return math.inf
    log_ratio = math.log(truth) - math.log(estimate)

    return math.expm1(log_ratio) - log_ratio


@dataclass(frozen=True)
class PowerFit:
    """The estimate q is read as ``a * q**c + b``; an estimate of 0 or none as b."""

    a: float
    c: float
    b: float

    def __call__(self, estimate: float | None) -> float:
        """The repaired estimate."""
        return self.b + (self.a * estimate**self.c if estimate else 0.0)


def fit_power(estimates: Sequence[float | None], truths: Sequence[float]) -> PowerFit:
    """The a, c and b, none negative, with the least mean Itakura-Saito loss.

    Args:
        estimates: ``None`` or 0 where a method has no estimate.
        truths: each above 0.

    Raises:
        NotEnoughData: fewer than three pairs.
        Mismatch: other counts of estimates than of truths.
        BadInput: a truth is not positive, or an estimate negative.
    """
    _check(estimates, truths)
    p = np.log(np.array(truths, dtype=float))
    answered = np.array([bool(q) for q in estimates])
    q = np.array([math.log(value) if value else -np.inf for value in estimates])
    middle = float(q[answered].mean()) if answered.any() else 0.0
    level = float(np.log(np.mean(np.exp(p))))

    def predicted(theta: _Array) -> _Array:
        height, power, floor = theta
        rise = np.where(answered, height + power * (np.where(answered, q, 0.0) - middle), -np.inf)

        log_estimates: _Array = np.logaddexp(rise, floor)

        return log_estimates

    def loss(theta: _Array) -> float:
        gap = np.clip(p - predicted(theta), -700, 700)

        return float(np.mean(np.expm1(gap) - gap))

    starts = [(level, power, floor) for power in (0.3, 1.0) for floor in (-80.0, level - 4)]
    bounds = [(-150, 30), (0, 20), (-150, 0)]
    fits = [minimize(loss, start, bounds=bounds, method="L-BFGS-B") for start in starts]
    fits += [
        minimize(
            loss,
            best.x,
            bounds=bounds,
            method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 2000},
        )
        for best in sorted(fits, key=lambda one: float(one.fun))[:1]
    ]
    height, power, floor = min(fits, key=lambda one: float(one.fun)).x

    return PowerFit(math.exp(height - power * middle), float(power), math.exp(floor))


def leave_one_out(estimates: Sequence[float | None], truths: Sequence[float]) -> list[float]:
    """Each estimate repaired by a fit on all the others.

    Raises:
        NotEnoughData: fewer than four pairs.
    """
    if len(truths) < 4:
        raise NotEnoughData(
            f"{len(truths)} pairs, and leaving one out needs 4", where="calibration"
        )
    _check(estimates, truths)
    repaired = []
    for i in range(len(truths)):
        rest = [j for j in range(len(truths)) if j != i]
        fit = fit_power([estimates[j] for j in rest], [truths[j] for j in rest])
        repaired.append(fit(estimates[i]))

    return repaired


def best_constant(truths: Sequence[float]) -> tuple[float, float]:
    """The constant estimate of least mean loss, which is the mean of the truths, and that loss."""
    constant = float(np.mean(truths))

    return constant, float(np.mean([itakura_saito(p, constant) for p in truths]))


def _check(estimates: Sequence[float | None], truths: Sequence[float]) -> None:
    if len(estimates) != len(truths):
        raise Mismatch(f"{len(estimates)} estimates and {len(truths)} truths", where="calibration")
    if len(truths) < 3:
        raise NotEnoughData(f"{len(truths)} pairs for three parameters", where="calibration")
    if min(truths) <= 0 or any(q is not None and not q >= 0 for q in estimates):
        raise BadInput("a truth is not positive, or an estimate is negative", where="calibration")
