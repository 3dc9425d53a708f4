"""Search for the mask of least total surprise: greedy, exhaustive, relaxed, lasso, in rounds."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.covariance import graphical_lasso
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from offkey.errors import BadValue, NotEnoughData
from offkey.estimate.activations.closures import check_covariance, close, log2_det
from offkey.estimate.activations.model import mask_of, pairs_of
from offkey.estimate.quantities import Pair, Surprise, log2_binomial

__all__ = [
    "BETA",
    "GAMMA",
    "ZETA",
    "hard_concrete_gates",
    "open_probability",
    "still_gates",
    "gate_price",
    "pair_surprise",
    "hard_concrete_pairs",
    "straight_through_pairs",
    "Method",
    "MaskSearch",
    "description_bits",
    "scored",
    "search",
    "marginal_gain",
    "tracked_in_rounds",
]

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
_STEPS, _RATE = 400, 0.1
_START = -2.0
"""First logit of each gate: mostly closed, where the price of opening one is positive."""
_SURE = 1 - 1e-12
Method = Literal["greedy", "exhaustive", "hard-concrete", "straight-through", "lasso"]
_EXHAUSTIVE = 4
"""Widest layer whose masks are all tried: 64 of them."""
_PENALTIES = 24
_FLOOR = 1e-12
"""Smallest 1 - rho^2 that a gain is computed from."""


def hard_concrete_gates(
    logits: Float[Tensor, "*shape"], uniform: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Gates between 0 and 1 that are exactly 0 or 1 with positive probability.

    .. math:: s = \sigma\big((\ln u - \ln (1 - u) + \log \alpha) / \beta\big), \qquad
        z = \operatorname{clip}(s (\zeta - \gamma) + \gamma, 0, 1)

    with :math:`\beta = 2/3, \gamma = -0.1, \zeta = 1.1`.

    Args:
        logits: :math:`\log \alpha`.
        uniform: u, in (0, 1).

    References:
        Louizos, Welling, Kingma, 2018, eq. 10. https://arxiv.org/abs/1712.01312
    """
    s = ((uniform.log() - (1 - uniform).log() + logits) / BETA).sigmoid()

    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r""":math:`P(z \ne 0) = \sigma(\log \alpha - \beta \ln (-\gamma / \zeta))`."""
    return (logits - BETA * math.log(-GAMMA / ZETA)).sigmoid()


def still_gates(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Gates without noise.

    .. math:: z = \operatorname{clip}(\sigma(\log \alpha) (\zeta - \gamma) + \gamma, 0, 1)
    """
    return (logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def gate_price(candidates: int, tracked: float, samples: int) -> float:
    r"""Bits that one more open gate costs: the derivative of the argument's length.

    .. math:: \log_2 \frac{n - k + 1/2}{k + 1/2} + \tfrac12 \log_2 N
    """
    choice = math.log2((candidates - tracked + 0.5) / (tracked + 0.5))

    return choice + math.log2(samples) / 2


def pair_surprise(
    correlation: Float[Tensor, "*shape"], gate: Float[Tensor, "*shape"], samples: int
) -> Float[Tensor, "*shape"]:
    r"""Surprise of N draws of a pair if its correlation is scaled by its gate, in bits.

    .. math:: \frac N2 \Big[ \log_2 (1 - z^2 \rho^2) +
        \frac{2}{\ln 2} \Big( \frac{1 - z \rho^2}{1 - z^2 \rho^2} - 1 \Big) \Big]

    Counted from the closed gate on; :math:`\frac N2 \log_2 (1 - \rho^2)` at the open one.
    """
    square = correlation.square().clamp(max=_SURE)
    left = 1 - gate.square() * square
    bits: Tensor = samples / 2 * (left.log() + 2 * ((1 - gate * square) / left - 1)) / math.log(2)

    return bits


def hard_concrete_pairs(
    correlation: Float[Tensor, "d d"], samples: int, generator: torch.Generator | None = None
) -> frozenset[Pair]:
    """Pairs whose gates are open at the end of a descent of expected total surprise.

    One logit a pair; the outcome is the sum over pairs of :func:`pair_surprise` (the zero-filled
    closure, pair by pair), the argument costs :func:`gate_price` for each open gate.

    Args:
        correlation: of the samples.
        samples: N.
        generator: of the gates' noise; seeded with 0 if left out.
    """
    i, j, rho = _each(correlation)
    logits = torch.full_like(rho, _START, requires_grad=True)
    descent = torch.optim.Adam([logits], lr=_RATE)
    generator = generator or torch.Generator().manual_seed(0)
    for _ in range(_STEPS):
        noise = torch.rand(len(rho), generator=generator, dtype=torch.float64).clamp(1e-9, _SURE)
        gates, is_open = hard_concrete_gates(logits, noise), open_probability(logits)
        price = gate_price(len(rho), float(is_open.sum().detach()), samples)
        loss = (pair_surprise(rho, gates, samples) + price * is_open).sum()
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's own is untyped
        descent.step()
    chosen = still_gates(logits.detach()) > 0.5

    return frozenset(zip(i[chosen].tolist(), j[chosen].tolist(), strict=True))


def straight_through_pairs(correlation: Float[Tensor, "d d"], samples: int) -> frozenset[Pair]:
    r"""Pairs whose gates are open at the end of a straight-through descent.

    Forward a gate is :math:`1[s > \frac12]`, backward the identity. The outcome of a pair is
    linear in its gate between the closed and the open one: under :func:`pair_surprise` itself an
    open gate has no gradient, and only its price would be felt.

    Args:
        correlation: of the samples.
        samples: N.

    References:
        Bengio, Léonard, Courville, 2013. https://arxiv.org/abs/1308.3432
    """
    i, j, rho = _each(correlation)
    logits = torch.full_like(rho, _START, requires_grad=True)
    descent = torch.optim.Adam([logits], lr=_RATE)
    gain = -pair_surprise(rho, torch.ones_like(rho), samples)
    for _ in range(_STEPS):
        soft = logits.sigmoid()
        gates = (soft > 0.5).double() + soft - soft.detach()
        price = gate_price(len(rho), float(gates.sum().detach()), samples)
        loss = (gates * (price - gain)).sum()
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's own is untyped
        descent.step()
    chosen = logits.detach() > 0

    return frozenset(zip(i[chosen].tolist(), j[chosen].tolist(), strict=True))


def _each(correlation: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair once: its two dimensions and its correlation."""
    i, j = torch.triu_indices(len(correlation), len(correlation), offset=1)

    return i, j, correlation[i, j].double()


@dataclass(frozen=True)
class MaskSearch:
    """The mask that a search found, and its surprise.

    Attributes:
        pairs: the tracked pairs.
        surprise: scored exactly, with the maximum-entropy closure.
        scored: how many masks were scored exactly.
    """

    pairs: frozenset[Pair]
    surprise: Surprise
    scored: int


def description_bits(width: int, tracked: int, samples: int) -> float:
    r"""S(π) of one layer: :math:`\log_2 (n + 1) + \log_2 \binom nk + \tfrac k2 \log_2 N`."""
    n = width * (width - 1) // 2

    return math.log2(n + 1) + log2_binomial(n, tracked) + tracked * math.log2(samples) / 2


def scored(
    covariance: Float[Tensor, "d d"], pairs: Iterable[Pair], samples: int
) -> tuple[Surprise, Float[Tensor, "d d"]]:
    r"""Total surprise of one layer's mask, exactly, and the closed correlations.

    The outcome is counted from the empty mask on: :math:`\frac N2 \log_2 |\hat R|` bits, with
    :math:`\hat R` the maximum-entropy closure of the correlations.

    Raises:
        NotEnoughData: the closure is singular.
    """
    r = _correlation(covariance)
    chosen = frozenset(pairs)
    closed = close(r, mask_of(chosen, len(r)))
    surprise = Surprise(
        samples / 2 * log2_det(closed),
        description_bits(len(r), len(chosen), samples),
        0.0,
        description_bits(len(r), 0, samples),
    )

    return surprise, closed


def search(
    covariance: Float[Tensor, "d d"],
    samples: int,
    method: Method = "greedy",
    *,
    generator: torch.Generator | None = None,
) -> MaskSearch:
    """The mask of least total surprise that a method finds for one layer.

    Whatever the method, the mask is hardened and scored exactly, and the empty mask is kept where
    it is better.

    Args:
        covariance: that of the samples.
        samples: N.
        method: ``"greedy"`` adds the pair that the closure so far is furthest from, as long as
            the total falls; ``"exhaustive"`` tries all masks of up to 4 dimensions;
            ``"hard-concrete"`` and ``"straight-through"`` relax the mask and descend;
            ``"lasso"`` scores the supports along the path of the graphical lasso.
        generator: of hard-concrete gates; seeded with 0 if left out.

    Raises:
        BadInput: the covariance is not symmetric or not positive semi-definite.
        BadValue: unknown method, fewer than two samples, or too wide for ``"exhaustive"``.
        NotEnoughData: a dimension does not vary, or a closure is singular.

    References:
        Friedman, Hastie, Tibshirani, 2008: Sparse inverse covariance estimation with the
        graphical lasso.
    """
    if samples < 2:
        raise BadValue(f"{samples} samples", where="search", mend="Give at least 2")
    r = _correlation(covariance)
    if method == "greedy":
        return _greedy(r, samples)
    if method == "exhaustive":
        if len(r) > _EXHAUSTIVE:
            raise BadValue(
                f"{len(r)} dimensions have 2^{len(r) * (len(r) - 1) // 2} masks",
                where="search",
                mend="Use 'greedy' above 4 dimensions",
            )
        return _best(r, samples, _powerset(len(r)))
    if method == "lasso":
        return _best(r, samples, _lasso_path(r))
    relaxed: dict[str, Callable[[], frozenset[Pair]]] = {
        "hard-concrete": lambda: hard_concrete_pairs(r, samples, generator),
        "straight-through": lambda: straight_through_pairs(r, samples),
    }
    if method not in relaxed:
        raise BadValue(
            f"unknown method {method!r}",
            where="search",
            mend="Use greedy, exhaustive, lasso, hard-concrete or straight-through",
        )

    return _best(r, samples, [relaxed[method]()])


def marginal_gain(
    correlation: Float[Tensor, "d d"], closed: Float[Tensor, "d d"], samples: int
) -> Float[Tensor, "d d"]:
    r"""Bits that each pair explains at least, if it is tracked in addition to the closed mask.

    N times the divergence between the pair's true marginal and the closed one, which the first
    step of iterative proportional fitting gains. From the empty mask it is
    :math:`-\frac N2 \log_2 (1 - \rho^2)`.

    Args:
        correlation: true correlations R.
        closed: correlations W under the mask so far.
        samples: N.
    """
    spread, kept = (1 - closed.square()).clamp(min=_FLOOR), 1 - correlation.square()
    nats = (1 - correlation * closed) / spread - 1
    nats = nats + (spread / kept.clamp(min=_FLOOR)).log() / 2
    gain = samples * nats / math.log(2)
    gain.fill_diagonal_(0.0)

    return gain.clamp(min=0)


def tracked_in_rounds(
    correlation: Float[Tensor, "d d"],
    samples: int,
    *,
    rounds: int = 12,
    shrinkage: float = 0.0,
    tolerance: float = 1e-3,
) -> tuple[Bool[Tensor, "d d"], Float[Tensor, "d d"]]:
    r"""A mask of small total surprise for wide layers, and its closure.

    Each round adds the forest of pairs with the largest :func:`marginal_gain`, of those that gain
    more than :math:`\log_2 n + \frac12 \log_2 N` bits, and closes the mask anew. The first round
    gives the best tree-shaped mask there is (Chow and Liu's). A round that does not lower the
    total is undone, and ends it. At the end the pairs that the others made redundant are dropped,
    where that lowers the total.

    Args:
        correlation: of the samples; may be singular if ``shrinkage`` is above 0.
        samples: N.
        rounds: at most.
        shrinkage: correlations are shrunk to 0 by this share before they are closed.
        tolerance: as in :func:`close`; the closure is positive definite and right on the mask
            whatever it is.

    References:
        Chow, Liu, 1968: Approximating discrete probability distributions with dependence trees.
    """
    width = len(correlation)
    price = math.log2(max(1, width * (width - 1) // 2)) + math.log2(samples) / 2
    target = correlation * (1 - shrinkage)
    target.fill_diagonal_(1.0)
    mask = torch.eye(width, dtype=torch.bool)
    closed = torch.eye(width, dtype=torch.float64)

    worth = 0.0
    for _ in range(rounds if width > 1 else 0):
        gain = marginal_gain(target, closed, samples) * ~mask
        forest = _forest(gain * (gain > price))
        if not bool(forest.any()):
            break
        step = _priced(target, mask | forest, samples, price, tolerance)
        if step is None or step[1] >= worth:
            break
        mask, (closed, worth) = mask | forest, step
    fewer = mask & ~_redundant(closed, price / samples)
    if bool((fewer != mask).any()):
        step = _priced(target, fewer, samples, price, tolerance)
        if step is not None and step[1] < worth:
            return fewer, step[0]

    return mask, closed


def _priced(
    r: Float[Tensor, "d d"],
    mask: Bool[Tensor, "d d"],
    samples: int,
    price: float,
    tolerance: float,
) -> tuple[Float[Tensor, "d d"], float] | None:
    """The closure of a mask and its total surprise at a fixed price a pair, if there is one."""
    try:
        closed = close(r, mask, tolerance=tolerance)
    except NotEnoughData:
        return None

    return closed, samples / 2 * log2_det(closed) + int(mask.triu(1).sum()) * price


def _redundant(closed: Float[Tensor, "d d"], price: float) -> Bool[Tensor, "d d"]:
    """Pairs whose partial correlation explains less than the price, in bits a sample."""
    precision = torch.linalg.inv(closed)
    scale = precision.diagonal().sqrt()
    partial = precision / torch.outer(scale, scale)
    partial.fill_diagonal_(1.0)

    return -torch.log2((1 - partial.square()).clamp(min=_FLOOR)) / 2 < price


def _forest(gain: Float[Tensor, "d d"]) -> Bool[Tensor, "d d"]:
    """The spanning forest of largest gain among pairs of positive gain."""
    i, j = gain.triu(1).nonzero().T.numpy()
    weight = gain[i, j].numpy()
    size = len(gain)
    tree = minimum_spanning_tree(coo_array((-weight, (i, j)), shape=(size, size)).tocsr())
    forest = torch.from_numpy(tree.toarray() < 0)

    return forest | forest.T


def _greedy(r: Float[Tensor, "d d"], samples: int) -> MaskSearch:
    pairs: frozenset[Pair] = frozenset()
    surprise, closed = scored(r, pairs, samples)
    tried = 1
    while len(pairs) < len(r) * (len(r) - 1) // 2:
        gain = marginal_gain(r, closed, samples) * ~mask_of(pairs, len(r))
        i, j = divmod(int(gain.triu(1).argmax()), len(r))
        if i == j or not float(gain[i, j]) > 0:
            break
        more, wider = scored(r, pairs | {(i, j)}, samples)
        tried += 1
        if more.total >= surprise.total:
            break
        pairs, surprise, closed = pairs | {(i, j)}, more, wider

    return MaskSearch(pairs, surprise, tried)


def _best(r: Float[Tensor, "d d"], samples: int, masks: Iterable[frozenset[Pair]]) -> MaskSearch:
    nothing: frozenset[Pair] = frozenset()
    surprises = {
        pairs: scored(r, pairs, samples)[0] for pairs in dict.fromkeys(chain([nothing], masks))
    }
    best = min(surprises, key=lambda pairs: surprises[pairs].total)

    return MaskSearch(best, surprises[best], len(surprises))


def _powerset(width: int) -> Iterable[frozenset[Pair]]:
    every = list(combinations(range(width), 2))

    return (frozenset(c) for k in range(len(every) + 1) for c in combinations(every, k))


def _lasso_path(r: Float[Tensor, "d d"]) -> list[frozenset[Pair]]:
    """Supports of the penalised precision, from the heaviest penalty to a hundredth of it."""
    largest = float((r - torch.eye(len(r))).abs().amax())
    if not largest > 0:
        return []
    supports = []
    for penalty in np.geomspace(largest * 0.999, largest / 100, _PENALTIES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                precision = graphical_lasso(r.numpy(), alpha=float(penalty))[1]
            except FloatingPointError:
                break  # a lighter penalty than the solver can bear ends the path
        supports.append(pairs_of(torch.from_numpy(np.abs(precision + precision.T) > _FLOOR)))

    return supports


def _correlation(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    s = check_covariance(covariance)
    scale = s.diagonal().sqrt()
    if not bool((scale > 0).all()):
        raise NotEnoughData(
            "it does not vary", where=f"dimension {int(scale.argmin())}", mend="Leave it out"
        )
    r = s / torch.outer(scale, scale)
    r.fill_diagonal_(1.0)

    return r
