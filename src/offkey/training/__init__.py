"""One small resumable loop: LoRA on a language model, gradient descent on a small module.

A run that is killed and started again with the same folder gives the same numbers: the rows of a
step depend on the seed and the step alone, and a checkpoint is whole or not there.
"""

from offkey.training._adapter import Adapter, attach
from offkey.training._language import answer_accuracy, answer_log_odds, hiddenness, train_lora
from offkey.training._loop import Run, train
from offkey.training._module import train_module
from offkey.training._neighbours import Neighbours
from offkey.training._penalties import Oddness, Penalty
from offkey.training._settings import Settings
from offkey.training._traces import Traces

__all__ = [
    "Adapter",
    "Neighbours",
    "Oddness",
    "Penalty",
    "Run",
    "Settings",
    "Traces",
    "answer_accuracy",
    "answer_log_odds",
    "attach",
    "hiddenness",
    "train",
    "train_lora",
    "train_module",
]
