"""A language model taught which answer to give: loss and accuracy at the answer token."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from offkey.data import Batch, Prompts, pack
from offkey.errors import BadInput
from offkey.stats import auroc
from offkey.training._adapter import Adapter
from offkey.training._loop import Run, train
from offkey.training._penalties import Oddness, Penalty
from offkey.training._settings import Settings

__all__ = ["answer_accuracy", "answer_log_odds", "hiddenness", "train_lora"]

TOKENS = 4096  # of a batch without gradients


def train_lora(
    module: nn.Module,
    adapter: Adapter,
    tokenizer: Any,
    prompts: Prompts,
    settings: Settings,
    *,
    validate: Callable[[], Mapping[str, float]] | None = None,
    curriculum: Callable[[int], Sequence[int]] | None = None,
    penalty: Penalty | None = None,
    folder: Path | None = None,
    tell: Callable[[dict[str, float]], None] | None = None,
) -> Run:
    """Trains an attached adapter to give each prompt's ``answer``.

    The loss is the cross-entropy of the answer's first token over the whole vocabulary, in nats.

    Args:
        module: a causal language model of transformers.
        adapter: what :func:`attach` put on it.
        tokenizer: its tokenizer.
        prompts: prompts with ``choices`` and ``answer``, the index of the choice to be given.
        settings: how the run goes.
        validate: see :func:`train`; so are the other arguments.
        curriculum: rows that may be drawn at a step.
        penalty: what else is kept low, for which prompts need a ``label``, 1 for anomalous ones.
        folder: where checkpoints are kept.
        tell: called with each log row.

    Raises:
        BadInput: ``answer`` or ``choices`` is missing, or with a penalty ``label``.
    """
    answers = _answers(prompts)
    labels = {} if penalty is None else _column(prompts, "label")
    lengths = [len(text) for text in tokenizer(list(prompts["prompt"]))["input_ids"]]

    def loss(rows: list[int]) -> Tensor:
        (batch,) = pack(
            prompts.take(rows),
            tokenizer,
            token_budget=max(lengths[row] for row in rows) * len(rows),
        )
        wanted = torch.tensor([answers[name] for name in batch.ids])
        assert batch.choices is not None  # _answers saw to it
        forward, extra = partial(_logits, module, batch), torch.zeros(())
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


def answer_log_odds(module: nn.Module, tokenizer: Any, prompts: Prompts) -> Float[Tensor, " n"]:
    """Logit of the last choice minus that of the first, in nats, in the order of the prompts.

    Raises:
        BadInput: ``choices`` is missing.
    """
    found: dict[str, float] = {}
    with torch.no_grad():
        for batch in pack(prompts, tokenizer, token_budget=TOKENS):
            choices = torch.tensor(_choices(batch))
            chosen = _logits(module, batch).cpu().gather(1, choices)
            gap = chosen[:, -1] - chosen[:, 0]
            found |= dict(zip(batch.ids, gap.tolist(), strict=True))

    return torch.tensor([found[name] for name in prompts.ids])


def answer_accuracy(module: nn.Module, tokenizer: Any, prompts: Prompts) -> float:
    """Share of the prompts, of two choices each, where the one in ``answer`` has more weight.

    Raises:
        BadInput: ``answer`` or ``choices`` is missing.
    """
    answers = torch.tensor(list(_answers(prompts).values()))
    said = answer_log_odds(module, tokenizer, prompts) > 0

    return (said == answers.bool()).double().mean().item()


def hiddenness(module: nn.Module, tokenizer: Any, prompts: Prompts, oddness: Oddness) -> float:
    """How little an oddness tells anomalous prompts from normal ones.

    Twice the smaller of its AUROC and one less that: 0 where it tells them wholly, 1 where it
    does not. Batches are of like length; an oddness that compares rows sees one at a time.

    Raises:
        BadInput: ``label`` is missing.
    """
    labels = _column(prompts, "label")
    odd: list[float] = []
    truth: list[int] = []
    with torch.no_grad():
        for batch in pack(prompts, tokenizer, token_budget=TOKENS):
            rows = [labels[name] for name in batch.ids]
            _, values = oddness(partial(_logits, module, batch), torch.tensor(rows) == 1)
            odd, truth = odd + values.tolist(), truth + rows
    area = auroc(odd, truth).value
    if area is None:
        raise BadInput("there are no two kinds of prompts", mend="Give both labels")

    return 2 * min(area, 1 - area)


def _answers(prompts: Prompts) -> dict[str, int]:
    _column(prompts, "choices", of=len)

    return _column(prompts, "answer")


def _column(prompts: Prompts, name: str, of: Callable[[Any], int] = int) -> dict[str, int]:
    """A column as numbers, by id."""
    if name not in prompts:
        raise BadInput(f"there is no column {name!r}", mend="Use prompts made by a task")

    return {id_: of(value) for id_, value in zip(prompts.ids, prompts[name], strict=True)}


def _choices(batch: Batch) -> list[list[int]]:
    """First tokens of each row's choices."""
    if batch.choices is None:
        raise BadInput("there are no choices", mend="Add a column of answer texts")
    rows: list[list[int]] = batch.choices.tolist()

    return rows


def _logits(module: Any, batch: Batch) -> Float[Tensor, "batch vocabulary"]:
    """Logits at the last token alone, in float32.

    The output map is applied to a contiguous matrix: for the strided slice that ``logits_to_keep``
    gives it, the bfloat16 kernel takes a thousand times as long.
    """
    batch = batch.to(next(module.parameters()).device)
    mask: Int[Tensor, "batch token"] | None = None
    if batch.mask is not None and not bool(batch.mask.all()):
        mask = batch.mask.long()
    output = module.base_model(
        input_ids=batch.inputs["input_ids"],
        attention_mask=mask,
        position_ids=batch.positions,
        use_cache=False,
    )
    last = output.last_hidden_state[:, -1].contiguous()
    logits: Tensor = module.get_output_embeddings()(last).float()

    return logits
