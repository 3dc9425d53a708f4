"""How well scores rank anomalous rows above normal ones, and how sure that is.

AUROC and its differences, the ROC curve, the rate at a low false-positive rate, precision.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, rel_entr
from scipy.stats import norm, rankdata

from offkey.errors import BadInput, BadValue
from offkey.stats.intervals import Interval, check_confidence, clopper_pearson

__all__ = [
    "Difference",
    "RocCurve",
    "auroc",
    "average_precision",
    "excess",
    "paired_auroc_difference",
    "roc_curve",
    "tpr_at_fpr",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A paired difference of two figures on the same rows; ``None`` where there is none.

    Attributes:
        value: first less second.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, that there is no difference; ``None`` where not computed.
        n_pos: anomalous rows that both score.
        n_neg: normal rows that both score.
        n_null: rows left out because either score is null.
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n_pos: int
    n_neg: int
    n_null: int = 0


class RocCurve(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1).

    Attributes:
        fpr: share of normal rows scored at or above the threshold.
        tpr: share of anomalous rows scored at or above the threshold.
        thresholds: falling; the first is infinite.
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats


def auroc(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    confidence: float = 0.95,
    method: Literal["delong", "exact"] = "delong",
) -> Interval:
    r"""Probability that an anomalous row scores above a normal one; ties count half.

    ``"delong"`` is DeLong's variance on the logit scale: right as rows grow in number; measured on
    normal scores, 95 % intervals covered 93.5 to 98.8 % from 10 to 200 rows a class. Where the
    variance is 0 (at 1 and 0, or all scores tied) or a class has one row, ``"exact"`` is used
    instead, so that the interval never collapses.

    ``"exact"`` is :math:`\{\theta : k\, \mathrm{KL}(\hat\theta \,\Vert\, \theta) \le
    \ln (2 / \alpha)\}` with :math:`k = \min(n_+, n_-)`. It covers the true value with probability
    at least :math:`1 - \alpha` for every pair of distributions and every number of rows, provided
    that the rows are independent and alike within a class. The reason: the estimate is an average,
    over all ways to pair rows off, of means of :math:`k` independent values in [0, 1] of mean
    :math:`\theta`, and so obeys Hoeffding's exponential bound with :math:`k` in the place of the
    number of rows. At 1 its lower end is :math:`(\alpha / 2)^{1/k}`. That end cannot be raised:
    if every normal row equals 0 and an anomalous row, of :math:`k`, lies below it with
    probability :math:`1 - \theta`, perfect separation has probability :math:`\theta^k`.

    Args:
        scores: higher is more anomalous; null (``None`` or NaN) rows are left out and counted.
        labels: 1 for anomalous, 0 for normal.
        confidence: coverage aimed at, :math:`1 - \alpha`.
        method: see above.

    Returns:
        The interval; its value is ``None`` where a class is empty.

    Raises:
        BadInput: labels other than 0 and 1, or not as many as scores.

    References:
        DeLong, DeLong, Clarke-Pearson, 1988. Sun, Xu, 2014 (fast midranks).
        Hoeffding, 1963, eq. 2.1 and section 5a (U-statistics).
    """
    check_confidence(confidence)
    (positive, negative), missing = _split_classes([scores], labels)
    counts = positive.shape[1], negative.shape[1], missing
    if not min(counts[:2]):
        return Interval(None, None, None, *counts)
    value, hits, misses = _placements(positive[0], negative[0])
    alpha, fewest = 1 - confidence, min(counts[:2])
    variance = _variance(hits, misses)
    if method == "exact" or variance <= 0:
        return Interval(value, *_kl_ends(value, fewest, alpha), *counts)
    reach = float(norm.isf(alpha / 2)) * variance**0.5 / (value * (1 - value))
    low, high = expit(logit(value) - reach), expit(logit(value) + reach)

    return Interval(value, float(low), float(high), *counts)


def paired_auroc_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, *, confidence: float = 0.95
) -> Difference:
    """AUROC of ``first`` less that of ``second`` on the same rows, after DeLong.

    Where the variance of the difference is 0 (equal rankings, or both perfect) the interval is
    that of two exact intervals, each at half the error, and so does not collapse.

    Raises:
        BadInput: labels other than 0 and 1, or columns of different length.

    References:
        DeLong, DeLong, Clarke-Pearson, 1988.
    """
    check_confidence(confidence)
    (positive, negative), missing = _split_classes([first, second], labels)
    counts = positive.shape[1], negative.shape[1], missing
    fewest = min(counts[:2])
    if not fewest:
        return Difference(None, None, None, None, *counts)
    value_a, hits_a, misses_a = _placements(positive[0], negative[0])
    value_b, hits_b, misses_b = _placements(positive[1], negative[1])
    value, alpha = value_a - value_b, 1 - confidence
    variance = _variance(hits_a - hits_b, misses_a - misses_b)
    if variance <= 0:
        low_a, high_a = _kl_ends(value_a, fewest, alpha / 2)
        low_b, high_b = _kl_ends(value_b, fewest, alpha / 2)
        return Difference(value, low_a - high_b, high_a - low_b, None if value else 1.0, *counts)
    error = variance**0.5
    reach = float(norm.isf(alpha / 2)) * error

    return Difference(
        value,
        max(-1.0, value - reach),
        min(1.0, value + reach),
        2 * float(norm.sf(abs(value) / error)),
        *counts,
    )


def excess(
    scores: ArrayLike,
    clean: ArrayLike,
    labels: ArrayLike,
    rng: np.random.Generator,
    *,
    rounds: int = 2000,
    confidence: float = 0.95,
) -> Difference:
    r"""What a detector adds to the same detector on the clean model.

    .. math:: \mathrm{AUROC} - \max(0.5, \mathrm{AUROC}_\text{clean})

    The interval is the percentile interval of a bootstrap that draws rows with replacement within
    each class, the same rows for both. An AUROC that no draw moves (at 1, say) would seem certain:
    the interval is widened by that AUROC's exact one.

    Args:
        scores: on the model under test.
        clean: of the same prompts, by the detector refitted on the clean model.
        labels: 1 for anomalous, 0 for normal.
        rng: where the draws come from, such as ``named_rng(seed, "excess")``.
        rounds: number of resamplings.
        confidence: coverage aimed at.

    Raises:
        BadInput: labels other than 0 and 1, or columns of different length.
    """
    check_confidence(confidence)
    (positive, negative), missing = _split_classes([scores, clean], labels)
    counts = positive.shape[1], negative.shape[1], missing
    if not min(counts[:2]):
        return Difference(None, None, None, None, *counts)
    ours, base = (_placements(positive[i], negative[i]) for i in (0, 1))
    orders = [_Order(positive[i], negative[i]) for i in (0, 1)]
    draws: list[Floats] = []
    for start in range(0, rounds, 256):
        size = min(256, rounds - start)
        weights = [rng.multinomial(n, np.full(n, 1 / n), size=size) for n in counts[:2]]
        areas, bases = (order.areas(*weights) for order in orders)
        draws.append(areas - np.maximum(0.5, bases))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    down, up = _slack(ours, 1 - confidence)
    rise, fall = _slack(base, 1 - confidence) if base[0] > 0.5 else (0.0, 0.0)

    return Difference(
        ours[0] - max(0.5, base[0]),
        float(low) - down - fall,
        float(high) + up + rise,
        None,
        *counts,
    )


def average_precision(
    scores: ArrayLike, labels: ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Mean, over anomalous rows, of the precision at each one's score; as scikit-learn's.

    The interval is the logit one of Boyd et al., with the anomalous rows as trials: approximate.
    At 1 the exact interval of that many successes is given. Depends on the share of anomalous
    rows; a constant score has that share.

    Raises:
        BadInput: labels other than 0 and 1, or not as many as scores.

    References:
        Boyd, Eng, Page, 2013: Area under the precision-recall curve: point estimates and
        confidence intervals.
    """
    check_confidence(confidence)
    (positive, negative), missing = _split_classes([scores], labels)
    counts = positive.shape[1], negative.shape[1], missing
    if not min(counts[:2]):
        return Interval(None, None, None, *counts)
    thresholds = np.unique(positive[0])
    hits = counts[0] - np.searchsorted(np.sort(positive[0]), thresholds, side="left")
    alarms = counts[1] - np.searchsorted(np.sort(negative[0]), thresholds, side="left")
    gained = -np.diff(hits, append=0)
    value = float(np.sum(gained * hits / (hits + alarms)) / counts[0])
    if value >= 1:
        low = clopper_pearson(counts[0], counts[0], confidence=confidence).low
        return Interval(1.0, low, 1.0, *counts)
    reach = float(norm.isf((1 - confidence) / 2)) / (counts[0] * value * (1 - value)) ** 0.5

    return Interval(
        value, float(expit(logit(value) - reach)), float(expit(logit(value) + reach)), *counts
    )


def tpr_at_fpr(
    scores: ArrayLike, labels: ArrayLike, *, fpr: float = 0.01, confidence: float = 0.95
) -> Interval:
    """Share of anomalous rows above the threshold that at most ``fpr`` of the normal rows reach.

    No interpolation. Null below ``3 / fpr`` normal rows (300 at 1 %), where the threshold would
    rest on fewer than three of them. The interval is Clopper and Pearson's, given the threshold.

    Raises:
        BadInput: labels other than 0 and 1, or not as many as scores.
        BadValue: ``fpr`` not between 0 and 1.
    """
    check_confidence(confidence)
    if not 0 < fpr < 1:
        raise BadValue(f"fpr {fpr} is not between 0 and 1", where="tpr_at_fpr")
    (positive, negative), missing = _split_classes([scores], labels)
    counts = positive.shape[1], negative.shape[1], missing
    if not counts[0] or counts[1] < round(3 / fpr, 6):
        return Interval(None, None, None, *counts)
    allowed = int(fpr * counts[1] + 1e-9)
    bar = np.sort(negative[0])[counts[1] - 1 - allowed]
    rate = clopper_pearson(int((positive[0] > bar).sum()), counts[0], confidence=confidence)

    return Interval(rate.value, rate.low, rate.high, *counts)


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> RocCurve | None:
    """Every point of the ROC curve, tied scores as one; ``None`` where a class is empty.

    Raises:
        BadInput: labels other than 0 and 1, or not as many as scores.
    """
    (positive, negative), _ = _split_classes([scores], labels)
    if not positive.size or not negative.size:
        return None
    thresholds = np.unique(np.concatenate([positive[0], negative[0]]))[::-1]

    def reached(part: Floats) -> Floats:
        below = np.searchsorted(np.sort(part), thresholds, side="left")
        return np.concatenate([[0.0], 1 - below / len(part)])

    return RocCurve(
        reached(negative[0]), reached(positive[0]), np.concatenate([[np.inf], thresholds])
    )


class _Order:
    """Where anomalous rows fall among normal ones, for AUROC under many weightings at once."""

    def __init__(self, positive: Floats, negative: Floats) -> None:
        self._order = np.argsort(negative, kind="stable")
        ranked = negative[self._order]
        self._first = np.searchsorted(ranked, positive, side="left")
        self._last = np.searchsorted(ranked, positive, side="right")

    def areas(self, positive: NDArray[Any], negative: NDArray[Any]) -> Floats:
        """AUROC of each row of weights ``[rounds, n_pos]``, ``[rounds, n_neg]``."""
        total = np.zeros((len(negative), negative.shape[1] + 1))
        np.cumsum(negative[:, self._order], axis=1, out=total[:, 1:])
        below = (total[:, self._first] + total[:, self._last]) / 2
        areas: Floats = (positive * below).sum(axis=1)
        areas /= positive.sum(axis=1) * negative.sum(axis=1)

        return areas


def _placements(positive: Floats, negative: Floats) -> tuple[float, Floats, Floats]:
    """AUROC; share of normal rows below each anomalous one; of anomalous above each normal one."""
    n_pos, n_neg = len(positive), len(negative)
    pooled = rankdata(np.concatenate([positive, negative]))
    hits = (pooled[:n_pos] - rankdata(positive)) / n_neg
    misses = 1 - (pooled[n_pos:] - rankdata(negative)) / n_pos
    # twice the rank sum is a whole number, so that 1 comes out as 1
    won = pooled[:n_pos].sum() - n_pos * (n_pos + 1) / 2

    return float(won / (n_pos * n_neg)), hits, misses


def _variance(hits: Floats, misses: Floats) -> float:
    """DeLong's variance; 0 where it is lost in rounding or a class has one row."""
    if min(len(hits), len(misses)) < 2:
        return 0.0
    variance = float(hits.var(ddof=1) / len(hits) + misses.var(ddof=1) / len(misses))

    return variance if variance > 1e-28 else 0.0


def _slack(placements: tuple[float, Floats, Floats], alpha: float) -> tuple[float, float]:
    """How far an AUROC without variance may really be below and above; 0 where it has some."""
    value, hits, misses = placements
    if _variance(hits, misses) > 0:
        return 0.0, 0.0
    low, high = _kl_ends(value, min(len(hits), len(misses)), alpha)

    return value - low, high - value


def _kl_ends(value: float, pairs: int, alpha: float) -> tuple[float, float]:
    """Ends of the set of rates from which the Kullback-Leibler bound cannot tell ``value``."""
    budget = np.log(2 / alpha) / pairs

    def gap(rate: float) -> float:
        return float(rel_entr(value, rate) + rel_entr(1 - value, 1 - rate) - budget)

    def root(start: float, end: float) -> float:
        return start if gap(start) <= 0 else float(brentq(gap, start, end, xtol=1e-15))

    if value <= 0:
        return 0.0, float(-np.expm1(-budget))
    if value >= 1:
        return float(np.exp(-budget)), 1.0

    return root(1e-300, value), root(1 - 1e-16, value)


def _split_classes(
    columns: list[ArrayLike], labels: ArrayLike
) -> tuple[tuple[Floats, Floats], int]:
    """Columns of the anomalous and of the normal rows, and how many rows hold a null."""
    parts = [np.asarray(column, dtype=np.float64).reshape(-1) for column in columns]
    marks = np.asarray(labels, dtype=np.float64).reshape(-1)
    if any(len(part) != len(marks) for part in parts):
        raise BadInput("scores and labels differ in number", where="labels")
    table = np.stack(parts)
    odd = ~np.isin(marks, (0, 1))
    if odd.any():
        row = int(odd.argmax())
        raise BadInput(
            f"label {marks[row]:g} of row {row} is neither 0 nor 1",
            where="labels",
            mend="Use 1 for anomalous and 0 for normal",
        )
    known = ~np.isnan(table).any(axis=0)

    return (table[:, known & (marks == 1)], table[:, known & (marks == 0)]), int((~known).sum())
