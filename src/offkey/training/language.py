"""Training a language model to give certain answers: loss and accuracy at the answer token."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from offkey.data import Batch, Prompts, pack
from offkey.errors import BadInput, check
from offkey.models import Model, choice_logits, last_logits, preferred_answer, wide
from offkey.stats import auroc
from offkey.training.adapter import Adapter
from offkey.training.evasion import AnomalyPenalty, EvasionLoss
from offkey.training.loop import TrainingRun, TrainingSettings, train

__all__ = ["answer_accuracy", "answer_log_odds", "evasion_score", "train_lora"]

TOKENS = 4096
"""Tokens of a batch without gradients."""


def train_lora(
    model: Model,
    adapter: Adapter,
    prompts: Prompts,
    settings: TrainingSettings,
    *,
    validate: Callable[[], Mapping[str, float]] | None = None,
    curriculum: Callable[[int], Sequence[int]] | None = None,
    penalty: EvasionLoss | None = None,
    folder: Path | None = None,
    tell: Callable[[dict[str, float]], None] | None = None,
) -> TrainingRun:
    """Trains an attached adapter to give each prompt's ``answer``.

    The loss is the cross-entropy of the answer's first token over the whole vocabulary, in nats.

    Args:
        model: a language model with its tokenizer.
        adapter: the adapter that :func:`attach` put on its module.
        prompts: prompts with ``choices`` and ``answer``, the index of the choice to give.
        settings: steps, rate, seed and the rest.
        validate: as for :func:`train`, and so are the other arguments.
        curriculum: rows that may be drawn at a step.
        penalty: added to the loss; prompts then need a ``label``, 1 for anomalous ones.
        folder: where checkpoints are kept.
        tell: called with each log row.

    Raises:
        BadInput: ``answer`` or ``choices`` is missing or, with a penalty, ``label``; or an answer
            is not the index of a choice.
    """
    answers = _answers(prompts)
    labels = {} if penalty is None else _column(prompts, "label")
    lengths = [len(text) for text in model.tokenizer(list(prompts["prompt"]))["input_ids"]]

    def loss(rows: list[int]) -> Tensor:
        (batch,) = pack(
            prompts.take(rows),
            model.tokenizer,
            token_budget=max(lengths[row] for row in rows) * len(rows),
        )
        wanted = torch.tensor([answers[name] for name in batch.ids])
        assert batch.choices is not None  # _answers checks it
        forward, extra = partial(_logits, model, batch), torch.zeros(())
        if penalty is None:
            logits = forward()
        else:
            anomalous = torch.tensor([labels[name] == 1 for name in batch.ids])
            logits, extra = penalty(forward, anomalous)

        return cross_entropy(logits, batch.choices.gather(1, wanted[:, None])[:, 0]) + extra

    return train(
        adapter.parameters,
        loss,
        len(prompts),
        settings,
        validate=validate,
        curriculum=curriculum,
        lengths=lengths,
        folder=folder,
        tell=tell,
    )


def answer_log_odds(model: Model, prompts: Prompts) -> Float[Tensor, " n"]:
    """Logit of the last choice minus that of the first, in nats, in the order of the prompts.

    Raises:
        BadInput: ``choices`` is missing.
    """
    odds: dict[str, float] = {}
    for batch, logits in _answered(model, prompts):
        assert batch.choices is not None  # _answered checks it
        last = (batch.choices >= 0).sum(1, keepdim=True) - 1
        choices = choice_logits(logits, batch)
        gap = choices.gather(1, last)[:, 0] - choices[:, 0]
        odds |= dict(zip(batch.ids, gap.tolist(), strict=True))

    return torch.tensor([odds[name] for name in prompts.ids])


def answer_accuracy(model: Model, prompts: Prompts) -> float:
    """Share of the prompts where the choice in ``answer`` is the likeliest.

    Raises:
        BadInput: ``answer`` or ``choices`` is missing, or an answer is not the index of a choice.
    """
    answers = _answers(prompts)
    check(bool(answers), "there are no prompts", error=BadInput)
    correct: list[bool] = []
    for batch, logits in _answered(model, prompts):
        preferred = preferred_answer(logits, batch).choice.tolist()
        correct += [
            answers[name] == choice for name, choice in zip(batch.ids, preferred, strict=True)
        ]

    return sum(correct) / len(correct)


def evasion_score(model: Model, prompts: Prompts, penalty: AnomalyPenalty) -> float:
    """How badly a penalty separates anomalous prompts from normal ones.

    Twice the smaller of its AUROC and one minus that: 0 where it separates them fully, 1 where it
    does not at all. Batches hold prompts of similar length; a penalty that compares rows sees one
    batch at a time.

    Raises:
        BadInput: ``label`` is missing.
    """
    labels = _column(prompts, "label")
    penalties: list[float] = []
    truth: list[int] = []
    with torch.no_grad():
        for batch in pack(prompts, model.tokenizer, token_budget=TOKENS):
            rows = [labels[name] for name in batch.ids]
            _, values = penalty(partial(_logits, model, batch), torch.tensor(rows) == 1)
            penalties, truth = penalties + values.tolist(), truth + rows
    area = auroc(penalties, truth).value
    if area is None:
        raise BadInput("all prompts are of one kind", mend="Give prompts of both labels")

    return 2 * min(area, 1 - area)


def _answers(prompts: Prompts) -> dict[str, int]:
    """The index of each prompt's answer among its choices, by id."""
    counts, answers = _column(prompts, "choices", of=len), _column(prompts, "answer")
    for name, answer in answers.items():
        check(
            0 <= answer < counts[name],
            f"answer is {answer}, but there are {counts[name]} choices",
            where=f"prompt {name}",
            mend="Count choices from 0",
            error=BadInput,
        )

    return answers


def _column(prompts: Prompts, name: str, of: Callable[[Any], int] = int) -> dict[str, int]:
    """A column as numbers, by id."""
    column = prompts[name] if name in prompts else None
    check(
        column is not None,
        f"there is no column {name!r}",
        mend="Use prompts made by a task",
        error=BadInput,
    )
    rows = dict(zip(prompts.ids, column or (), strict=True))
    for id_, value in rows.items():
        check(value is not None, f"it has no {name}", where=f"prompt {id_}", error=BadInput)

    return {id_: of(value) for id_, value in rows.items()}


def _answered(
    model: Model, prompts: Prompts
) -> Iterator[tuple[Batch, Float[Tensor, "batch vocabulary"]]]:
    """The logits at the last token, batch after batch.

    Raises:
        BadInput: a prompt has no choices.
    """
    with torch.no_grad():
        for batch in pack(prompts, model.tokenizer, token_budget=TOKENS):
            choices = batch.choices
            lacking = [True] if choices is None else (choices < 0).all(1).tolist()
            if choices is None or any(lacking):
                raise BadInput(
                    "it has no choices",
                    where=f"prompt {batch.ids[lacking.index(True)]}",
                    mend="Add a column of answer texts",
                )
            yield batch, _logits(model, batch).cpu()


def _logits(model: Model, batch: Batch) -> Float[Tensor, "batch vocabulary"]:
    """Logits at the last token, in float32 or better."""
    return wide(last_logits(model.forward(batch.to(model.device), logits_to_keep=1)))
