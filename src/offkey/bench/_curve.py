"""How many trusted prompts a detector needs, measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offkey.bench._arena import Arena
from offkey.bench._lineup import default_detector
from offkey.detect import Detector, Session, TrustedSplit, evaluate, fit_rows
from offkey.stats import named_rng

__all__ = ["trusted_curve"]

COUNTS = (40, 60, 100, 150, 200, 300, 400, 600)
DRAWS = 5


def trusted_curve(
    arena: Arena,
    out: Path,
    *,
    detectors: Sequence[Detector] | None = None,
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """AUROC by number of trusted prompts; the model runs once, and the rows serve every count.

    Args:
        arena: models and prompts of a task.
        out: the task's folder; rows that lie there are used again.
        detectors: what is fitted; the default one if left out.
        counts: numbers of trusted prompts; those above what the task has are left out.
        seed: of the draws.
        quiet: show no progress.

    Returns:
        A row a detector and count: the mean AUROC of five draws of that many prompts, with the
        lowest and highest.
    """
    chosen = list(detectors or [default_detector(alpha=0.2)])
    model, trusted = arena.organism, arena.trusted.without("label", "agrees")
    session = Session(model, out, quiet=quiet)
    rows = session.record_features(chosen, trusted, "trusted")
    test = arena.test.without("label", "agrees")
    tested = session.record_features(chosen, test, "test")
    rng = named_rng(seed, "trusted curve")
    told = []
    for count in (n for n in counts if n <= len(trusted)):
        values: dict[str, list[float]] = {detector.name: [] for detector in chosen}
        for draw in range(DRAWS if count < len(trusted) else 1):
            part = trusted.take(rng.permutation(len(trusted))[:count])
            fit_rows(chosen, rows, model, TrustedSplit.of(part, None, seed + draw))
            for detector, record in zip(chosen, tested, strict=True):
                auroc = evaluate(detector.score_rows(record), arena.test).auroc
                assert auroc is not None
                values[detector.name].append(auroc.value)
        told += [
            {"task": arena.task, "detector": name, "trusted": count, "auroc": float(np.mean(v)),
             "low": min(v), "high": max(v), "draws": len(v)}
            for name, v in values.items()
        ]  # fmt: skip

    return told
