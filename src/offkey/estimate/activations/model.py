"""One Gaussian a layer, its covariance known on a mask, and scores of new activations under it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.activations.closures import Closure, check_covariance, check_mask, close
from offkey.estimate.gaussian import Normal, propagate
from offkey.estimate.quantities import Pair, TrackedPairs
from offkey.stats import Gaussian, Moments, check_alpha

__all__ = [
    "Pairs",
    "Transitions",
    "mask_of",
    "pairs_of",
    "moments_of",
    "ActivationModel",
    "distances",
    "pair_residuals",
    "broken_relation",
    "squared_residuals",
    "conformal_threshold",
]

Pairs = Iterable[Pair]
Transitions = Mapping[str, Callable[[Normal], Normal]]


def mask_of(pairs: Pairs, width: int) -> Bool[Tensor, "d d"]:
    """The symmetric mask of tracked pairs, with a diagonal that is true.

    Raises:
        BadInput: a pair outside the width.
    """
    mask = torch.eye(width, dtype=torch.bool)
    listed = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2)
    if len(listed) and not 0 <= int(listed.amin()) <= int(listed.amax()) < width:
        raise BadInput(f"a tracked pair is outside the {width} dimensions", where="pairs")
    mask[listed[:, 0], listed[:, 1]] = True
    mask[listed[:, 1], listed[:, 0]] = True

    return mask


def pairs_of(mask: Bool[Tensor, "d d"]) -> frozenset[Pair]:
    """The pairs (i, j), i < j, that a symmetric mask tracks.

    Raises:
        BadInput: the mask is not symmetric.
    """
    keep = check_mask(mask, len(mask))

    return frozenset((int(i), int(j)) for i, j in keep.triu(1).nonzero())


def moments_of(rows: Float[Tensor, "n d"] | Moments) -> Moments:
    """Mean and covariance of rows, where they were not summed up already."""
    if isinstance(rows, Moments):
        return rows
    moments = Moments()
    moments.update(rows, [f"row {n}" for n in range(len(rows))])

    return moments


@dataclass(frozen=True, eq=False)
class ActivationModel:
    r"""Gaussians :math:`N(m_\ell, S_\ell \circ M_\ell)` over the activations of layers.

    The masks are the argument: they say which dependences between activations are tracked. A
    masked covariance is closed before it is used as a Gaussian's (:func:`close`). Values of an
    empirical model come from data and cost half of :math:`\log_2 N` bits each; those of a
    propagated one follow from the weights and cost nothing.

    Attributes:
        layers: mean and covariance of each layer, whole.
        argument: the tracked pairs, one group a layer.
        closure: how masked covariances are completed.
        samples: N of an empirical model; ``None`` for a propagated one.
        start: Gaussian of the input of a propagated model.
        transitions: what maps one layer's Gaussian to the next's in a propagated model.

    Raises:
        Mismatch: the argument is about other layers.
        BadInput: a covariance that is not positive semi-definite, or a pair outside its layer.
    """

    layers: Mapping[str, Normal]
    argument: TrackedPairs
    closure: Closure = "maxent"
    samples: int | None = None
    start: Normal | None = None
    transitions: Transitions | None = None

    def __post_init__(self) -> None:
        if set(self.argument.candidates) != set(self.layers):
            raise Mismatch(
                f"the argument is about layers {', '.join(self.argument.candidates) or 'none'}, "
                f"and the model has {', '.join(self.layers)}",
                where="ActivationModel",
                mend="Make the argument from the same model",
            )
        for name, normal in self.layers.items():
            width = len(normal.mean)
            if self.argument.candidates[name] != _pair_count(width):
                raise Mismatch(
                    f"{self.argument.candidates[name]} candidate pairs where {width} dimensions "
                    f"have {_pair_count(width)}",
                    where=f"layer {name}",
                    mend="Make the argument from the same model",
                )
            mask_of(self.argument.tracked.get(name, ()), width)
            check_covariance(normal.full)

    @classmethod
    def empirical(
        cls,
        rows: Mapping[str, Float[Tensor, "n d"] | Moments],
        pairs: Mapping[str, Pairs] | None = None,
        *,
        closure: Closure = "maxent",
        subject: str = "",
    ) -> Self:
        """Moments of data, layer by layer.

        Args:
            rows: activations of each layer, or their moments; as many for each layer.
            pairs: tracked pairs of each layer; none if left out.
            closure: how masked covariances are completed.
            subject: fingerprint of the model; names and widths of the layers if left out.

        Raises:
            BadValue: layers with unlike numbers of rows.
        """
        moments = {name: moments_of(x) for name, x in rows.items()}
        counts = {summary.count for summary in moments.values()}
        if len(counts) != 1:
            raise BadValue(
                f"layers with {sorted(counts)} rows",
                where="rows",
                mend="Give the same prompts at every layer",
            )
        count = counts.pop()
        layers = {
            name: Normal(summary.mean, summary.covariance()) for name, summary in moments.items()
        }
        argument = _argument(layers, pairs, subject, float(np.log2(count)) / 2)

        return cls(layers, argument, closure, count)

    @classmethod
    def joint(
        cls,
        rows: Mapping[str, Float[Tensor, "n d"]],
        pairs: Pairs = (),
        *,
        closure: Closure = "maxent",
        subject: str = "",
    ) -> Self:
        """One Gaussian over all layers side by side, so that relations between layers count.

        Its only layer is called by all their names, joined by ``+``; dimensions are numbered
        through. Rows of the layers belong to the same prompts, in the same order.
        """
        name = "+".join(rows)
        lengths = sorted({len(x) for x in rows.values()})
        if len(lengths) != 1:
            raise BadValue(
                f"layers with {lengths} rows",
                where="rows",
                mend="Give the same prompts at every layer",
            )
        side = torch.cat([x.double() for x in rows.values()], dim=1)

        return cls.empirical({name: side}, {name: pairs}, closure=closure, subject=subject)

    @classmethod
    def propagated(
        cls,
        start: Normal,
        transitions: Transitions,
        pairs: Mapping[str, Pairs] | None = None,
        *,
        closure: Closure = "maxent",
        subject: str = "",
    ) -> Self:
        """Moments of each layer from the transition of the closed Gaussian before it.

        Args:
            start: Gaussian of the input; not a layer, and not masked.
            transitions: for each layer, in order, what maps the Gaussian before it to its own,
                such as a linear map and then an elementwise function.
            pairs: tracked pairs of each layer; none if left out.
            closure: how masked covariances are completed.
            subject: fingerprint of the model; names and widths of the layers if left out.
        """
        layers: dict[str, Normal] = {}
        before = start
        for name, step in transitions.items():
            layers[name] = step(before)
            mask = mask_of((pairs or {}).get(name, ()), len(layers[name].mean))
            before = Normal(layers[name].mean, close(layers[name].full, mask, closure))

        argument = _argument(layers, pairs, subject, 0.0)

        return cls(layers, argument, closure, None, start, dict(transitions))

    @classmethod
    def of_network(
        cls,
        network: nn.Sequential,
        start: Normal,
        pairs: Mapping[str, Pairs] | None = None,
        *,
        closure: Closure = "maxent",
        subject: str = "",
    ) -> Self:
        """Each child of a sequence as a layer, propagated by :func:`gaussian.propagate`.

        Raises:
            UnmappedModel: a layer has no rule; names it.
        """
        steps = {name: partial(_last, layer) for name, layer in network.named_children()}

        return cls.propagated(start, steps, pairs, closure=closure, subject=subject)

    @cached_property
    def masks(self) -> dict[str, Bool[Tensor, "d d"]]:
        """The mask of each layer."""
        return {
            name: mask_of(self.argument.tracked.get(name, ()), len(normal.mean))
            for name, normal in self.layers.items()
        }

    @cached_property
    def closed(self) -> dict[str, Normal]:
        """The Gaussian of each layer with its masked covariance closed."""
        return {
            name: Normal(normal.mean, close(normal.full, self.masks[name], self.closure))
            for name, normal in self.layers.items()
        }

    @property
    def empty(self) -> Self:
        """The same without any pair tracked."""
        return self.with_argument(replace(self.argument, tracked={}))

    @property
    def full(self) -> Self:
        """The same with every pair tracked."""
        everything = {
            name: pairs_of(torch.ones(len(n.mean), len(n.mean), dtype=torch.bool))
            for name, n in self.layers.items()
        }
        return self.with_argument(replace(self.argument, tracked=everything))

    def with_argument(self, argument: TrackedPairs) -> Self:
        """The model under another argument; a propagated one is propagated anew.

        Raises:
            Mismatch: the argument is about another model.
        """
        argument.check(self.argument.subject)
        if self.start is None or self.transitions is None:
            return replace(self, argument=argument)

        return type(self).propagated(
            self.start,
            self.transitions,
            argument.tracked,
            closure=self.closure,
            subject=argument.subject,
        )

    def with_pairs(self, pairs: Mapping[str, Pairs]) -> Self:
        """The model with exactly these pairs tracked."""
        tracked = {name: frozenset(chosen) for name, chosen in pairs.items()}

        return self.with_argument(replace(self.argument, tracked=tracked))


def _argument(
    layers: Mapping[str, Normal],
    pairs: Mapping[str, Pairs] | None,
    subject: str,
    value_bits: float,
) -> TrackedPairs:
    widths = {name: len(normal.mean) for name, normal in layers.items()}
    given = {name: frozenset(chosen) for name, chosen in (pairs or {}).items()}
    if unknown := set(given) - set(widths):
        raise Mismatch(
            f"pairs of layer {sorted(unknown)[0]!r}, which the model has not",
            where="pairs",
            mend="Layers: " + ", ".join(widths),
        )

    return TrackedPairs(
        subject or "layers " + ", ".join(f"{name}[{width}]" for name, width in widths.items()),
        given,
        {name: _pair_count(width) for name, width in widths.items()},
        value_bits=value_bits,
    )


def _last(layer: nn.Module, normal: Normal) -> Normal:
    return list(propagate(layer, normal).values())[-1]


def _pair_count(width: int) -> int:
    return width * (width - 1) // 2


def distances(
    model: ActivationModel, rows: Mapping[str, Float[Tensor, "n d"]]
) -> Float[Tensor, "n layers"]:
    r"""Squared Mahalanobis distance :math:`\delta^\top \hat S^{-1} \delta` at each layer.

    Under the empty argument this is the sum of squared z values.

    Raises:
        Mismatch: rows of other layers.
        NotEnoughData: a closed covariance is singular.
    """
    if set(rows) != set(model.layers):
        raise Mismatch(
            f"rows of layers {', '.join(rows)}, and the model has {', '.join(model.layers)}",
            where="rows",
        )
    columns = [
        Gaussian(normal.mean, normal.full).mahalanobis(rows[name])
        for name, normal in model.closed.items()
    ]

    return torch.stack(columns, dim=1)


def pair_residuals(
    normal: Normal, pairs: Sequence[Pair], x: Float[Tensor, "n d"]
) -> Float[Tensor, "n pairs"]:
    r"""How far each tracked pair's product is from its covariance.

    .. math:: w_{ij} = \frac{\delta_i \delta_j - S_{ij}}{\sqrt{S_{ii} S_{jj} + S_{ij}^2}}

    of mean 0 and variance 1 under the model.
    """
    if x.ndim != 2 or x.shape[1] != len(normal.mean):
        raise Mismatch(
            f"rows of shape {tuple(x.shape)} for {len(normal.mean)} dimensions",
            where="pair_residuals",
        )
    i, j = torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2).T
    gap, s = x.double() - normal.mean, normal.full
    spread = (s[i, i] * s[j, j] + s[i, j].square()).sqrt()

    return (gap[:, i] * gap[:, j] - s[i, j]) / spread


def broken_relation(
    normal: Normal, pairs: Sequence[Pair], x: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    r"""Largest :math:`-\operatorname{sign}(S_{ij})\, w_{ij}`: the relation most against its sign.

    Zero where no pair is tracked.
    """
    if not pairs:
        return torch.zeros(len(x), dtype=torch.float64)
    i, j = torch.tensor(list(pairs)).T

    return (pair_residuals(normal, pairs, x) * -normal.full[i, j].sign()).amax(1)


def squared_residuals(
    normal: Normal, pairs: Sequence[Pair], x: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    r""":math:`\sum w_{ij}^2` over the tracked pairs; its mean under the model is their number."""
    return pair_residuals(normal, pairs, x).square().sum(1)


def conformal_threshold(calibration: ArrayLike, alpha: float) -> float:
    r"""The :math:`\lceil (n + 1)(1 - \alpha) \rceil`-th smallest of held-out trusted scores.

    A new score above it has a conformal p-value of at most ``alpha``; if it is exchangeable with
    the held-out ones, that happens at most this often.

    Raises:
        NotEnoughData: too few scores for ``alpha``; says how many are needed.
    """
    scores = np.sort(np.asarray(calibration, dtype=np.float64).reshape(-1))
    check_alpha(alpha, len(scores))
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)

    return float(scores[rank - 1])
