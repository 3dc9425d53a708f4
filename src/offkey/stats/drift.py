"""Whether new prompts differ from the trusted ones in ways that have nothing to do with the model.

A detector that fires on longer prompts or on another topic has not found a mechanism; these tests
show when to look there first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp, mannwhitneyu

from offkey.stats.ranks import auroc

__all__ = ["Drift", "length_drift", "topic_drift"]

_WORDS = r"\w+|[^\w\s]"


@dataclass(frozen=True)
class Drift:
    """The outcome of a two-sample test.

    Attributes:
        p_value: that both samples come from one distribution; ``None`` where it cannot be tested.
        effect: 0 where they are alike, 1 where they are separated without error; ``None`` where
            it cannot be measured.
        n_trusted: trusted prompts that were compared.
        n_new: new prompts that were compared.
    """

    p_value: float | None
    effect: float | None
    n_trusted: int
    n_new: int


def length_drift(trusted: ArrayLike, new: ArrayLike) -> Drift:
    """Compares lengths, or any other number a prompt has.

    The p-value is twice the smaller of Kolmogorov and Smirnov's (any difference) and Mann and
    Whitney's (longer or shorter), which is valid whatever their dependence. The effect is the
    largest gap between the two distribution functions. Nulls are left out.
    """
    first, second = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (trusted, new))
    first, second = first[~np.isnan(first)], second[~np.isnan(second)]
    counts = len(first), len(second)
    if not min(counts):
        return Drift(None, None, *counts)
    if np.ptp(np.concatenate([first, second])) == 0:
        return Drift(1.0, 0.0, *counts)
    gap = ks_2samp(first, second, method="exact" if counts[0] * counts[1] <= 10_000 else "asymp")
    shift = mannwhitneyu(first, second, method="asymptotic")
    least = min(float(gap.pvalue), float(shift.pvalue))

    return Drift(min(1.0, 2 * least), float(gap.statistic), *counts)


def topic_drift(
    trusted: Sequence[str],
    new: Sequence[str],
    rng: np.random.Generator,
    *,
    rounds: int = 499,
    most: int = 1000,
) -> Drift:
    """Compares the words that are used.

    Prompts become TF-IDF vectors of length 1. The test is the unbiased maximum mean discrepancy
    with their inner product as kernel, and its p-value comes from permutations, so it is exact for
    independent prompts. The effect is how well a prompt's side is predicted by the side whose
    other prompts are more similar: 2 · AUROC - 1, or 0 if that is negative.

    Args:
        trusted: texts of the trusted prompts.
        new: texts of the new ones.
        rng: draws permutations and subsamples, such as ``named_rng(seed, "drift")``.
        rounds: number of permutations; the least p-value is 1 / (rounds + 1).
        most: prompts of a side that are compared at most.

    References:
        Gretton et al., 2012, eq. 3: A kernel two-sample test.
    """
    # half a second that only this function needs
    from sklearn.feature_extraction.text import TfidfVectorizer

    sides = [_some(texts, most, rng) for texts in (trusted, new)]
    counts = len(sides[0]), len(sides[1])
    texts = [*sides[0], *sides[1]]
    if min(counts) < 2 or not any(text.strip() for text in texts):
        return Drift(None, None, *counts)
    vectors = TfidfVectorizer(token_pattern=_WORDS, sublinear_tf=True).fit_transform(texts)
    kernel = np.asarray((vectors @ vectors.T).todense(), dtype=np.float64)
    np.fill_diagonal(kernel, 0)
    is_new = np.repeat([0.0, 1.0], counts)
    draws = np.stack([is_new, *(rng.permutation(is_new) for _ in range(rounds))], axis=1)
    discrepancies = _discrepancy(kernel, draws)
    reached = int((discrepancies[1:] >= discrepancies[0] - 1e-12).sum())

    return Drift((1 + reached) / (rounds + 1), _separation(kernel, is_new), *counts)


def _some(texts: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    if len(texts) <= most:
        return list(texts)

    return [texts[i] for i in rng.choice(len(texts), most, replace=False)]


def _discrepancy(kernel: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unbiased squared discrepancy for each column of ``sides``; the kernel's diagonal is 0."""
    n, m = len(sides) - int(sides[:, 0].sum()), int(sides[:, 0].sum())
    within = (sides * (kernel @ sides)).sum(axis=0)
    across = kernel.sum(axis=1) @ sides - within
    rest = kernel.sum() - within - 2 * across
    result: NDArray[np.float64] = (
        within / (m * (m - 1)) + rest / (n * (n - 1)) - 2 * across / (m * n)
    )

    return result


def _separation(kernel: NDArray[np.float64], is_new: NDArray[np.float64]) -> float:
    """How well a prompt's mean similarity to the others of each side predicts its own side."""
    m, n = is_new.sum(), (1 - is_new).sum()
    nearness = kernel @ is_new / (m - is_new) - kernel @ (1 - is_new) / (n - (1 - is_new))
    area = auroc(nearness, is_new).value

    return max(0.0, 2 * area - 1) if area is not None else 0.0
