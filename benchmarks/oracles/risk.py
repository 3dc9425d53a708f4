"""Tail risk: losses, planted sums, corners and the linear adversary."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from offkey.estimate import Estimate
from offkey.estimate.gaussian import Normal
from offkey.estimate.risk import (
    ITGIS,
    MHIS,
    Draws,
    ModuleNetwork,
    Problem,
    TokenInputs,
    argmax_probability,
    best_constant,
    fit_power,
    halfspace_probability,
    hardest_shift,
    itakura_saito,
    linear_shift,
    qld,
)

from . import EXACT, QUADRATURE, printed_row, row

RARE = 153 / 4**16


def rows() -> list[dict[str, Any]]:
    """Every number of the section."""
    return [*_losses(), *_sums(), *_corners(), *_adversary()]


def _losses() -> list[dict[str, Any]]:
    losses = [
        printed_row(f"Itakura-Saito loss at {name}", printed, itakura_saito(1.0, q))
        for name, printed, q in (
            ("p/2", ".307", 0.5),
            ("2p", ".193", 2.0),
            ("p/10", "6.70", 0.1),
            ("10p", "1.40", 10.0),
        )
    ]
    truths = np.geomspace(1e-9, 1e-5, 200_001).tolist()
    constant, loss = best_constant(truths)
    powers = [p**1.3 / 7 for p in truths[::8000]]
    fit = fit_power(powers, truths[::8000])
    left = [itakura_saito(p, fit(q)) for p, q in zip(truths[::8000], powers, strict=True)]

    return [
        *losses,
        printed_row("best constant, p log-uniform on 1e-9 to 1e-5", "1.0856e-6", constant),
        row("its loss", 2.3847, loss, 1e-4),
        row("exponent that repairs q = p^1.3 / 7", 1 / 1.3, fit.c, 1e-3),
        row("its loss, at most 1e-3", 0.0, float(np.mean(left)), 1e-3),
    ]


class _Sum(nn.Module):
    def forward(self, hot: torch.Tensor) -> torch.Tensor:
        return (hot * torch.arange(hot.shape[-1]).to(hot)).sum((1, 2))[:, None]


def _sum_of_tokens(positions: int, least: int) -> Problem:
    head = nn.Linear(1, 2).double()
    head.weight.data = torch.tensor([[1.0], [0.0]]).double()
    head.bias.data = torch.tensor([0.0, least - 0.5]).double()

    return Problem(ModuleNetwork(_Sum(), head, 4), TokenInputs.uniform(positions, range(4)), 0)


def _sums() -> list[dict[str, Any]]:
    rare = _sum_of_tokens(16, 46)
    cold, warm = (ITGIS(t, samples=2**16)(rare, seed=1) for t in (0.5, 2.0))
    chains = {t: MHIS(t, samples=2**16)(rare, seed=0) for t in (1.5, 0.5)}
    harmonic = MHIS(0.5, samples=2**15, normaliser="compat-harmonic")(rare, seed=0)

    enumerated = _sum_of_tokens(8, 22).exact()

    return [
        row("8 tokens, sum at least 22, enumerated", 45 / 4**8, enumerated),
        row("8 tokens, sum at least 22, printed", 6.866455e-4, enumerated, 1e-6),
        row("ITGIS, 16 tokens, sum at least 46, T = 0.5", RARE, float(cold), 0.05),
        row("ITGIS, T = 2, within 5 standard errors", RARE, float(warm), _five(warm)),
        *(
            row(f"MHIS with bridge normaliser, T = {t}", RARE, float(estimate), 0.5)
            for t, estimate in chains.items()
        ),
        row(
            "MHIS with harmonic normaliser is flagged, T = 0.5",
            1.0,
            float(harmonic.status == "failed"),
            EXACT,
        ),
    ]


def _five(estimate: Estimate) -> float:
    return 5 * (estimate.error or 0.0) / RARE


def _corners() -> list[dict[str, Any]]:
    weight = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]).double()

    def bias(t: float) -> torch.Tensor:
        return torch.tensor([0.0, t, t]).double()

    def draws(t: float, samples: int) -> Draws:
        generator = torch.Generator().manual_seed(0)
        return Draws(torch.randn(samples, 2, generator=generator).double(), weight, bias(t))

    def truth(t: float) -> float:
        return (0.5 * math.erfc(t / math.sqrt(2))) ** 2

    exact = argmax_probability(Normal.standard(2), weight, bias(3.0), 0, samples=2**16, ridge=0.0)
    fitted = qld(draws(4.0, 2**12), 0, ridge=0.0, tail="gaussian")

    return [
        row(
            "QLD, corner at 2, 2^16 samples",
            truth(2.0),
            float(qld(draws(2.0, 2**16), 0, ridge=0.0)),
            0.5,
        ),
        row("QLD with a Gaussian tail, corner at 4, 2^12 samples", 1.003e-9, float(fitted), 0.9),
        row(
            "Gaussian corner at 3, printed",
            1.82222e-6,
            float(exact),
            5 * (exact.error or 0.0) / 1.82222e-6,
        ),
    ]


def _adversary() -> list[dict[str, Any]]:
    normal = Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 0.5]))
    w = torch.tensor([1.0, -1.0, 2.0]).double()
    mean = linear_shift(normal, w, 2.0)
    climbed = hardest_shift(normal, lambda m: torch.special.log_ndtr((w @ m - 8) / 5**0.5), 2.0)
    after = halfspace_probability(Normal(mean, normal.covariance), w, 8.0)
    wanted = (0.894427, -1.788854, 0.894427)

    return [
        printed_row(
            "linear detector before", "1.7331e-4", float(halfspace_probability(normal, w, 8.0))
        ),
        row("linear detector after 2 nats", 0.0573163, float(after), QUADRATURE),
        *(
            row(f"adversarial mean, part {i + 1}", value, float(mean[i]), QUADRATURE)
            for i, value in enumerate(wanted)
        ),
        *(
            row(
                f"adversarial mean by gradient, part {i + 1}", value, float(climbed[i]), QUADRATURE
            )
            for i, value in enumerate(wanted)
        ),
    ]
