"""Logistic probes that tell two answers apart, and their training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.errors import BadInput, NotEnoughData, check
from offkey.models import Reading
from offkey.storage import Stateful

__all__ = [
    "PENALTIES",
    "CrossFittedProbe",
    "LabelledRows",
    "Probe",
    "check_penalties",
    "check_targets",
    "fit_probe",
]

Array = np.ndarray
PENALTIES = (1e-3, 1e-1, 10.0)
FOLDS = 3
STEPS = 1000
STILL = 1e-5
"""A dimension that varies by less than this share of its mean is left out of a probe."""


@dataclass(frozen=True)
class Probe(Stateful):
    r"""Log-odds :math:`w^\top x + b` of the second answer against the first, in nats.

    Attributes:
        weight: :math:`w`, for activations as they are read.
        bias: :math:`b`.
        penalty: the strength of the L2 penalty that was chosen, on standardised activations.
    """

    weight: Float64[Tensor, " d"]
    bias: float
    penalty: float

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Log-odds of each row, in float64."""
        return x.to("cpu", torch.float64) @ self.weight + self.bias


@dataclass(frozen=True)
class CrossFittedProbe:
    """Probes for cross-fitting: each was trained without one fold of the prompts.

    A prompt is read by the probe that was trained without its fold, so that trusted prompts are
    read as new ones are. A single probe fits the prompts it was trained on better than any others,
    and new ones would look odd beside them.

    Attributes:
        probes: one for each fold of the ids; a single one was trained on all prompts.
    """

    probes: tuple[Probe, ...]

    @classmethod
    def fit(
        cls,
        x: Float64[Array, "n d"],
        answers: Int[Array, " n"],
        ids: Sequence[str],
        penalties: tuple[float, ...],
        folds: int,
    ) -> Self:
        """Trains a probe for each fold of the ids."""
        held = folds_of(ids, folds)
        kept = [held != fold if folds > 1 else held >= 0 for fold in range(folds)]

        return cls(tuple(fit_probe(x[rows], answers[rows], penalties) for rows in kept))

    def __call__(self, x: Float[Tensor, "n d"], ids: Sequence[str]) -> Float64[Tensor, " n"]:
        """Log-odds of each row, in float64."""
        odds = torch.stack([probe(x) for probe in self.probes])

        return odds.gather(0, self._held(ids)[None])[0]

    def weights(self, ids: Sequence[str]) -> Float64[Tensor, "n d"]:
        """The weights of the probe that reads each row."""
        return torch.stack([probe.weight for probe in self.probes])[self._held(ids)]

    def state(self) -> dict[str, Any]:
        """What :meth:`from_state` takes."""
        return {str(fold): probe.state() for fold, probe in enumerate(self.probes)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The probes that :meth:`state` described."""
        return cls(tuple(Probe.from_state(state[str(fold)]) for fold in range(len(state))))

    def _held(self, ids: Sequence[str]) -> Int[Tensor, " n"]:
        return torch.from_numpy(folds_of(ids, len(self.probes)))


def folds_of(ids: Sequence[str], folds: int) -> Int[Array, " n"]:
    """The fold of each id, which depends on its hash alone."""
    return np.array([crc32(id.encode()) % folds for id in ids], dtype=np.int64)


class LabelledRows:
    """Rows of trusted prompts with their true answers, collected batch by batch.

    Args:
        who: name of the feature that collects them, for messages.
        folds: number of folds, see :class:`CrossFittedProbe`.
    """

    def __init__(self, who: str, folds: int) -> None:
        self.who, self.folds = who, folds
        self._ids: list[str] = []
        self._answers: list[int] = []
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, reading: Reading) -> None:
        """Keeps the rows of a batch."""
        target = reading.batch.target
        self._ids += reading.batch.ids
        self._answers += [-1] * len(reading.batch) if target is None else target.tolist()
        for site, value in reading.values.items():
            rows = value.flatten(1).to("cpu", torch.float32)
            self._rows.setdefault(str(site), []).append(rows)

    def probes(self, penalties: tuple[float, ...]) -> dict[str, CrossFittedProbe]:
        """Trains probes of the true answer at each site; the order of batches plays no part.

        Raises:
            BadInput: as :func:`check_targets`.
            NotEnoughData: likewise.
        """
        targets = [None if answer < 0 else answer for answer in self._answers]
        _check_answers(targets, self._ids, self.who, self.folds)
        order = np.argsort(np.array(self._ids))
        ids = [self._ids[row] for row in order]
        answers = np.array(self._answers)[order]

        return {
            site: CrossFittedProbe.fit(
                torch.cat(rows).double().numpy()[order], answers, ids, penalties, self.folds
            )
            for site, rows in self._rows.items()
        }


def check_targets(prompts: Prompts | TensorPrompts, who: str, folds: int) -> None:
    """Refuses trusted prompts from whose column ``target`` no probe can learn.

    Args:
        prompts: trusted prompts.
        who: name of the feature that learns, for messages.
        folds: number of folds, see :class:`CrossFittedProbe`.

    Raises:
        BadInput: a prompt has no target, or one beyond the second choice.
        NotEnoughData: all targets are the same, there are none, or all of one are in one fold.
    """
    targets = prompts["target"] if "target" in prompts else (None,) * len(prompts)
    _check_answers(targets, prompts.ids, who, folds)


def check_penalties(penalties: tuple[float, ...], folds: int, who: str) -> None:
    """Refuses penalties that are not positive, or none, and less than one fold.

    Raises:
        BadValue: names the setting.
    """
    check(
        bool(penalties) and min(penalties) > 0,
        f"{penalties} are not positive numbers",
        where=f"feature {who}, penalties",
    )
    check(folds >= 1, "must be at least 1", where=f"feature {who}, folds")


def fit_probe(
    x: Float64[Array, "n d"],
    answers: Int[Array, " n"],
    penalties: tuple[float, ...] = PENALTIES,
    *,
    standardise: bool = True,
) -> Probe:
    r"""Logistic regression whose penalty is chosen by cross-validation.

    .. math:: \min_w \frac{1}{n} \sum_i \log(1 + e^{-y_i (w^\top x_i + b)})
        + \frac{\lambda}{2} \|w\|^2

    The :math:`\lambda` with the least held-out loss over three stratified folds is taken; the
    largest of them where an answer occurs once only.

    Args:
        x: rows.
        answers: 0 or 1 for each.
        penalties: values of :math:`\lambda`, positive.
        standardise: bring every dimension to mean 0 and variance 1 first, and leave out those
            that hardly vary.
    """
    if not standardise:
        penalty = _chosen(x, answers, penalties)
        weight, bias = _solved(x, answers, penalty)
        return Probe(torch.from_numpy(weight), bias, penalty)
    centre, spread = x.mean(0), x.std(0)
    still = spread <= STILL * np.abs(centre)
    scale = np.where(still | (spread == 0), 0.0, 1 / np.where(spread == 0, 1.0, spread))
    z = (x - centre) * scale
    penalty = _chosen(z, answers, penalties)
    weight, bias = _solved(z, answers, penalty)
    weight = weight * scale

    return Probe(torch.from_numpy(weight), float(bias - weight @ centre), penalty)


def _chosen(
    z: Float64[Array, "n d"], answers: Int[Array, " n"], penalties: tuple[float, ...]
) -> float:
    folds = min(FOLDS, int(np.bincount(answers).min()))
    if len(penalties) == 1 or folds < 2:
        return max(penalties)
    splits = list(StratifiedKFold(folds).split(z, answers))

    def loss(penalty: float) -> float:
        total = 0.0
        for train, test in splits:
            weight, bias = _solved(z[train], answers[train], penalty)
            p = 1 / (1 + np.exp(-(z[test] @ weight + bias)))
            total += log_loss(answers[test], p, labels=[0, 1], normalize=False)
        return total

    return min(sorted(penalties, reverse=True), key=loss)


def _solved(
    z: Float64[Array, "n d"], answers: Int[Array, " n"], penalty: float
) -> tuple[Float64[Array, " d"], float]:
    model = LogisticRegression(C=1 / (penalty * len(z)), max_iter=STEPS, tol=1e-6)
    model.fit(z, answers)

    return model.coef_[0], float(model.intercept_[0])


def _check_answers(
    targets: Sequence[int | None], ids: Sequence[str], who: str, folds: int
) -> None:
    for id, target in zip(ids, targets, strict=True):
        _check_answer(target, f"feature {who}, trusted prompt {id}")
    if len(set(targets)) < 2:
        all_have = f"the target {targets[0]}" if targets else "no target"
        raise NotEnoughData(
            f"all {len(targets)} trusted prompts have {all_have}, and a probe learns from both "
            "answers",
            where=f"feature {who}",
            mend="Add prompts whose true answer is the other one",
        )
    held = folds_of(ids, folds)
    for answer in (0, 1):
        filled = {int(fold) for fold, t in zip(held, targets, strict=True) if t == answer}
        check(
            folds == 1 or len(filled) > 1,
            f"too few trusted prompts have the target {answer} for {folds} folds",
            where=f"feature {who}",
            mend="Add such prompts, or use folds=1",
            error=NotEnoughData,
        )


def _check_answer(target: int | None, where: str) -> None:
    if target is None:
        raise BadInput(
            "it has no 'target', and a probe learns from the true answers",
            where=where,
            mend="Give all trusted prompts a target",
        )
    if target not in (0, 1):
        raise BadInput(
            f"its target is {target}, and a probe tells two answers apart",
            where=where,
            mend="Use prompts of two choices",
        )
