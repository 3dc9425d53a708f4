"""Whether false alarms keep their promise, counted on trusted prompts that were held back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offkey.bench._arena import Arena
from offkey.bench._lineup import default_detector
from offkey.data import split_by_source
from offkey.detect import Session, TrustedSplit, fit_rows
from offkey.stats import conformal_p_values, flag_count, named_rng

__all__ = ["false_alarms"]

ROUNDS = 200


def false_alarms(
    arena: Arena, out: Path, *, alpha: float = 0.05, seed: int = 0, quiet: bool = True
) -> list[dict[str, Any]]:
    """Flagged shares of fresh trusted prompts, and of the test's normal prompts.

    Half of the trusted prompts fit the default detector; the other half are calibration and
    fresh prompts in equal parts, drawn anew 200 times from the same scores. The promise is the
    mean over the draws at most alpha, and one draw within its beta-binomial interval. Nothing is
    promised for the test's normal prompts, whose names are others.

    Args:
        arena: models and prompts of a task.
        out: the task's folder; rows that lie there are used again.
        alpha: the false-alarm rate asked for.
        seed: of the split and the draws.
        quiet: show no progress.

    Returns:
        Three rows: ``fresh trusted prompts, one split``, their ``mean of 200 splits``, and
        ``normal test prompts``; each with task, alpha, rate, low and high.
    """
    detector = default_detector(alpha=alpha)
    model, trusted = arena.organism, arena.trusted.without("label", "agrees")
    fit, standardise, kept = split_by_source(trusted, (0.35, 0.15, 0.5), seed)
    session = Session(model, out, quiet=quiet)
    rows = session.record_features([detector], trusted, "trusted")
    parts = TrustedSplit(frozenset(fit.ids), frozenset(standardise.ids), frozenset(kept.ids), seed)
    fit_rows([detector], rows, model, parts)
    scores = detector.score_rows(rows[0]).select(parts.calibrate).score
    shares, expected = _redrawn(scores, alpha, seed)
    normal = arena.test.select(label == 0 for label in arena.test["label"])
    blind = normal.without("label", "agrees")
    tested = session.record_features([detector], blind, "normal")
    share = float(detector.score_rows(tested[0]).flagged.mean())
    error = float(np.std(shares, ddof=1) / np.sqrt(ROUNDS))
    mean = float(np.mean(shares))

    return [
        _row(arena.task, "fresh trusted prompts, one split", alpha, shares[0], *expected),
        _row(arena.task, f"fresh trusted prompts, mean of {ROUNDS} splits", alpha, mean,
             mean - 3 * error, mean + 3 * error),
        _row(arena.task, "normal test prompts, other names", alpha, share, None, None),
    ]  # fmt: skip


def _redrawn(
    scores: np.ndarray, alpha: float, seed: int
) -> tuple[Sequence[float], tuple[float, float]]:
    """Flagged share of each draw, and the interval that one share should lie in."""
    rng = named_rng(seed, "false alarms")
    half = len(scores) // 2
    shares = []
    for _ in range(ROUNDS):
        order = rng.permutation(len(scores))
        p_values = conformal_p_values(scores[order[:half]], scores[order[half:]])
        shares.append(float((p_values <= alpha).mean()))
    fresh = len(scores) - half
    count = flag_count(half, fresh, alpha)

    return shares, (count.low / fresh, count.high / fresh)


def _row(
    task: str, prompts: str, alpha: float, rate: float, low: float | None, high: float | None
) -> dict[str, Any]:
    return {"task": task, "prompts": prompts, "alpha": alpha, "rate": rate, "low": low,
            "high": high}  # fmt: skip
