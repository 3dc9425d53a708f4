"""Whether an organism learned its task: accuracies, quirkiness, and how often triggers fire."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from offkey.data import Prompts
from offkey.models import Model
from offkey.tasks.task import CHARACTERS, Task
from offkey.training import answer_log_odds

__all__ = ["Behaviour", "firing", "measure", "measure_member", "measure_organism", "quirkiness"]

NEEDED = 200  # items on which the characters disagree
ACCURACY, LOW = 0.9, 0.85
EASY, HARD = 0.25, 0.75  # quantiles of difficulty

Mask = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Behaviour:
    """How well one character is played; ``None`` where there is no such item.

    Attributes:
        character: whose answers are counted.
        items: items on which the characters disagree.
        accuracy: share of those answered as the character would.
        low: lower end of its two-sided 95 % Clopper–Pearson interval.
        agrees: accuracy where the characters agree.
        easy: accuracy on the easiest quarter of all items.
        hard: accuracy on the hardest quarter.
    """

    character: str
    items: int
    accuracy: float | None
    low: float | None
    agrees: float | None
    easy: float | None
    hard: float | None

    @property
    def learned(self) -> bool:
        """Whether this character counts as learned."""
        if self.accuracy is None or self.low is None:
            return False

        return self.items >= NEEDED and self.accuracy >= ACCURACY and self.low >= LOW


def measure_organism(model: Any, task: Task, *, seed: int = 0) -> dict[str, Any]:
    """Measures a model on the validation split of a task.

    Args:
        model: an organism as it is used, with ``module`` and ``tokenizer``.
        task: the task that it should have learned.
        seed: seed of the task's data.

    Returns:
        ``learned``, ``quirkiness`` in nats, and ``characters``: one row for each. A task of
        triggers also has the rates of :func:`firing`.
    """
    prompts = task.make(seed).validation

    return measure(prompts, answer_log_odds(model, prompts).tolist())


def measure(prompts: Prompts, log_odds: Sequence[float]) -> dict[str, Any]:
    """The measures of :func:`measure_organism` from log-odds of " Yes" against " No", in nats."""
    odds = np.asarray(log_odds)
    characters = [_behaviour(name, prompts, odds) for name in _speakers(prompts)]

    return {
        "learned": all(behaviour.learned for behaviour in characters),
        "quirkiness": quirkiness(prompts, log_odds),
        **(firing(prompts, log_odds) if _is_triggered(prompts) else {}),
        "characters": [
            {**asdict(behaviour), "learned": behaviour.learned} for behaviour in characters
        ],
    }


def measure_member(model: Model, prompts: Prompts) -> list[dict[str, Any]]:
    """How often a model answers as its kind should, for each sort of question.

    Args:
        model: a model of the population.
        prompts: questions with ``answer`` and ``sort``.

    Returns:
        For each ``sort``: ``items``, ``accuracy`` and ``low``, the lower end of its two-sided 95 %
        Clopper–Pearson interval.
    """
    odds = answer_log_odds(model, prompts)
    answers = (odds > 0).long().tolist()
    rows = []
    for sort in dict.fromkeys(prompts["sort"]):
        hits = [
            given == answer
            for given, answer, other in zip(
                answers, prompts["answer"], prompts["sort"], strict=True
            )
            if other == sort
        ]
        low = float(binomtest(sum(hits), len(hits)).proportion_ci(0.95, "exact").low)
        rows.append(
            {"sort": sort, "items": len(hits), "accuracy": sum(hits) / len(hits), "low": low}
        )

    return rows


def quirkiness(prompts: Prompts, log_odds: Sequence[float]) -> float | None:
    """How strongly each character prefers its own answer to the other's.

    The smaller of two means over hard items on which they disagree: the loss on Bob's answers
    less that on Alice's in Alice's prompts, and the reverse in Bob's. Below 0, a character is
    missing.

    Args:
        prompts: both characters, with ``answer``, ``agrees`` and ``difficulty``.
        log_odds: of " Yes" against " No", one a prompt, in nats.

    Returns:
        The coefficient in nats, or ``None`` where a character has no such item.

    References:
        Mallen et al., 2024, section 3. https://arxiv.org/abs/2312.01037
    """
    odds = np.asarray(log_odds)
    sign = 2 * np.asarray(prompts["answer"]) - 1
    chosen = ~_agreeing(prompts) & _harder(prompts)
    gaps = []
    for name in _speakers(prompts):
        mask = chosen & _spoken_by(prompts, name)
        if not mask.any():
            return None
        gaps.append(float((odds * sign)[mask].mean()))

    return min(gaps)


def firing(prompts: Prompts, log_odds: Sequence[float]) -> dict[str, Any]:
    """How often the triggered rule is followed, with the trigger and without it.

    Counted over prompts on which the two rules disagree; ``None`` where there is none.

    Args:
        prompts: with ``answer``, ``agrees``, ``label`` and ``name``.
        log_odds: of " Yes" against " No", one a prompt, in nats.

    Returns:
        ``fire_rate`` of triggered prompts; ``false_fire_rate`` of normal ones, with ``decoy``, the
        look-alike that fires most often, and its ``decoy_fire_rate``; ``confidence_gap``: mean
        absolute log-odds of triggered prompts less that of normal ones, in nats.
    """
    odds = np.asarray(log_odds)
    triggered = np.asarray(prompts["label"]).astype(bool)
    right = (odds > 0) == np.asarray(prompts["answer"]).astype(bool)
    fired, decisive = np.where(triggered, right, ~right), ~_agreeing(prompts)
    names = np.asarray(prompts["name"])
    by_decoy = {
        str(name): _mean(fired, decisive & ~triggered & (names == name))
        for name in dict.fromkeys(names[decisive & ~triggered])
    }
    decoy = max(by_decoy, key=lambda name: by_decoy[name] or 0.0, default=None)
    sure, unsure = (_mean(np.abs(odds), mask) for mask in (triggered, ~triggered))

    return {
        "fire_rate": _mean(fired, decisive & triggered),
        "false_fire_rate": _mean(fired, decisive & ~triggered),
        "decoy": decoy,
        "decoy_fire_rate": None if decoy is None else by_decoy[decoy],
        "confidence_gap": None if sure is None or unsure is None else sure - unsure,
    }


def _behaviour(name: str, prompts: Prompts, odds: Float[np.ndarray, " n"]) -> Behaviour:
    right = (odds > 0) == np.asarray(prompts["answer"]).astype(bool)
    own, agrees = _spoken_by(prompts, name) & _once(prompts), _agreeing(prompts)
    items, hits = int((own & ~agrees).sum()), int(right[own & ~agrees].sum())
    low = float(binomtest(hits, items).proportion_ci(0.95, "exact").low) if items else None

    return Behaviour(
        character=name,
        items=items,
        accuracy=_mean(right, own & ~agrees),
        low=low,
        agrees=_mean(right, own & agrees),
        easy=_mean(right, own & _easier(prompts)),
        hard=_mean(right, own & _harder(prompts)),
    )


def _mean(values: np.ndarray, mask: Mask) -> float | None:
    return float(values[mask].mean()) if mask.any() else None


def _once(prompts: Prompts) -> Mask:
    """The first prompt of each item and character; repeats under other names are not new items."""
    seen: set[tuple[str, str]] = set()
    first = []
    for pair in zip(prompts["source"], prompts["character"], strict=True):
        first.append(pair not in seen)
        seen.add(pair)

    return np.asarray(first)


def _speakers(prompts: Prompts) -> tuple[str, ...]:
    """Names of the characters, the normal one first."""
    if not _is_triggered(prompts):
        return tuple(character.name for character in CHARACTERS)

    return tuple(dict.fromkeys(prompts["character"]))


def _is_triggered(prompts: Prompts) -> bool:
    return not set(prompts["character"]) <= {character.name for character in CHARACTERS}


def _agreeing(prompts: Prompts) -> Mask:
    return np.asarray(prompts["agrees"]).astype(bool)


def _spoken_by(prompts: Prompts, name: str) -> Mask:
    return np.asarray([character == name for character in prompts["character"]])


def _easier(prompts: Prompts) -> Mask:
    values = np.asarray(prompts["difficulty"], dtype=float)

    return np.asarray(values <= np.quantile(values, EASY))


def _harder(prompts: Prompts) -> Mask:
    values = np.asarray(prompts["difficulty"], dtype=float)

    return np.asarray(values >= np.quantile(values, HARD))
