"""Gaussians through functions and layers: closed forms, series and the accuracy to expect."""

import math
from typing import Any

import torch
from torch import nn

from offkey.estimate.gaussian import (
    ERF,
    GELU,
    PROBIT,
    RELU,
    Normal,
    PropagationSettings,
    Threshold,
    bivariate_normal_cdf,
    divergence,
    layer_norm,
    probability,
    propagate,
    rms_norm,
)

from . import QUADRATURE, printed_row, row

PAIR = tuple(torch.tensor(x, dtype=torch.float64) for x in (0.3, -0.5, 1.44, 0.49, 0.504))
"""Means .3 and -.5, standard deviations 1.2 and .7, correlation .6."""
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def rows() -> list[dict[str, Any]]:
    """Numbers of section 3."""
    return relu() + gelu() + probit() + norms() + linear_detector() + divergences() + networks()


def relu() -> list[dict[str, Any]]:
    """Pairs of ReLUs in closed form, and their series term by term."""
    terms = (
        RELU.coefficients(60, PAIR[0], PAIR[2])
        * RELU.coefficients(60, PAIR[1], PAIR[3])
        * 0.6 ** torch.arange(61)
    )
    series = [
        printed_row(
            f"ReLU pair, series to order {order}", printed, float(terms[1 : order + 1].sum())
        )
        for order, printed in (
            (1, ".07167"),
            (2, ".08974"),
            (4, ".08935"),
            (8, ".0892502"),
            (12, ".0892459"),
        )
    ]
    exact = float(RELU.covariance(*PAIR))

    return [
        row(
            "ReLU pair, mean of the product", 0.1520740631, float(RELU.product(*PAIR)), QUADRATURE
        ),
        printed_row("ReLU pair, covariance", ".0892456663", exact),
        *series,
        row(
            "ReLU pair, series to order 60 against closed form",
            exact,
            float(terms[1:].sum()),
            1e-4,
        ),
        printed_row("ReLU of N(0, 1), mean", ".398942", float(RELU.mean(ZERO, ONE))),
        printed_row("ReLU of N(0, 1), variance", ".340845", float(RELU.variance(ZERO, ONE))),
        row(
            "centred ReLU pair, correlation -0.8",
            (0.6 - 0.8 * (math.pi / 2 - math.asin(0.8))) / (2 * math.pi),
            float(RELU.product(ZERO, ZERO, ONE, ONE, -0.8 * ONE)),
        ),
        row(
            "ReLU pair, correlation 1, product",
            float(RELU.second_moment(PAIR[0], PAIR[2])),
            float(RELU.product(PAIR[0], PAIR[0], PAIR[2], PAIR[2], PAIR[2])),
        ),
    ]


def gelu() -> list[dict[str, Any]]:
    """GELU, whose pairs are quadrant integrals."""
    return [
        printed_row("GELU, mean", ".5338958", float(GELU.mean(PAIR[0], PAIR[2]))),
        printed_row("GELU pair, mean of the product", ".0816746253", float(GELU.product(*PAIR))),
        row("GELU of N(0, 1), mean", 1 / math.sqrt(4 * math.pi), float(GELU.mean(ZERO, ONE))),
        row(
            "GELU of N(0, 1), second moment",
            1 / 3 + 1 / (2 * math.pi * math.sqrt(3)),
            float(GELU.second_moment(ZERO, ONE)),
        ),
    ]


def probit() -> list[dict[str, Any]]:
    """Probit and erf, whose pairs are the bivariate normal distribution."""
    mx, my, vx, vy, c = PAIR
    t = (1 + vx).sqrt(), (1 + vy).sqrt()
    both = bivariate_normal_cdf(mx / t[0], my / t[1], c / (t[0] * t[1]))
    erf = 2 / math.pi * math.asin(float(2 * c / ((1 + 2 * vx) * (1 + 2 * vy)).sqrt()))

    return [
        row("probit pair, mean of the product", float(both), float(PROBIT.product(*PAIR))),
        row(
            "centred erf pair, mean of the product", erf, float(ERF.product(ZERO, ZERO, vx, vy, c))
        ),
        row(
            "bivariate normal at the origin, correlation .9",
            0.25 + math.asin(0.9) / 2 / math.pi,
            float(bivariate_normal_cdf(0.0, 0.0, 0.9)),
        ),
    ]


def norms() -> list[dict[str, Any]]:
    """Norms of an isotropic Gaussian, which are exact."""
    width = 64
    normal = Normal(torch.zeros(width), 3.0 * torch.eye(width))
    eye = torch.eye(width, dtype=torch.float64)
    square, centred = rms_norm(normal).state, layer_norm(normal).state

    return [
        row("RMSNorm, isotropic, largest mean", 0.0, float(square.mean.abs().amax())),
        row(
            "RMSNorm, isotropic, largest gap of covariance",
            0.0,
            float((square.full - eye).abs().amax()),
        ),
        row(
            "LayerNorm, isotropic, largest gap of covariance",
            0.0,
            float((centred.full - width / (width - 1) * (eye - 1 / width)).abs().amax()),
        ),
    ]


def linear_detector() -> list[dict[str, Any]]:
    """A linear detector before and after its worst shift of 2 nats."""
    covariance = torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    w = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    event = Threshold(w, 8.0)
    shift = 2 * covariance @ w / (w @ covariance @ w).sqrt()
    before = probability(nn.Identity(), event, Normal(torch.zeros(3), covariance))
    after = probability(nn.Identity(), event, Normal(shift, covariance))

    return [
        printed_row("linear detector, probability", "1.7331e-4", float(before)),
        printed_row("linear detector after the shift", ".0573163", float(after)),
    ]


def divergences() -> list[dict[str, Any]]:
    """From a Gaussian with all correlations .9 to its covariance selection without one pair."""
    full = torch.full((3, 3), 0.9, dtype=torch.float64).fill_diagonal_(1.0)
    closed = full.clone()
    closed[0, 2] = closed[2, 0] = 0.81
    zero = torch.zeros(3)
    nats = divergence(Normal(zero, full), Normal(zero, closed)) / math.log(2)

    return [printed_row("divergence from a pair left out, bits", ".183286", float(nats))]


def networks() -> list[dict[str, Any]]:
    """First layers against sampling, and a width-128, depth-3 ReLU network against its truth."""
    width, draws = 128, 100_000
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        *[part for _ in range(3) for part in (nn.Linear(width, width, bias=False), nn.ReLU())]
    ).double()
    for layer in network[::2]:
        weight = torch.randn(width, width, generator=generator, dtype=torch.float64)
        layer.weight.data = weight * math.sqrt(2 / width)  # type: ignore[union-attr]
    normal = Normal.standard(width)
    first = total = torch.zeros(width, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(draws // 10_000):
            inner = network[:2](normal.sample(10_000, generator))
            first, total = first + inner.sum(0), total + network[2:](inner).sum(0)
    states = {
        kind: propagate(network, normal, PropagationSettings(covariance=kind))
        for kind in ("full", "diagonal")
    }
    truth, exact = total / draws, states["full"]["1"]
    gap = (exact.mean - first / draws).abs() * (draws / exact.variance).sqrt()
    errors = {
        kind: float((made["5"].mean - truth).norm() / truth.norm())
        for kind, made in states.items()
    }

    return [
        row(
            "first ReLU layer, largest gap of the mean, standard errors",
            0.0,
            float(gap.amax()),
            5.0,
        ),
        row("width 128, depth 3, relative error of the mean, full", 0.0, errors["full"], 0.02),
        row(
            "the same, full as a share of diagonal", 0.0, errors["full"] / errors["diagonal"], 1.0
        ),
    ]
