"""What a model's output says: logits, the preferred answer, divergences, and metrics.

Metrics are one number a prompt, in nats, differentiable in the logits. They are frozen and
hashable, so that features which ask for the same one can share a pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offkey.data import Batch, Role
from offkey.errors import BadInput, check

__all__ = [
    "ChoiceLogitDifference",
    "KLToReference",
    "Metric",
    "PreferredAnswer",
    "ResponseCrossEntropy",
    "TopLogProb",
    "choice_logits",
    "default_metric",
    "kl",
    "last_logits",
    "log_probabilities",
    "logits_of",
    "preferred_answer",
    "wide",
]

FAR = 40.0
"""Gap of two log-probabilities whose exponential is taken together with the probability."""
LEAST = -200.0
"""Log-probability below which a token counts as impossible."""


def logits_of(raw: Any) -> Tensor:
    """The logits in what a module returned: itself, or its field ``logits``.

    Raises:
        BadInput: it returned something else.
    """
    logits = raw if isinstance(raw, Tensor) else getattr(raw, "logits", None)
    if not isinstance(logits, Tensor):
        raise BadInput(f"the model returns {type(raw).__name__}, not logits", where="output")

    return logits


def last_logits(raw: Any) -> Float[Tensor, "batch vocab"]:
    """Logits of the last token, or of a model without tokens.

    Args:
        raw: what a module returned, or logits ``[batch, token, vocab]`` or ``[batch, vocab]``.

    Raises:
        BadInput: these are no logits.
    """
    logits = logits_of(raw)
    shape = tuple(logits.shape)
    check(len(shape) in (2, 3), f"{shape} are no logits", where="output", error=BadInput)

    return logits[:, -1] if logits.ndim == 3 else logits


class PreferredAnswer(NamedTuple):
    """The answer that each row prefers.

    Attributes:
        token: the likeliest first token of the row's choices, against the whole vocabulary; of a
            row without choices the likeliest token, or class.
        choice: its number among the row's choices; of a row without choices the token itself.
    """

    token: Int[Tensor, " batch"]
    choice: Int[Tensor, " batch"]


def preferred_answer(logits: Float[Tensor, "batch vocab"], batch: Batch) -> PreferredAnswer:
    """The answer that each row prefers, each decided by itself."""
    likeliest = logits.argmax(1)
    if batch.choices is None:
        return PreferredAnswer(likeliest, likeliest)
    choices = batch.choices.to(logits.device)
    number = choice_logits(logits, batch).argmax(1)
    token = choices.gather(1, number[:, None])[:, 0]
    has_choices = (choices >= 0).any(1)

    return PreferredAnswer(
        torch.where(has_choices, token, likeliest), torch.where(has_choices, number, likeliest)
    )


def choice_logits(
    logits: Float[Tensor, "batch vocab"], batch: Batch
) -> Float[Tensor, "batch choice"]:
    r"""Logits of each row's choices; :math:`-\infty` where a row has fewer than others.

    Raises:
        BadInput: the batch has no choices.
    """
    if batch.choices is None:
        raise BadInput(
            "there are no choices",
            where=f"batch of prompt {batch.ids[0]}",
            mend="Give the prompts a column 'choices'",
        )
    choices = batch.choices.to(logits.device)

    return logits.gather(1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf)


def log_probabilities(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Log-probabilities, in nats, to compare others with; in float32 or better."""
    return wide(logits).log_softmax(-1).clamp(min=LEAST)


def kl(
    log_p: Float[Tensor, "*rows vocab"], logits: Float[Tensor, "*rows vocab"]
) -> Float[Tensor, "*rows"]:
    r"""Kullback-Leibler divergence :math:`D(p \| q)` of each row, in nats.

    With :math:`d` the logits of q less :math:`\log p`, centred under p,

    .. math:: D(p \| q) = \ln\Big(1 + \sum_v p_v (e^{d_v} - 1 - d_v)\Big),

    a sum of what is not negative: zero where both are the same, and without the cancellation that
    leaves nothing of small divergences in float32. Differentiable in the logits.

    Args:
        log_p: :func:`log_probabilities` of the reference.
        logits: logits of q.
    """
    gap = (logits.to(log_p.dtype) - log_p).clamp(min=-1e4)
    # A long sum of a large constant would round where p is spread thin.
    gap = gap - gap.gather(-1, log_p.argmax(-1, keepdim=True))
    p = log_p.exp()
    gap = gap - torch.einsum("...v,...v->...", p, gap)[..., None] / p.sum(-1, keepdim=True)
    is_far = gap > FAR
    if not bool(is_far.any()):
        return torch.einsum("...v,...v->...", p, gap.expm1() - gap).log1p()

    # What could overflow is left out first: its zero gradient times infinity would be NaN.
    log_q = log_p + gap
    is_large = (log_q > FAR).any(-1)
    near = gap.masked_fill(is_far, 0.0)
    far = log_q.masked_fill(~is_far | is_large[..., None], -torch.inf).exp()
    sums = torch.einsum("...v,...v->...", p, near.expm1() - gap) + far.sum(-1)
    sums = sums - torch.where(is_far, p, 0.0).sum(-1)
    small = sums.masked_fill(is_large, 0.0).log1p()

    return torch.where(is_large, log_q.logsumexp(-1), small)


def wide(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Metric(ABC):
    """A differentiable number for each row, in nats.

    Attributes:
        positions: ``"last"``: it takes the logits of the last token, ``[batch, vocab]``;
            ``"response"``: those of the last tokens, ``[batch, token, vocab]``, reaching back at
            least to the one that predicts the first token of a response.
    """

    positions: ClassVar[Literal["last", "response"]] = "last"

    @abstractmethod
    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric of each row, in nats, in float32 or better."""


@dataclass(frozen=True)
class ChoiceLogitDifference(Metric):
    r"""How far the model leans towards one of the answers.

    With two choices, :math:`S = \ell_1 - \ell_0`: the logit of the second choice less that of the
    first, whichever is true. With more, :math:`\ell_t - \log \sum_{c \ne t} e^{\ell_c}`, where
    :math:`t` is the true choice, or the model's favourite where the truth is not known: the log
    odds of :math:`t` among the choices.

    Raises:
        BadInput: a prompt has fewer than two choices.
    """

    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric of each row."""
        choices = batch.choices
        count = torch.zeros(len(batch)) if choices is None else (choices >= 0).sum(1)
        if choices is None or bool((count < 2).any()):
            raise BadInput(
                f"it has {int(count.min())} choices, and the logit difference needs two",
                where=f"prompt {batch.ids[int(count.argmin())]}",
                mend="Give the prompts a column 'choices'",
            )
        exist = choices >= 0
        answers = choice_logits(wide(logits), batch)
        first_two = exist.int().topk(2, dim=1).indices.sort(1).values
        pair = answers.gather(1, first_two)
        if int(count.max()) == 2:
            return pair[:, 1] - pair[:, 0]

        favourite = answers.detach().argmax(1)
        target = favourite if batch.target is None else batch.target
        target = torch.where(target < 0, favourite, target)[:, None]
        others = answers.scatter(1, target, -torch.inf)
        odds = answers.gather(1, target)[:, 0] - others.logsumexp(1)

        return torch.where(count == 2, pair[:, 1] - pair[:, 0], odds)


@dataclass(frozen=True)
class TopLogProb(Metric):
    """Log-probability of the model's own most probable next token."""

    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric of each row."""
        logits = wide(logits)

        return logits.max(-1).values - logits.logsumexp(-1)


@dataclass(frozen=True)
class ResponseCrossEntropy(Metric):
    """Cross-entropy of the response given what stands before it, mean over its tokens.

    Raises:
        BadInput: a prompt has no response.
    """

    positions: ClassVar[Literal["last", "response"]] = "response"

    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric of each row."""
        width = logits.shape[1]
        tokens = batch.inputs["input_ids"][:, -width:]
        roles = torch.full_like(tokens, Role.PADDING) if batch.roles is None else batch.roles
        is_response = roles[:, -width:][:, 1:] == Role.RESPONSE
        count = is_response.sum(1)
        if not bool(count.all()):
            raise BadInput(
                "it has no response",
                where=f"prompt {batch.ids[int(count.argmin())]}",
                mend="Give the prompts a column 'response'",
            )
        rows, places = is_response.nonzero(as_tuple=True)
        predicted = wide(logits[rows, places])
        loss = torch.nn.functional.cross_entropy(
            predicted, tokens[rows, places + 1], reduction="none"
        )

        return torch.zeros_like(count, dtype=loss.dtype).index_add(0, rows, loss) / count


@dataclass(frozen=True, eq=False)
class KLToReference(Metric):
    r"""How far the next-token distribution is from a reference's.

    .. math:: D(p \| q) = \sum_v p_v (\log p_v - \log q_v)

    with :math:`p` of the reference and :math:`q` of the model. Two instances are equal only when
    they are the same object.

    Args:
        reference: logits ``[vocab]`` of the reference at the last token, by prompt id.

    Raises:
        BadInput: a prompt has no reference.
    """

    reference: Mapping[str, Tensor]

    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric of each row."""
        missing = [name for name in batch.ids if name not in self.reference]
        if missing:
            raise BadInput("there are no reference logits for it", where=f"prompt {missing[0]}")
        logits = wide(logits)
        reference = torch.stack([self.reference[name] for name in batch.ids])

        return kl(log_probabilities(reference.to(logits.device, logits.dtype)), logits)


def default_metric(source: Batch | Container[str]) -> Metric:
    """The choice logit difference where there are choices, else the own top log-probability.

    Args:
        source: a batch, or the names of the prompts' columns.
    """
    has_choices = source.choices is not None if isinstance(source, Batch) else "choices" in source

    return ChoiceLogitDifference() if has_choices else TopLogProb()
