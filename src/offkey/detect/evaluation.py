"""How well scores separate anomalous prompts from normal ones, and whether prompts drifted."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from offkey.data import Prompts, TensorPrompts
from offkey.detect.records import DriftCheck, Evaluation, MetricInterval, SiteMetrics
from offkey.detect.scores import Scores
from offkey.stats import (
    auroc,
    average_precision,
    length_drift,
    named_rng,
    topic_drift,
    tpr_at_fpr,
)

__all__ = ["drift_checks", "evaluate", "site_aurocs"]

Array = np.ndarray
NOTICEABLE = 0.01
"""A drift with a p-value below this is mentioned as a warning."""


def evaluate(scores: Scores, prompts: Prompts | TensorPrompts) -> Evaluation:
    """Metrics of one detector; null where labels do not allow one.

    Args:
        scores: of the prompts, in their order.
        prompts: with the column ``label`` and, for the subsets, ``agrees``.
    """
    labels = _column(prompts, "label")
    agrees = _column(prompts, "agrees")
    known = ~np.isnan(scores.score)
    labelled = known & ~np.isnan(labels)

    def within(subset: Bool[Array, " n"]) -> MetricInterval | None:
        use = labelled & subset

        return MetricInterval.from_stats(auroc(scores.score[use], labels[use]))

    score, label = scores.score[labelled], labels[labelled]

    return Evaluation(
        auroc=within(labelled),
        agrees=within(agrees == 1),
        disagrees=within(agrees == 0),
        average_precision=average_precision(score, label).value,
        tpr_at_1pct_fpr=tpr_at_fpr(score, label, fpr=0.01).value,
        dropped=int((~known).sum()),
    )


def site_aurocs(scores: Scores, prompts: Prompts | TensorPrompts) -> list[SiteMetrics]:
    """AUROC of each site alone, in the model's order."""
    labels = _column(prompts, "label")
    use = ~np.isnan(labels) & ~np.isnan(scores.by_site).any(axis=1)

    return [
        SiteMetrics(
            detector=scores.detector,
            site=site,
            auroc=MetricInterval.from_stats(auroc(scores.by_site[use, place], labels[use])),
        )
        for place, site in enumerate(scores.sites)
    ]


def drift_checks(
    trusted: Sequence[str | None],
    test: Sequence[str | None],
    trusted_lengths: Sequence[int | None],
    test_lengths: Sequence[int | None],
    *,
    seed: int,
) -> list[DriftCheck]:
    """Compares length and topic of two sets of prompts; empty for prompts that are not text.

    After a drift, flags may mean "other prompts than the trusted ones" rather than "handled in
    another way", and the false-alarm rate is not promised.

    Args:
        trusted: texts of the trusted prompts.
        test: texts of the test prompts.
        trusted_lengths: lengths of the trusted prompts, in tokens.
        test_lengths: lengths of the test prompts, in tokens.
        seed: of the permutations.
    """
    texts = [[text for text in side if text is not None] for side in (trusted, test)]
    counts = [[n for n in side if n is not None] for side in (trusted_lengths, test_lengths)]
    if not all(texts) or not all(counts):
        return []
    length = length_drift(*counts)
    topic = topic_drift(texts[0], texts[1], named_rng(seed, "drift"), rounds=199, most=400)
    medians = [float(np.median(side)) for side in counts]

    return [
        DriftCheck(
            what="length",
            p_value=length.p_value,
            effect=length.effect,
            warn=_is_noticeable(length.p_value),
            trusted=medians[0],
            test=medians[1],
        ),
        DriftCheck(
            what="topic",
            p_value=topic.p_value,
            effect=topic.effect,
            warn=_is_noticeable(topic.p_value),
            trusted=None,
            test=None,
        ),
    ]


def _is_noticeable(p_value: float | None) -> bool:
    return p_value is not None and p_value < NOTICEABLE


def _column(prompts: Prompts | TensorPrompts, name: str) -> Float64[Array, " n"]:
    """A column of truth values as numbers, NaN where it is null or missing."""
    values = prompts[name] if name in prompts else [None] * len(prompts)

    return np.array([np.nan if value is None else float(value) for value in values])
