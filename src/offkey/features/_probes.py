"""Logistic probes of one thing at many sites, trained on rows with two answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from offkey.errors import BadInput, BadValue, NotEnoughData
from offkey.models import Reading

__all__ = ["PENALTIES", "LabelledRows", "Probe", "check_answers", "check_penalties", "fit_probe"]

Array = np.ndarray
PENALTIES = (1e-3, 1e-1, 10.0)
FOLDS = 3
STEPS = 1000
STILL = 1e-5
"""A dimension that varies by less than this share of its mean is left out of a probe."""


@dataclass(frozen=True)
class Probe:
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

    def state(self) -> dict[str, Any]:
        """What :meth:`from_state` takes."""
        return {"weight": self.weight, "bias": self.bias, "penalty": self.penalty}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The probe that :meth:`state` described."""
        return cls(state["weight"], state["bias"], state["penalty"])


class LabelledRows:
    """Rows of trusted prompts and their true answers, by site, as batches bring them.

    Args:
        who: what errors call the feature.
    """

    def __init__(self, who: str) -> None:
        self.who = who
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

    def answers(self) -> Int[Array, " n"]:
        """The true answers, in order of id; raises as :func:`check_answers`."""
        targets = [None if answer < 0 else answer for answer in self._answers]
        check_answers(targets, self._ids, self.who)

        answers: Int[Array, " n"] = np.array(self._answers)[self._order()]

        return answers

    def rows(self, site: str) -> Float64[Array, "n d"]:
        """The rows of a site, in order of id."""
        found: Array = torch.cat(self._rows[site]).double().numpy()[self._order()]

        return found

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were read."""
        return tuple(self._rows)

    def _order(self) -> Int[Array, " n"]:
        order: Int[Array, " n"] = np.argsort(np.array(self._ids))

        return order


def check_answers(targets: Sequence[int | None], ids: Sequence[str], who: str) -> None:
    """Refuses answers from which no probe can learn.

    Raises:
        BadInput: one is unknown, or neither the first nor the second choice.
        NotEnoughData: all are the same, or there are none.
    """
    for id, target in zip(ids, targets, strict=True):
        if target is None:
            raise BadInput("it has no 'target', and a probe learns from the true answers",
                           where=f"feature {who}, trusted prompt {id}",
                           mend="Give all trusted prompts a target")  # fmt: skip
        if target not in (0, 1):
            raise BadInput(f"its target is {target}, and a probe tells two answers apart",
                           where=f"feature {who}, trusted prompt {id}",
                           mend="Use prompts of two choices")  # fmt: skip
    if len(set(targets)) < 2:
        told = f"the target {targets[0]}" if targets else "no target"
        raise NotEnoughData(f"all {len(targets)} trusted prompts have {told}, and a probe learns "
                            "from both answers", where=f"feature {who}",
                            mend="Add prompts whose true answer is the other one")  # fmt: skip


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


def check_penalties(penalties: tuple[float, ...], who: str) -> None:
    """Refuses penalties that are not positive, or none.

    Raises:
        BadValue: says so.
    """
    if not penalties or min(penalties) <= 0:
        raise BadValue(f"{penalties} are not positive numbers", where=f"feature {who}, penalties")


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
