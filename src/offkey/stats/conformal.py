"""False-alarm promises: conformal p-values, what they need, and how they may be combined.

Arrays of scores may hold NaN for a null; its p-value is NaN then, and is never flagged.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, betabinom

from offkey.errors import BadValue, NotEnoughData, check, check_choice
from offkey.stats.intervals import check_confidence

__all__ = [
    "Discoveries",
    "FlagCount",
    "benjamini_hochberg",
    "calibration_needed",
    "check_alpha",
    "combine_p_values",
    "conformal_p_values",
    "e_values",
    "false_positive_bound",
    "flag_count",
]

Floats = NDArray[np.float64]


class FlagCount(NamedTuple):
    """How many prompts like the trusted ones will be flagged.

    Attributes:
        expected: mean.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    expected: float
    low: int
    high: int


class Discoveries(NamedTuple):
    """Which hypotheses are rejected.

    Attributes:
        flagged: rejected ones.
        adjusted: least false discovery rate at which each would be rejected.
    """

    flagged: NDArray[np.bool_]
    adjusted: Floats


def conformal_p_values(calibration: ArrayLike, scores: ArrayLike) -> Floats:
    r"""Split-conformal p-values.

    .. math:: p = \frac{1 + \#\{i : c_i \ge s\}}{n + 1}

    If a prompt is exchangeable with the calibration prompts, and these were used for nothing
    else, :math:`P(p \le \alpha) \le \alpha`, on average over calibration sets. Nothing is promised
    for other prompts. The p-values of several prompts share the calibration set and so are
    dependent.

    Args:
        calibration: scores of the calibration prompts; nulls are left out.
        scores: scores of new prompts, higher is more anomalous; a null's p-value is NaN.

    Raises:
        NotEnoughData: no calibration score.

    References:
        Vovk, Gammerman, Shafer, 2005. Bates, Candès, Lei, Romano, Sesia, 2023.
        https://arxiv.org/abs/2104.08279
    """
    known = np.asarray(calibration, dtype=np.float64).reshape(-1)
    known = np.sort(known[~np.isnan(known)])
    if not len(known):
        raise NotEnoughData("no calibration score", where="calibration")
    new = np.asarray(scores, dtype=np.float64)
    p = (1 + len(known) - np.searchsorted(known, new, side="left")) / (len(known) + 1)

    return np.where(np.isnan(new), np.nan, p)


def check_alpha(alpha: float, calibration: int) -> None:
    """Refuses a level that no p-value of this many calibration prompts can reach.

    Raises:
        NotEnoughData: ``alpha`` below 1 / (calibration + 1); says how many prompts are needed.
        BadValue: ``alpha`` not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise BadValue(f"alpha {alpha:g} is not between 0 and 1", where="alpha")
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    if calibration < needed:
        raise NotEnoughData(
            f"alpha {alpha:g} needs {needed} calibration prompts and there are {calibration}",
            where="calibration",
            mend=f"Give more trusted prompts, or an alpha of at least {1 / (calibration + 1):.3g}",
        )


def flag_count(
    calibration: int, test: int, alpha: float, *, confidence: float = 0.95
) -> FlagCount:
    r"""How many of ``test`` prompts like the trusted ones have :math:`p \le \alpha`.

    Beta-binomial: it counts the luck of the calibration draw too. Exact where scores do not tie;
    with ties fewer are flagged, and only ``high`` holds.

    Raises:
        NotEnoughData: too few calibration prompts for ``alpha``.

    References:
        Bates et al., 2023. https://arxiv.org/abs/2104.08279
    """
    check_alpha(alpha, calibration)
    check_confidence(confidence)
    rank = _rank(alpha, calibration)
    tail = (1 - confidence) / 2
    low, high = betabinom.ppf([tail, 1 - tail], test, rank, calibration + 1 - rank)

    return FlagCount(test * rank / (calibration + 1), int(low), int(high))


def false_positive_bound(calibration: int, rank: int = 1, *, confidence: float = 0.95) -> float:
    """Upper bound on the false-positive rate of the threshold at the ``rank``-th largest score.

    With this confidence over calibration sets, prompts like the trusted ones exceed that
    calibration score at most this often.

    Raises:
        BadValue: ``rank`` not between 1 and ``calibration``.
    """
    check_confidence(confidence)
    if not 1 <= rank <= calibration:
        raise BadValue(f"rank {rank} of {calibration} calibration scores", where="rank")

    return float(beta.ppf(confidence, rank, calibration + 1 - rank))


def calibration_needed(fpr: float, *, confidence: float = 0.95) -> int:
    r"""Fewest calibration prompts whose largest score bounds the false-positive rate by ``fpr``.

    .. math:: n \ge \ln(1 - \text{confidence}) / \ln(1 - \text{fpr})

    299 for 1 % with 95 % confidence.

    Raises:
        BadValue: ``fpr`` not between 0 and 1.
    """
    check_confidence(confidence)
    if not 0 < fpr < 1:
        raise BadValue(f"fpr {fpr:g} is not between 0 and 1", where="fpr")

    return math.ceil(math.log(1 - confidence) / math.log1p(-fpr) - 1e-9)


def benjamini_hochberg(p: ArrayLike, rate: float) -> Discoveries:
    """Rejects hypotheses so that on average at most ``rate`` of the rejections are false.

    Holds for independent p-values and for conformal ones that share a calibration set. Nulls are
    left out and not counted among the hypotheses.

    Raises:
        BadValue: ``rate`` not between 0 and 1.

    References:
        Benjamini, Hochberg, 1995. Bates et al., 2023.
    """
    if not 0 < rate < 1:
        raise BadValue(f"rate {rate:g} is not between 0 and 1", where="benjamini_hochberg")
    values = np.asarray(p, dtype=np.float64).reshape(-1)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    scaled = values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(1, np.minimum.accumulate(scaled[::-1])[::-1])

    return Discoveries(adjusted <= rate * (1 + 1e-12), adjusted)


def combine_p_values(
    p: ArrayLike, method: Literal["mean", "min"] = "mean", *, axis: int = 0
) -> Floats:
    """One p-value from several, valid whatever their dependence.

    ``"mean"`` is twice the mean, better where many are small; ``"min"`` is the number of them
    times the least, better where one is. Fisher's method would need independence, which layers of
    one model do not have. A null among them makes the result null.

    Raises:
        BadValue: unknown method, or nothing to combine.

    References:
        Vovk, Wang, 2020: Combining p-values via averaging. https://arxiv.org/abs/1212.4966
    """
    values = np.asarray(p, dtype=np.float64)
    if not values.ndim or not values.shape[axis]:
        raise BadValue("no p-values to combine", where="combine_p_values")
    check_choice("method", method, ("mean", "min"))
    if method == "mean":
        merged = 2 * values.mean(axis=axis)
    else:
        merged = values.shape[axis] * values.min(axis=axis)

    return np.asarray(np.minimum(1, merged), dtype=np.float64)


def e_values(
    p: ArrayLike, method: Literal["mixture", "power"] = "mixture", *, kappa: float = 0.5
) -> Floats:
    r"""E-values: bets against the null, of mean at most 1 if it holds; so are their averages.

    ``"power"`` is :math:`\kappa p^{\kappa - 1}`; ``"mixture"`` its average over all
    :math:`\kappa`, :math:`(1 - p + p \ln p) / (p \ln^2 p)`.

    Raises:
        BadValue: unknown method, ``kappa`` not between 0 and 1, or a p-value outside 0 to 1.

    References:
        Vovk, Wang, 2021: E-values: calibration, combination and applications.
        https://arxiv.org/abs/1912.06116
    """
    values = np.asarray(p, dtype=np.float64)
    if (values < 0).any() or (values > 1).any():
        raise BadValue("a p-value outside 0 to 1", where="e_values")
    check_choice("method", method, ("mixture", "power"))
    check(0 < kappa < 1, f"kappa {kappa:g} is not between 0 and 1", where="e_values")
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "power":
            return np.asarray(kappa * values ** (kappa - 1), dtype=np.float64)
        log = np.log(values)
        # near p = 1 numerator and denominator both vanish: their series in log p
        near = 0.5 - log / 6 + log**2 / 24 - log**3 / 120
        bet = np.where(log > -0.01, near, (1 - values + values * log) / (values * log**2))

    return np.where(values == 0, np.inf, bet)


def _rank(alpha: float, calibration: int) -> int:
    """Rank from the top of the calibration score that a flagged score must exceed."""
    return math.floor(alpha * (calibration + 1) + 1e-9)
