"""Costs of moving a model's weights on given batches, and their curvature.

A model's cost compares its outputs with those at the anchor: their KL divergence, or the rise of
the loss. The curvature of the KL cost is the Fisher information of the outputs, from which
proposals are made.
"""

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from offkey.data import Batch
from offkey.errors import BadInput, BadValue, MissingMask, NonFiniteCost, check, check_choice
from offkey.models import Model, kl, last_logits, log_probabilities, logits_of, wide
from offkey.stats import named_rng
from offkey.volume.costs import Cost
from offkey.volume.rays import Space

__all__ = [
    "DuplicateExamples",
    "KLCost",
    "LossCost",
    "ModelCost",
    "TokenLogits",
    "fisher_dense",
    "fisher_diagonal",
    "later_half",
]

Array = np.ndarray
Reduce = Literal["mean", "per_example"]
NUMBERS = 1 << 22
"""Logits that are compared at once."""
LARGEST = 20_000
"""The most parameters of a dense matrix."""


class DuplicateExamples(UserWarning):
    """An example occurs more than once, and so counts more than once."""


class TokenLogits(NamedTuple):
    """Logits of the tokens of a batch that count, example after example.

    Attributes:
        logits: a row for each token; for each example where there is no token axis.
        counts: how many tokens each example has.
    """

    logits: Float[Tensor, "token vocab"]
    counts: Int64[Array, " n"]

    @classmethod
    def of(cls, logits: Tensor, batch: Batch, *, only_last: bool) -> Self:
        """Leaves out padding, and all but the last token if only that one counts.

        Raises:
            MissingMask: the batch does not say which tokens are padding.
        """
        ones = np.ones(len(logits), dtype=np.int64)
        if logits.ndim == 2:
            return cls(logits, ones)
        if batch.mask is None:
            raise MissingMask(
                "which of its tokens are padding is not known",
                where=f"batch of prompt {batch.ids[0]}",
                mend="Give Batch(mask=…), all True where nothing is",
            )
        if only_last:
            return cls(last_logits(logits), ones)
        whole = bool(batch.mask.all())
        real = logits.flatten(0, 1) if whole else logits[batch.mask]

        return cls(real, batch.mask.sum(1).cpu().numpy())

    def owner(self, row: int) -> int:
        """The example that a row belongs to."""
        return int(np.searchsorted(self.counts.cumsum(), row, side="right"))


class ModelCost(Cost):
    """A cost of a model's outputs on batches, compared with the outputs at the anchor.

    The outputs at the anchor are computed once, when they are first needed, and kept.

    Args:
        model: the model whose weights move, through :meth:`offkey.models.Model.perturbed`.
        batches: its inputs.
        reduce: ``"mean"`` over tokens (over rows without a token axis), or ``"per_example"``, one
            number for each example, the mean over its tokens.
        start: a block of a decoder; the earlier blocks run once and their output is kept, so only
            parameters of this block and later ones may move.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        reduce: Reduce = "mean",
        start: int | None = None,
    ) -> None:
        check(bool(batches), "there are no batches", where="cost", error=BadInput)
        check_choice("reduce", reduce, ("mean", "per_example"))
        self.model, self.reduce = model, reduce
        self.batches = [batch.to(model.device) for batch in batches]
        self.resumed = None if start is None else model.resumed_forward(start)
        self._anchors: list[Tensor] = []
        self._counts: list[Tensor] = []
        if reduce == "mean":
            self._warn_of_duplicates()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the examples, in order."""
        return tuple(name for batch in self.batches for name in batch.ids)

    @property
    def is_single(self) -> bool:
        """Whether it is one number, not one for each example."""
        return self.reduce == "mean"

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The model's floating-point weights."""
        return {
            name: weight
            for name, weight in self.model.module.named_parameters()
            if weight.is_floating_point()
        }

    @property
    def anchors(self) -> list[Tensor]:
        """What the tokens of each batch are compared with."""
        if not self._anchors:
            self._counts = []
            self._anchors = [
                self._anchor_of(number, batch) for number, batch in enumerate(self.batches)
            ]

        return self._anchors

    def _anchor_of(self, number: int, batch: Batch) -> Tensor:
        rows = self._run(number, batch, first=True)
        counted = self.counted(rows, batch)
        self._counts.append(torch.from_numpy(counted.counts))
        anchor = self.anchor(rows, batch)
        finite = anchor.isfinite().view(len(anchor), -1).all(1)
        if not bool(finite.all()):
            bad = counted.owner(int(finite.long().argmin()))
            raise NonFiniteCost(
                "NaN or infinity in the anchor's output",
                where=f"prompt {batch.ids[bad]}",
                mend="Load the model in float32",
            )

        return anchor

    def evaluate(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """The cost of one perturbation; examples outside ``among`` are not run."""
        anchors = self.anchors
        totals, counts = [], []
        with self.model.perturbed(delta):
            for number, batch, keep in self._selected(among):
                rows = self._run(number, batch, keep)
                anchor = anchors[number]
                if keep is not None:
                    anchor = anchor[keep.repeat_interleave(self._counts[number]).to(anchor.device)]
                costs = self.compare(anchor, rows, batch).cpu().double().numpy()
                count = self.counted(rows, batch).counts
                owners = np.repeat(np.arange(len(count)), count)
                totals.append(np.bincount(owners, costs, minlength=len(count)))
                counts.append(count)
        total, each = np.concatenate(totals), np.concatenate(counts)
        if self.is_single:
            return np.array([total.sum() / each.sum()])

        return np.asarray(total / each, dtype=np.float64)

    @abstractmethod
    def anchor(self, rows: TokenLogits, batch: Batch) -> Tensor:
        """What is kept of a batch's logits at the anchor, a row for each counted token."""

    @abstractmethod
    def compare(self, anchor: Tensor, rows: TokenLogits, batch: Batch) -> Float[Tensor, " token"]:
        """The cost at each counted token of a batch."""

    def counted(self, rows: TokenLogits, batch: Batch) -> TokenLogits:
        """The tokens that have a cost."""
        return rows

    @property
    def only_last(self) -> bool:
        """Whether only the logits of the last token are needed."""
        return False

    def fingerprint(self) -> dict[str, Any]:
        """Model, data and settings."""
        hasher = hashlib.sha256()
        for batch in self.batches:
            named = {**batch.inputs, "mask": batch.mask, "target": batch.target}
            for name, value in sorted(named.items()):
                if value is not None:
                    hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                    hasher.update(value.cpu().contiguous().numpy().tobytes())

        return {
            "cost": type(self).__name__,
            "model": self.model.fingerprint,
            "reduce": self.reduce,
            "start": None if self.resumed is None else self.resumed.block,
            "data": hasher.hexdigest(),
        }

    def check_moving(self, names: tuple[str, ...]) -> None:
        """Refuses parameters that the earlier blocks use, if those are not run again.

        Raises:
            BadValue: names one.
        """
        if self.resumed is None:
            return
        hidden = set(names) - set(self.resumed.later_parameters(names))
        if hidden:
            raise BadValue(
                f"it is used before block {self.resumed.block}",
                where=f"parameter {min(hidden)}",
                mend="Choose later parameters, or leave start out",
            )

    def curvature(self, delta: Mapping[str, Tensor]) -> float:
        r"""Second derivative of the KL cost along a direction, by one forward-mode derivative.

        .. math:: \delta^\top F \delta = \mathrm{mean}_t\,\mathrm{Var}_{p_t}(J\delta)

        with F the Fisher information of the outputs; exact for the KL cost at the anchor.

        Raises:
            BadValue: a part of the model has no forward-mode derivative.
        """
        total, count = 0.0, 0
        for batch in self.batches:
            quadratic, tokens = fisher_quadratic(
                self.model, batch, self.parameters, delta, only_last=self.only_last
            )
            self.forwards += 1
            total, count = total + quadratic, count + tokens

        return total / count

    def outputs(self, batch: Batch) -> Iterator[Tensor]:
        """Logits of each example's tokens, by a plain pass of each example alone."""
        for number in range(len(batch)):
            one = batch.select(torch.arange(len(batch)) == number)
            self.forwards += 1
            logits = logits_of(self.model.forward(one, **self._extra))
            yield TokenLogits.of(logits, one, only_last=self.only_last).logits

    @property
    def _extra(self) -> dict[str, int]:
        return {"logits_to_keep": 1} if self.only_last else {}

    def _selected(
        self, among: Bool[Array, " n"] | None
    ) -> Iterator[tuple[int, Batch, Bool[Tensor, " batch"] | None]]:
        """The part of each batch that is run, and which of its examples that is; None for all."""
        start = 0
        for number, batch in enumerate(self.batches):
            stop = start + len(batch)
            keep = None if among is None else torch.from_numpy(among[start:stop])
            start = stop
            if keep is None or bool(keep.all()):
                yield number, batch, None
            elif bool(keep.any()):
                yield number, batch.select(keep), keep

    def _run(
        self,
        number: int,
        batch: Batch,
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        first: bool = False,
    ) -> TokenLogits:
        """Logits of the tokens that count."""
        self.forwards += 1
        with torch.inference_mode():
            if self.resumed is None:
                raw = self.model.forward(batch, **self._extra)
            elif first:
                raw = self.resumed.first(number, batch, **self._extra)
            else:
                raw = self.resumed.again(number, batch, keep, **self._extra)

            return TokenLogits.of(logits_of(raw), batch, only_last=self.only_last)

    def _warn_of_duplicates(self) -> None:
        first: dict[bytes, str] = {}
        for batch in self.batches:
            for i, name in enumerate(batch.ids):
                row = b"".join(_bytes(value[i], batch, i) for value in batch.inputs.values())
                if row in first:
                    warnings.warn(
                        f"prompts {first[row]} and {name} are the same",
                        DuplicateExamples,
                        stacklevel=4,
                    )
                    return
                first[row] = name


class KLCost(ModelCost):
    r"""How far the outputs move, :math:`D(p_\theta \| p_{\theta + \delta})` in nats.

    Needs no labels; the anchor is a minimum.

    Args:
        model: the model whose weights move.
        batches: prompts, with their mask where they are texts.
        tokens: ``"all"`` real tokens, or the ``"last"`` alone.
        reduce: ``"mean"``, or ``"per_example"`` for :func:`radii`.
        start: a block of a decoder before which no parameter moves.

    Raises:
        BadInput: there are no batches.
        MissingMask: a batch of texts has no mask.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        tokens: Literal["all", "last"] = "all",
        reduce: Reduce = "mean",
        start: int | None = None,
    ) -> None:
        super().__init__(model, batches, reduce=reduce, start=start)
        check_choice("tokens", tokens, ("all", "last"))
        self.tokens = tokens

    @property
    def only_last(self) -> bool:
        """Whether only the last token counts."""
        return self.tokens == "last"

    def anchor(self, rows: TokenLogits, batch: Batch) -> Tensor:
        """Log-probabilities."""
        return log_probabilities(rows.logits)

    def compare(self, anchor: Tensor, rows: TokenLogits, batch: Batch) -> Float[Tensor, " token"]:
        """Divergence at each token, some tokens at a time."""
        some = max(1, NUMBERS // anchor.shape[-1])
        pairs = zip(anchor.split(some), rows.logits.split(some), strict=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return torch.cat([kl(a, b) for a, b in pairs])

    def fingerprint(self) -> dict[str, Any]:
        """Model, data and settings, with the choice of tokens."""
        return {**super().fingerprint(), "tokens": self.tokens}


class LossCost(ModelCost):
    r"""How much the loss rises, :math:`L(\theta + \delta) - L(\theta)` in nats.

    Cross-entropy of each next token of a text, or of ``batch.target`` for models without a token
    axis. May be negative where the anchor is no minimum, and need not be monotone.

    Args:
        model: the model whose weights move.
        batches: prompts with their mask, or arrays with targets.
        reduce: as in :class:`KLCost`.
        start: as in :class:`KLCost`.

    Raises:
        BadInput: there are no batches, or targets are missing where they are needed.
    """

    is_signed = True

    def anchor(self, rows: TokenLogits, batch: Batch) -> Tensor:
        """The loss at each token."""
        return self._losses(rows, batch)

    def compare(self, anchor: Tensor, rows: TokenLogits, batch: Batch) -> Float[Tensor, " token"]:
        """The rise of the loss at each token."""
        return self._losses(rows, batch) - anchor

    def counted(self, rows: TokenLogits, batch: Batch) -> TokenLogits:
        """All but the last token of each text."""
        if batch.mask is None:
            return rows
        keep = np.ones(len(rows.logits), dtype=bool)
        keep[rows.counts.cumsum() - 1] = False

        return TokenLogits(rows.logits[torch.from_numpy(keep)], rows.counts - 1)

    def _losses(self, rows: TokenLogits, batch: Batch) -> Float[Tensor, " token"]:
        logits = wide(self.counted(rows, batch).logits)

        return nn.functional.cross_entropy(logits, self._targets(rows, batch), reduction="none")

    def _targets(self, rows: TokenLogits, batch: Batch) -> Tensor:
        """The next token of each counted token, or the target of each row."""
        if batch.mask is None:
            target = batch.target
            lacking = [True] if target is None else (target < 0).tolist()
            if any(lacking) or target is None:
                raise BadInput(
                    "it has no target",
                    where=f"prompt {batch.ids[lacking.index(True)]}",
                    mend="Give Batch(target=…)",
                )
            return target
        if (rows.counts < 2).any():
            raise BadInput(
                "it has one token, and so no next one",
                where=f"prompt {batch.ids[int(rows.counts.argmin())]}",
            )
        tokens = batch.inputs["input_ids"][batch.mask]
        following = TokenLogits(tokens.roll(-1)[:, None], rows.counts)

        return self.counted(following, batch).logits[:, 0]


def fisher_quadratic(
    model: Model,
    batch: Batch,
    weights: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    *,
    only_last: bool,
) -> tuple[float, int]:
    r"""Quadratic form of the Fisher information, :math:`\sum_t \mathrm{Var}_{p_t}(J_t\delta)`.

    Args:
        model: the model whose outputs move.
        batch: its input.
        weights: the weights at the anchor, by name.
        delta: the direction.
        only_last: whether only the last token counts.

    Returns:
        The sum over tokens, in nats, and how many tokens there are.

    Raises:
        BadValue: a part of the model has no forward-mode derivative.
    """
    wrapper = _Forward(model, batch)
    moved = {f"module.{name}": weights[name].detach() for name in delta}
    tangents = {f"module.{name}": value for name, value in delta.items()}

    def outputs(given: Any) -> Tensor:
        return torch.func.functional_call(wrapper, given, ())  # type: ignore[no-any-return]

    try:
        logits, moving = torch.func.jvp(outputs, (moved,), (tangents,))
    except RuntimeError as error:
        raise BadValue(
            "a part of the model has no forward-mode derivative",
            where="search start jvp",
            mend="Load it with attn_implementation='eager', or use start='median'",
        ) from error
    p = TokenLogits.of(logits.detach(), batch, only_last=only_last).logits.double().softmax(-1)
    change = TokenLogits.of(moving.detach(), batch, only_last=only_last).logits.double()
    mean = (p * change).sum(-1, keepdim=True)

    return float((p * (change - mean) ** 2).sum()), len(p)


class _Forward(nn.Module):
    """The model on one batch, as a module whose parameters can be replaced for a call."""

    def __init__(self, model: Model, batch: Batch) -> None:
        super().__init__()
        self.module = model.module
        self._model, self._batch = [model], batch

    def forward(self) -> Tensor:
        return logits_of(self._model[0].forward(self._batch))


def fisher_diagonal(
    cost: ModelCost, params: str | Sequence[str] = "*", *, draws: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information per token, from answers drawn from the model itself.

    Unbiased: the answers of different tokens are drawn independently, so the square of an
    example's summed gradient is, in expectation, the sum of the squares. It takes one backward
    pass for each example and draw.

    Args:
        cost: model and data.
        params: which parameters move.
        draws: number of answers drawn for each token.
        seed: seed of the answers.

    Returns:
        By parameter name, in the parameter's shape, in float32 or better, as
        :class:`~offkey.volume.Diagonal` takes it.
    """
    space = Space.of(cost.parameters, params)
    weights = [cost.parameters[name] for name in space.names]
    total = [
        torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for weight in weights
    ]
    generator = torch.Generator().manual_seed(int(named_rng(seed, "fisher").integers(2**63)))
    count = 0
    for logits in _outputs(cost, weights):
        count += len(logits)
        log_p = logits.log_softmax(-1)
        p = log_p.detach().double().softmax(-1).cpu()
        for draw in range(draws):
            answers = torch.multinomial(p, 1, generator=generator).to(log_p.device)
            likelihood = log_p.gather(-1, answers).sum()
            grads = torch.autograd.grad(
                likelihood, weights, retain_graph=draw + 1 < draws, allow_unused=True
            )
            for sum_, grad in zip(total, grads, strict=True):
                if grad is not None:
                    sum_ += grad.to(sum_.dtype) ** 2 / draws

    return {name: sum_ / count for name, sum_ in zip(space.names, total, strict=True)}


def fisher_dense(cost: ModelCost, params: str | Sequence[str] = "*") -> Float64[Tensor, "D D"]:
    r"""The whole Fisher information per token, :math:`E[J^\top (\mathrm{diag}\,p - pp^\top) J]`.

    Exact, and equal to the Hessian of the KL cost at the anchor. It takes one backward pass for
    each output of each token, so it suits small models with few classes.

    Raises:
        BadValue: more than 20,000 parameters.
    """
    space = Space.of(cost.parameters, params)
    check(
        space.dimensions <= LARGEST,
        f"{space.dimensions} parameters make too large a matrix",
        where="fisher_dense",
        mend="Use fisher_diagonal",
    )
    weights = [cost.parameters[name] for name in space.names]
    total = torch.zeros(space.dimensions, space.dimensions, dtype=torch.float64)
    rows: list[Tensor] = []
    count = 0
    for logits in _outputs(cost, weights):
        count += len(logits)
        for token in logits:
            log_p = token.log_softmax(-1)
            for value in log_p:
                grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
                flat = [
                    (torch.zeros_like(w) if g is None else g).reshape(-1)
                    for w, g in zip(weights, grads, strict=True)
                ]
                rows.append(torch.cat(flat).double().cpu() * float((value.detach() / 2).exp()))
            if len(rows) >= 1024:
                stacked = torch.stack(rows)
                total.addmm_(stacked.T, stacked)
                rows.clear()
    if rows:
        stacked = torch.stack(rows)
        total.addmm_(stacked.T, stacked)

    return total / count


def later_half(model: Model) -> tuple[int | None, tuple[str, ...]]:
    """The first block of the later half and the names of the parameters from there on.

    ``None`` and all parameters for a model without blocks.
    """
    weights = dict(model.module.named_parameters())
    if model.wiring is None or len(model.wiring.blocks) < 2:
        return None, tuple(weights)
    block = len(model.wiring.blocks) // 2
    late = {id(w) for part in model.wiring.blocks[block:] for w in part.module.parameters()}

    return block, tuple(name for name, weight in weights.items() if id(weight) in late)


def _bytes(row: Tensor, batch: Batch, number: int) -> bytes:
    if batch.mask is not None and row.shape[:1] == batch.mask.shape[1:]:
        row = row[batch.mask[number]]

    return row.detach().cpu().contiguous().numpy().tobytes() + b"|"


def _outputs(cost: ModelCost, weights: list[Tensor]) -> Iterator[Tensor]:
    """Logits ``[token, vocab]`` of each example, with a graph back to the weights."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for batch in cost.batches:
                yield from cost.outputs(batch)
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)
