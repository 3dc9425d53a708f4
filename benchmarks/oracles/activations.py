"""Oracles of activation models: closures, break-even counts, gates, Wick shares, AUROCs."""

import math
from typing import Any

import torch
from torch import Tensor

from offkey.estimate.activations import (
    ActivationModel,
    Wick,
    break_even,
    broken_relation,
    close,
    distances,
    divergence_bits,
    mask_of,
    open_probability,
    search,
    surprise_of_activations,
)
from offkey.estimate.gaussian import RELU, Normal
from offkey.stats import auroc

from . import EXACT, QUADRATURE, printed_row, row

__all__ = ["rows"]

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
COUNT = 4000


def rows() -> list[dict[str, Any]]:
    """One row a published number."""
    return [*_closures(), *_break_even(), *_parts(), *_planted(), *_flipped()]


def _closures() -> list[dict[str, Any]]:
    s = torch.full((3, 3), 0.9, dtype=torch.float64)
    s.fill_diagonal_(1.0)
    mask = mask_of({(0, 1), (1, 2)}, 3)
    least = torch.linalg.eigvalsh(close(s, mask, "zero"))[0]
    closed = close(s, mask)

    return [
        printed_row("smallest eigenvalue of a masked covariance", "-.27279", float(least)),
        row("entry off the mask of its maximum-entropy closure", 0.81, float(closed[0, 2]), EXACT),
        row("determinant of that closure", 0.0361, float(torch.linalg.det(closed)), QUADRATURE),
        printed_row(
            "its divergence from the full Gaussian", ".183286", divergence_bits(s, closed)
        ),
    ]


def _break_even() -> list[dict[str, Any]]:
    return [
        row(f"samples from which correlation {rho} pays at width 35", n, break_even(rho, 35), 0.0)
        for rho, n in ((0.6, 37), (0.3, 192), (0.2, 464))
    ]


def _parts() -> list[dict[str, Any]]:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    whole = float(RELU.variance(zero, one))
    first, second = (float(RELU.derivative(k, zero, one)) for k in (1, 2))
    normal = Normal(torch.tensor([0.3, -0.5]), torch.tensor([[1.0, 0.4], [0.4, 2.0]]))
    product = Wick.product(normal, mask_of({(0, 1)}, 2), 0, 1)
    x = torch.tensor([[1.7, -2.3]], dtype=torch.float64)

    return [
        printed_row("open probability of a gate at 0", ".83182", float(open_probability(zero))),
        printed_row("share of a ReLU's variance in order 1", ".7335", first**2 / whole),
        printed_row("share of a ReLU's variance in order 2", ".2335", second**2 / 2 / whole),
        row("a tracked product by its Wick expansion", -1.7 * 2.3, float(product(x)), EXACT),
    ]


def _covariance(correlations: tuple[float, ...]) -> Tensor:
    s = torch.eye(2 * len(correlations), dtype=torch.float64)
    for (i, j), rho in zip(PAIRS, correlations, strict=True):
        s[i, j] = s[j, i] = rho

    return s


def _draw(correlations: tuple[float, ...], count: int, seed: int) -> Tensor:
    normal = Normal(torch.zeros(8), _covariance(correlations))

    return normal.sample(count, torch.Generator().manual_seed(seed))


def _planted() -> list[dict[str, Any]]:
    numbers = []
    for method in ("greedy", "hard-concrete", "straight-through", "lasso"):
        for name, correlations, expected in (
            ("planted pairs", (0.5, -0.6, 0.7, -0.8), frozenset(PAIRS)),
            ("pairs in noise", (0.0,) * 4, frozenset()),
        ):
            x = _draw(correlations, 2000, seed=0)
            result = search(torch.cov(x.T, correction=0), 2000, method)
            wrong = len(result.pairs ^ expected)
            numbers.append(row(f"{name} found wrongly or missed, {method}", 0, wrong, 0.0))
    x = _draw((0.5, -0.6, 0.7, -0.8), 2000, seed=0)
    model = ActivationModel.empirical({"h": x}, {"h": PAIRS})
    r = torch.corrcoef(x.T)
    alone = -1000 * sum(math.log2(1 - float(r[i, j]) ** 2) for i, j in PAIRS)
    explained = surprise_of_activations(model, {"h": x}).explained

    return [*numbers, row("bits that disjoint pairs explain", alone, explained, QUADRATURE)]


def _flipped() -> list[dict[str, Any]]:
    model = ActivationModel.empirical({"h": _draw((0.9,) * 4, COUNT, 0)}, {"h": PAIRS})
    usual, odd = _draw((0.9,) * 4, COUNT, 1), _draw((-0.9,) * 4, COUNT, 2)
    normal = model.closed["h"]
    ways = {
        "signed residual": (0.996, lambda x: broken_relation(normal, PAIRS, x)),
        "Mahalanobis": (0.977, lambda x: distances(model, {"h": x})[:, 0]),
        "empty model": (0.5, lambda x: distances(model.empty, {"h": x})[:, 0]),
    }
    labels = [0] * COUNT + [1] * COUNT

    return [
        row(
            f"AUROC on flipped correlations, {name}",
            expected,
            float(auroc(torch.cat([score(usual), score(odd)]).numpy(), labels).value),
            0.02 / expected,
        )
        for name, (expected, score) in ways.items()
    ]
