"""What a detector promises and needs: its false-alarm rate, and trusted prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from offkey.bench.lineup import default_detector
from offkey.bench.organisms import TaskModels
from offkey.bench.rows import BenchRow
from offkey.data import split_by_source
from offkey.detect import Detector, Session, TrustedSplit, evaluate, fit_rows
from offkey.stats import conformal_p_values, flag_count, named_rng

__all__ = ["FalseAlarmRow", "TrustedRow", "false_alarms", "trusted_curve"]

ROUNDS = 200
COUNTS = (40, 60, 100, 150, 200, 300, 400, 600)
DRAWS = 5


@dataclass(frozen=True)
class FalseAlarmRow(BenchRow):
    """The share of prompts of one kind that was flagged.

    Attributes:
        task: name of the organism.
        prompts: which prompts.
        alpha: false-alarm rate at which prompts are flagged.
        rate: share that was flagged.
        low: lower end of the range where the share is expected; null where nothing is promised.
        high: upper end of that range.
    """

    task: str
    prompts: str
    alpha: float
    rate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TrustedRow(BenchRow):
    """AUROC of a detector that is fitted on some number of trusted prompts.

    Attributes:
        task: name of the organism.
        detector: name of the detector.
        trusted: number of trusted prompts.
        auroc: mean over draws of that many prompts.
        low: lowest draw.
        high: highest draw.
        draws: number of draws.
    """

    task: str
    detector: str
    trusted: int
    auroc: float
    low: float
    high: float
    draws: int


def false_alarms(
    models: TaskModels, out: Path, *, alpha: float = 0.05, seed: int = 0, quiet: bool = True
) -> list[FalseAlarmRow]:
    """Flagged shares of fresh trusted prompts, and of the normal test prompts.

    The default detector is fitted on half of the trusted prompts; the other half are calibration
    and fresh prompts in equal parts, drawn 200 times from the same scores. What is promised is
    that the mean over draws is at most alpha, and that a single draw is within its beta-binomial
    range. Nothing is promised for the normal test prompts, which have other names in them.

    Args:
        models: models and prompts of a task.
        out: the task's folder; rows that were recorded there are used again.
        alpha: the false-alarm rate.
        seed: of the split and the draws.
        quiet: show no progress.

    Returns:
        Three rows: fresh trusted prompts in one split, their mean over 200 splits, and normal
        test prompts.
    """
    detector = default_detector(alpha=alpha)
    model, trusted = models.organism, models.trusted.without("label", "agrees")
    fit, standardise, kept = split_by_source(trusted, (0.35, 0.15, 0.5), seed)
    session = Session(model, out, quiet=quiet)
    rows = session.record_features([detector], trusted, "trusted")
    split = TrustedSplit(frozenset(fit.ids), frozenset(standardise.ids), frozenset(kept.ids), seed)
    fit_rows([detector], rows, model, split)
    scores = detector.score_rows(rows[0]).select(split.calibrate).score
    shares, expected = _redraw(scores, alpha, seed)
    normal = models.test.select(label == 0 for label in models.test["label"])
    (normal_scores,) = session.score([detector], normal, name="normal")
    share = float(normal_scores.flagged.mean())
    error = float(np.std(shares, ddof=1) / np.sqrt(ROUNDS))
    mean = float(np.mean(shares))
    figures = {
        "fresh trusted prompts, one split": (shares[0], *expected),
        f"fresh trusted prompts, mean of {ROUNDS} splits": (
            mean,
            mean - 3 * error,
            mean + 3 * error,
        ),
        "normal test prompts, other names": (share, None, None),
    }

    return [FalseAlarmRow(models.task, name, alpha, *values) for name, values in figures.items()]


def trusted_curve(
    models: TaskModels,
    out: Path,
    *,
    detectors: Sequence[Detector] | None = None,
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    quiet: bool = True,
) -> list[TrustedRow]:
    """AUROC by number of trusted prompts; the model runs once, and its rows serve every number.

    Args:
        models: models and prompts of a task.
        out: the task's folder; rows that were recorded there are used again.
        detectors: what is fitted; the default detector if left out.
        counts: numbers of trusted prompts; those above what the task has are left out.
        seed: of the draws.
        quiet: show no progress.

    Returns:
        A row for each detector and number: the mean AUROC of five draws of that many prompts.
    """
    chosen = list(detectors or [default_detector(alpha=0.2)])
    model, trusted = models.organism, models.trusted.without("label", "agrees")
    session = Session(model, out, quiet=quiet)
    rows = session.record_features(chosen, trusted, "trusted")
    test = models.test.without("label", "agrees")
    recorded = session.record_features(chosen, test, "test")
    rng = named_rng(seed, "trusted curve")
    curve: list[TrustedRow] = []
    for count in (n for n in counts if n <= len(trusted)):
        values: dict[str, list[float]] = {detector.name: [] for detector in chosen}
        for draw in range(DRAWS if count < len(trusted) else 1):
            part = trusted.take(rng.permutation(len(trusted))[:count])
            fit_rows(chosen, rows, model, TrustedSplit.of(part, None, seed + draw))
            for detector, record in zip(chosen, recorded, strict=True):
                auroc = evaluate(detector.score_rows(record), models.test).auroc
                assert auroc is not None
                values[detector.name].append(auroc.value)
        curve += [
            TrustedRow(
                task=models.task,
                detector=name,
                trusted=count,
                auroc=float(np.mean(drawn)),
                low=min(drawn),
                high=max(drawn),
                draws=len(drawn),
            )
            for name, drawn in values.items()
        ]

    return curve


def _redraw(
    scores: Float64[np.ndarray, " n"], alpha: float, seed: int
) -> tuple[list[float], tuple[float, float]]:
    """Flagged share of each draw, and the range where a single share is expected."""
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
