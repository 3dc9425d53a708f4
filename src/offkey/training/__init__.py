"""One small resumable loop: LoRA on a language model, gradient descent on a small module.

A run that is killed and started again with the same folder gives the same numbers: the rows of a
step depend on the seed and the step alone, and a checkpoint is written whole or not at all.
"""

from offkey.training.adapter import Adapter, attach
from offkey.training.evasion import (
    AnomalyPenalty,
    AttributionPenalty,
    EvasionLoss,
    NearestNeighbourPenalty,
)
from offkey.training.language import (
    answer_accuracy,
    answer_log_odds,
    evasion_score,
    train_lora,
)
from offkey.training.loop import TrainingRun, TrainingSettings, train, train_module

__all__ = [
    "Adapter",
    "AnomalyPenalty",
    "AttributionPenalty",
    "EvasionLoss",
    "NearestNeighbourPenalty",
    "TrainingRun",
    "TrainingSettings",
    "answer_accuracy",
    "answer_log_odds",
    "attach",
    "evasion_score",
    "train",
    "train_lora",
    "train_module",
]
