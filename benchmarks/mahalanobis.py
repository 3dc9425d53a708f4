"""Mahalanobis fit and score against scikit-learn's."""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from offkey.scores import get_score

from ._timing import interleaved, measured, ratio, row
from .settings import Settings

__all__ = ["beside_scikit_learn"]

CHUNK = 2048


def beside_scikit_learn(settings: Settings) -> list[dict[str, Any]]:
    """Time of fitting and scoring the same rows, and the largest relative difference."""
    rows = [_compared(5_000, 1024, settings.pairs)]
    if settings.full:
        rows.append(_compared(20_000, 4096, 1))  # scikit-learn alone takes a quarter of an hour

    return rows


def _compared(rows: int, width: int, pairs: int) -> dict[str, Any]:
    x = made(rows, width)
    distances: dict[str, Any] = {}

    def ours() -> None:
        score = get_score("mahalanobis")
        statistic = score.statistic()
        for start in range(0, rows, CHUNK):
            part = torch.from_numpy(x[start : start + CHUNK])
            statistic.update(part, list(map(str, range(len(part)))))
        score.finish(statistic, None, torch.Generator())
        distances["ours"] = score(torch.from_numpy(x)).numpy()

    def theirs() -> None:
        distances["theirs"] = LedoitWolf().fit(x).mahalanobis(x)

    runs = interleaved(lambda: measured(ours), lambda: measured(theirs), pairs)
    gap = float(np.max(np.abs(distances["ours"] / distances["theirs"] - 1)))
    note = (
        f"Ledoit-Wolf, float64; largest relative difference {gap:.1e} (target 1e-8); "
        f"{runs[-1][0].seconds:.1f} s against {runs[-1][1].seconds:.1f} s; processor time "
        f"{ratio(runs, 'processor_seconds').median:.3f}"
    )
    job = f"Mahalanobis fit and score, d = {width:,}, n = {rows:,}"
    result = row(
        job,
        ratio(runs),
        unit="time",
        at_most=1.0,
        peer="scikit-learn",
        peer_version=version("scikit-learn"),
        note=note,
    )

    return {**result, "met": bool(result["met"] and gap <= 1e-8)}


def made(rows: int, width: int) -> np.ndarray:
    """Rows with a few strong directions, uneven scales and a mean far from zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, width))
    x *= np.geomspace(1, 0.05, width)
    x += rng.standard_normal((rows, 16)) @ rng.standard_normal((16, width))
    x += 5 * rng.standard_normal(width)

    return x
