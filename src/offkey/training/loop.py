"""The training loop: settings, which rows a step gets, checkpoints, and training itself.

A run that is killed and started again with the same folder gives the same numbers: the rows of a
step depend on the seed and the step alone, and a checkpoint is written whole or not at all.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from offkey.errors import (
    BadInput,
    Damaged,
    Mismatch,
    NonFinite,
    NotEnoughData,
    check,
    check_choice,
    check_positive,
)
from offkey.storage import write_tensors

__all__ = ["TrainingRun", "TrainingSettings", "rows_of", "train", "train_module"]

Row = dict[str, float]
BLOCK = 4
"""Steps whose rows are drawn together and sorted by length."""
FILE = "checkpoint.safetensors"
FREE = ("steps", "stop_at", "save_every")
"""Settings that may differ when a run continues."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    Attributes:
        steps: maximum number of steps.
        batch: rows in a step.
        rate: learning rate, constant after the warm-up.
        warmup: steps over which the rate rises to its value.
        clip: maximum norm of a gradient; 0 means no limit.
        seed: seed of the choice of rows.
        optimizer: AdamW, or gradient descent with momentum.
        decay: weight decay.
        momentum: momentum of ``sgd``; the first beta of ``adamw``.
        check_every: steps between two validations.
        stop_at: the run ends when the smallest validated value reaches this.
        save_every: steps between two checkpoints.
    """

    steps: int = 200
    batch: int = 40
    rate: float = 1e-3
    warmup: int = 8
    clip: float = 1.0
    seed: int = 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    decay: float = 0.0
    momentum: float = 0.9
    check_every: int = 20
    stop_at: float = float("inf")
    save_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rate", "check_every", "save_every"):
            check_positive(name, getattr(self, name))
        check_choice("optimizer", self.optimizer, ("adamw", "sgd"))

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.rate * min(1.0, (step + 1) / self.warmup) if self.warmup else self.rate

    def as_dict(self) -> Mapping[str, Any]:
        """The settings as JSON values; no limit is null."""
        values = asdict(self)
        if self.stop_at == float("inf"):
            values["stop_at"] = None

        return values


@dataclass(frozen=True)
class TrainingRun:
    """The record of a training run.

    Attributes:
        rows: one for each step: ``step``, ``loss`` in nats, ``seconds`` of processor time, and
            the values of the validation where there was one.
        best_step: the number of steps after which the parameters were best, and were kept.
        steps: number of steps in all.
    """

    rows: tuple[Row, ...]
    best_step: int
    steps: int


@dataclass
class _RunState:
    step: int
    best: dict[str, Tensor]
    best_step: int
    best_value: float
    rows: list[Row]


def train(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[list[int]], Tensor],
    count: int,
    settings: TrainingSettings,
    *,
    validate: Callable[[], Mapping[str, float]] | None = None,
    curriculum: Callable[[int], Sequence[int]] | None = None,
    lengths: Sequence[int] | None = None,
    folder: Path | None = None,
    tell: Callable[[Row], None] | None = None,
) -> TrainingRun:
    """Trains parameters in place, and leaves those that were best in validation.

    The best are those whose smallest validated value is greatest; without a validation, the last.

    Args:
        parameters: the parameters to train, by name.
        loss: mean loss of the rows with these numbers, in nats.
        count: how many rows there are.
        settings: steps, rate, seed and the rest.
        validate: returns values of which higher is better.
        curriculum: rows that may be drawn at a step; by default all.
        lengths: length of each row, so that rows of similar length go together.
        folder: where checkpoints are kept; a run stored there is continued.
        tell: called with each new log row.

    Raises:
        NonFinite: the loss is not a number.
        Mismatch: the checkpoint in the folder belongs to another run.
        Damaged: the checkpoint in the folder cannot be read.
    """
    everything = range(count)
    optimizer = _optimizer(list(parameters.values()), settings)
    state = _RunState(0, {}, 0, float("-inf"), [])
    if folder is not None:
        _resume(folder, parameters, optimizer, state, settings)

    while state.step < settings.steps and state.best_value < settings.stop_at:
        rows = rows_of(
            state.step,
            settings.seed,
            settings.batch,
            curriculum or (lambda _: everything),
            lengths,
        )
        row = _step(parameters, optimizer, loss, rows, state.step, settings)
        state.step += 1
        done = state.step == settings.steps
        if validate is not None and (done or state.step % settings.check_every == 0):
            row.update(validate())
            _keep_best(parameters, state, row)
        state.rows.append(row)
        if tell is not None:
            tell(row)
        if folder is not None and (done or state.step % settings.save_every == 0):
            _save(folder, parameters, optimizer, state, settings)

    with torch.no_grad():
        for name, value in state.best.items():
            parameters[name].copy_(value)

    return TrainingRun(tuple(state.rows), state.best_step or state.step, state.step)


def train_module(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    settings: TrainingSettings,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    validate: Callable[[], Mapping[str, float]] | None = None,
    folder: Path | None = None,
) -> TrainingRun:
    """Trains all parameters of a module on pairs of input and target.

    Args:
        module: is called with a batch of inputs.
        inputs: ``[n, *shape]``.
        targets: ``[n]`` or ``[n, *shape]``, as the loss takes them.
        settings: steps, rate, seed and the rest.
        loss: takes outputs and targets, and averages over the batch.
        validate: returns values of which higher is better; the best state is kept.
        folder: where checkpoints are kept.

    Raises:
        BadInput: the numbers of inputs and targets differ.
    """
    check(
        len(inputs) == len(targets),
        f"{len(inputs)} inputs but {len(targets)} targets",
        error=BadInput,
    )

    return train(
        dict(module.named_parameters()),
        lambda rows: loss(module(inputs[rows]), targets[rows]),
        len(inputs),
        settings,
        validate=validate,
        folder=folder,
    )


def rows_of(
    step: int,
    seed: int,
    batch: int,
    allowed: Callable[[int], Sequence[int]],
    lengths: Sequence[int] | None = None,
) -> list[int]:
    """Row numbers of a step, a function of seed and step alone.

    The rows of four steps are drawn at once without repetition, rows of similar length are put
    into one batch, and the batches are shuffled. Where there are too few rows for that, each step
    draws its own.

    Args:
        step: number of the step.
        seed: seed of the run.
        batch: rows in a step.
        allowed: the curriculum: rows that may be drawn from a step on.
        lengths: length of each row.

    Raises:
        NotEnoughData: there are fewer rows than a batch has.
    """
    block, place = divmod(step, BLOCK)
    rng = random.Random(f"{seed}/{block}")
    rows = list(allowed(block * BLOCK))
    check(
        len(rows) >= batch,
        f"{len(rows)} rows at step {step}, a batch has {batch}",
        error=NotEnoughData,
    )
    if len(rows) < BLOCK * batch:
        return [rng.sample(rows, batch) for _ in range(BLOCK)][place]
    drawn = rng.sample(rows, BLOCK * batch)
    if lengths is not None:
        drawn.sort(key=lambda row: lengths[row])
    parts = [drawn[i * batch : (i + 1) * batch] for i in range(BLOCK)]
    rng.shuffle(parts)

    return parts[place]


def _optimizer(
    parameters: list[nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.rate, momentum=settings.momentum, weight_decay=settings.decay
        )

    betas = (settings.momentum, 0.98)
    return torch.optim.AdamW(parameters, settings.rate, betas=betas, weight_decay=settings.decay)


def _step(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[list[int]], Tensor],
    rows: list[int],
    step: int,
    settings: TrainingSettings,
) -> Row:
    start = time.process_time()
    for group in optimizer.param_groups:
        group["lr"] = settings.rate_at(step)
    optimizer.zero_grad(set_to_none=True)
    value = loss(rows)
    check(
        bool(torch.isfinite(value)),
        f"the loss is {value.item()}",
        where=f"step {step}",
        mend="Lower the rate",
        error=NonFinite,
    )
    value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if settings.clip:
        nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
    optimizer.step()

    return {
        "step": step + 1,
        "loss": round(value.item(), 6),
        "seconds": round(time.process_time() - start, 3),
    }


def _keep_best(parameters: Mapping[str, nn.Parameter], state: _RunState, row: Row) -> None:
    worst = min(value for name, value in row.items() if name not in ("step", "loss", "seconds"))
    if worst > state.best_value:
        state.best_value, state.best_step = worst, state.step
        state.best = {name: value.detach().clone() for name, value in parameters.items()}


def _save(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: _RunState,
    settings: TrainingSettings,
) -> None:
    """Writes parameters, optimiser state, best parameters and facts, whole or not at all."""
    facts = {
        "settings": dict(settings.as_dict()),
        "step": state.step,
        "best_step": state.best_step,
        "best_value": state.best_value if state.best else None,
        "rows": state.rows,
    }
    tensors: dict[str, Tensor] = {f"now/{name}": value for name, value in parameters.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for number, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{number}/{key}"] = value
    write_tensors(folder / FILE, tensors, {"offkey": json.dumps(facts)})


def _resume(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: _RunState,
    settings: TrainingSettings,
) -> None:
    """Restores a saved state, if the folder holds one.

    Raises:
        Mismatch: it belongs to a run with other settings or parameters.
        Damaged: it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return
    facts, tensors = _read_checkpoint(path)
    _check_settings(facts["settings"], settings.as_dict(), path)
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        parts[kind][name] = value
    stored = {name: value.shape for name, value in parts["now"].items()}
    check(
        stored == {name: value.shape for name, value in parameters.items()},
        "it holds other parameters",
        where=str(path),
        mend="Use another folder",
        error=Mismatch,
    )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(parts["now"][name])
    _restore_optimizer(optimizer, parts["optimizer"])
    state.best = parts["best"]
    state.step, state.best_step, state.rows = facts["step"], facts["best_step"], facts["rows"]
    if facts["best_value"] is not None:
        state.best_value = facts["best_value"]


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["offkey"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"cannot be read ({error})", where=str(path), mend="Delete it to start anew"
        ) from error

    return facts, tensors


def _check_settings(stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    for name, value in asked.items():
        check(
            name in FREE or stored.get(name) == value,
            f"it belongs to a run with {name} {stored.get(name)}, not {value}",
            where=str(path),
            mend="Use another folder",
            error=Mismatch,
        )


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
