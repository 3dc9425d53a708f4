"""The supervised ceiling: what a classifier that is given the labels achieves on a feature."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.detect import Detector, Scores, row_name
from offkey.errors import Mismatch, check
from offkey.models import Model
from offkey.passes import Rows
from offkey.probes import fit_probe

__all__ = ["ceiling"]

Array = np.ndarray
JOINED = "all sites"
PENALTIES = (1e-6, 1e-4, 1e-2)
"""Of rows of length 1 on average; relative to the mean loss."""


def ceiling(
    detector: Detector,
    model: Model,
    rows: Rows,
    prompts: Prompts | TensorPrompts,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Scores:
    """Scores by a logistic regression that knows which prompts are anomalous.

    An upper mark for what a linear read-out of the feature could achieve, never a detector: it
    needs the labels that a detector must do without. Scores are out-of-fold log-odds in nats: no
    prompt is scored by a regression that saw its label, or that of another prompt from its source.
    All sites of the feature are joined, and every dimension is brought to unit variance over all
    prompts, which needs no labels; the L2 penalty is chosen within each training part. The score
    of the detector is not used.

    Args:
        detector: the detector whose feature is used.
        model: the model that the rows came from.
        rows: the recorded rows of the feature on the prompts.
        prompts: the same prompts, with ``label``.
        folds: number of parts that are held out in turn; fewer where a class has fewer sources.
        seed: of the parts.

    Returns:
        Scores in mode ``ceiling``, without p-values; null for prompts without a label or a row,
        and for all where a class has fewer than two sources.

    Raises:
        BadValue: fewer than two folds.
        Mismatch: the rows are of other prompts, or lack the feature.
    """
    check(folds >= 2, "must be at least 2", where="folds")
    same = rows.ids == tuple(prompts.ids)
    check(same, "they are not of these prompts", where="rows", error=Mismatch)
    labels = prompts["label"] if "label" in prompts else (None,) * len(prompts)
    x = _joined(detector, model, rows)
    known = np.array([label is not None for label in labels]) & ~x.isnan().any(1).numpy()
    place = np.array(sorted(np.flatnonzero(known), key=lambda row: prompts.ids[row]), dtype=int)
    y = np.array([labels[row] for row in place], dtype=int)
    sources = np.array([prompts["source"][row] for row in place])
    folds = min(folds, *(len(set(sources[y == label])) for label in (0, 1)))
    if folds < 2:
        why = "the ceiling needs labelled prompts of both classes, of two sources or more each"
        return Scores.missing(detector.name, detector.alpha, rows.ids, why, mode="ceiling")
    score = np.full(len(prompts), np.nan)
    score[place] = _out_of_fold(_coordinates(x[place]), y, sources, folds, seed)
    unlabelled, missing = "it has no label", "the feature has no value at a site"
    reasons = {
        rows.ids[row]: unlabelled if labels[row] is None else missing
        for row in np.flatnonzero(~known)
    }

    return Scores(
        detector.name,
        "ceiling",
        detector.alpha,
        rows.ids,
        score,
        np.full(len(prompts), np.nan),
        (JOINED,),
        score[:, None],
        reasons,
    )


def _joined(detector: Detector, model: Model, rows: Rows) -> Float[Tensor, "n d"]:
    """The rows of all sites of a feature, side by side."""
    names = [row_name(detector.feature, str(s)) for s in detector.feature.sites_on(model)]
    shards = []
    for shard in rows.shards():
        for name in names:
            check(name in shard.values, f"they hold no {name}", where="rows", error=Mismatch)
        shards.append(torch.cat([shard[name] for name in names], dim=1))

    return torch.cat(shards)


def _coordinates(x: Float[Tensor, "n d"]) -> Float64[Array, "n k"]:
    """Standardised rows of mean squared length 1, rotated so that each has at most n numbers.

    A rotation does not change the result of a regression with an L2 penalty.
    """
    x = x.double()
    spread = x.std(0, correction=0)
    varies = spread > torch.finfo(torch.float32).eps * x.mean(0).abs()
    z = torch.where(varies, (x - x.mean(0)) / torch.where(varies, spread, 1.0), 0.0)
    z = z / max(1, int(varies.sum())) ** 0.5
    if z.shape[1] > len(z):
        values, vectors = torch.linalg.eigh(z @ z.T)
        z = vectors * values.clamp(min=0).sqrt()
    coordinates: Array = z.numpy()

    return coordinates


def _out_of_fold(
    z: Float64[Array, "n k"],
    y: Int[Array, " n"],
    sources: Array,
    folds: int,
    seed: int,
) -> Float64[Array, " n"]:
    """Log-odds of each row by a regression on the parts that it is not in."""
    score = np.full(len(y), np.nan)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(z, y, sources):
        probe = fit_probe(z[train], y[train], PENALTIES, standardise=False)
        score[test] = probe(torch.from_numpy(z[test])).numpy()

    return score
