"""Bilinear layers, independent features and affine forms."""

from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.oracles import QUADRATURE, row
from offkey.estimate.affine import AffineForm, interval_bounds, propagate
from offkey.estimate.bilinear import Bilinear, Spectrum, in_latents, interactions
from offkey.estimate.gaussian import Normal
from offkey.estimate.sparse import (
    IndependentFeatures,
    SparseDictionary,
    count_log10,
    count_log10_gaussian,
    expected_loss,
)

Rows = list[dict[str, Any]]


def rows() -> Rows:
    """Every number, each beside the one that is computed here."""
    return [*_bilinear(), *_invariances(), *_features(), *_loss(), *_intervals(), *_soundness()]


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)

    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _bilinear() -> Rows:
    eye = torch.eye(2, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    both = Spectrum.of(interactions(Bilinear.of(eye[:1], eye[1:], one))).values[0].sort().values
    gap = eye[:1] - eye[1:]
    other = Spectrum.of(interactions(Bilinear.of(gap, gap, one)))
    vectors = torch.linalg.qr(_draw(6, 6))[0][:, :3]
    values = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.float64)
    planted = Spectrum.of(
        interactions(Bilinear.of(values[:, None] * vectors.T, vectors.T, ones)), 3
    )
    numbers = [
        row("AND of bits, largest eigenvalue", 0.5, float(both[1])),
        row("AND of bits, smallest eigenvalue", -0.5, float(both[0])),
        row("XOR of bits, first eigenvalue", 2.0, float(other.values[0, 0])),
        row("XOR of bits, second eigenvalue", 0.0, float(other.values[0, 1])),
        row("XOR of bits, eigenvector product", -0.5, float(other.vectors[0, 0].prod())),
    ]
    for k, expected in enumerate((5.0, -2.0, 1.0)):
        numbers.append(row(f"planted eigenvalue {k + 1}", expected, float(planted.values[0, k])))

    return numbers


def _invariances() -> Rows:
    left, right, down = _draw(7, 5), _draw(7, 5, seed=1), torch.ones(1, 7, dtype=torch.float64)
    scale, half = _draw(7, 1, seed=2), _draw(7, 7, seed=3)
    before = interactions(Bilinear.of(left, right, down))
    changed = {
        "L and R swapped": (right, left),
        "L scaled up and R down": (scale * left, right / scale),
        "R changed by an antisymmetric map of L": (left, right + (half - half.T) @ left),
    }
    numbers = [
        row(
            f"interaction matrix with {name}",
            0.0,
            float((interactions(Bilinear.of(a, b, down)) - before).abs().max()),
        )
        for name, (a, b) in changed.items()
    ]
    latent = in_latents(before, SparseDictionary.identity(5))

    return [*numbers, row("identity decoder", 0.0, float((latent - before).abs().max()))]


def _features() -> Rows:
    made = IndependentFeatures(
        torch.full((20,), 0.01, dtype=torch.float64),
        torch.ones(20),
        torch.zeros(20),
        torch.eye(20),
    )
    rates = [0.01] * 20
    single = IndependentFeatures(
        torch.tensor([0.25], dtype=torch.float64),
        torch.tensor([2.0]),
        torch.tensor([0.5]),
        torch.tensor([[3.0]]),
        noise=0.1,
    ).moments()

    return [
        row("log10 of 20 rare features at once", -40.0, made.log10_joint(range(20)), 1e-3 / 40),
        row("log10 by the exact count", -40.0, count_log10(rates, 20), 1e-3 / 40),
        row("log10 by a Gaussian count", -432.0, count_log10_gaussian(rates, 20), 0.05 / 432),
        row("mean of one feature", 1.5, float(single.mean[0])),
        row("variance of one feature", 7.975, float(single.variance[0])),
    ]


def _loss() -> Rows:
    """The zero dictionary leaves E|x|², the two-sided identity nothing."""
    mean, half = _draw(3), _draw(3, 3, seed=1)
    normal = Normal(mean, half @ half.T)
    eye = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    nothing = SparseDictionary(eye, zero, 0 * eye, zero)
    sides = SparseDictionary(
        torch.cat([eye, -eye], 1), zero.repeat(2), torch.cat([eye, -eye]), zero
    )
    size = float(half.square().sum() + mean.square().sum())

    return [
        row("loss of an empty dictionary", size, float(expected_loss(nothing, normal))),
        row(
            "loss of a dictionary with both signs, as a share",
            0.0,
            float(expected_loss(sides, normal)) / size,
            QUADRATURE,
        ),
    ]


def _intervals() -> Rows:
    x, y = AffineForm.box([-1], [2]), AffineForm.box([4], [6])
    relu = x.relu()
    cases = {
        "x x on [-1, 2], simple": (x.times(x, "simple"), -3.5, 4.0),
        "x x on [-1, 2], tight": (x.times(x, "tight"), -1.25, 4.0),
        "x (10 - x) on [4, 6], simple": (y.times(10 - y, "simple"), 24.0, 26.0),
        "x (10 - x) on [4, 6], tight": (y.times(10 - y, "tight"), 24.0, 25.0),
        "ReLU on [-1, 2]": (relu, -2 / 3, 2.0),
        "x - x": (x - x, 0.0, 0.0),
    }
    numbers = []
    for name, (form, low, high) in cases.items():
        got = form.range()
        numbers += [
            row(f"{name}, low", low, float(got[0][0])),
            row(f"{name}, high", high, float(got[1][0])),
        ]

    return [
        *numbers,
        row("ReLU on [-1, 2], centre", 2 / 3, float(relu.centre[0])),
        row("ReLU on [-1, 2], part of the input", 1.0, float(relu.generators[0, 0])),
        row("ReLU on [-1, 2], new part", 1 / 3, float(relu.generators[0, 1])),
    ]


def _soundness() -> Rows:
    """Sampled outputs outside the proved range, and outputs whose range is above that of IBP."""
    rng, numbers = np.random.default_rng(0), []
    for depth in (1, 2, 4):
        layers: list[nn.Module] = []
        for k in range(depth):
            layers += [nn.Linear(6 if k == 0 else 16, 16), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(16, 3)).double()
        for k, (_, weight) in enumerate(net.named_parameters()):
            weight.data = _draw(*weight.shape, seed=10 * depth + k) / weight.shape[-1] ** 0.5
        low, high = -0.4 * np.ones(6), 0.6 * np.ones(6)
        form = propagate(net, AffineForm.box(low, high))
        with torch.no_grad():
            outputs = net(torch.tensor(rng.uniform(low, high, size=(100_000, 6)))).numpy()
        outside = int(((outputs < form.low) | (outputs > form.high)).sum())
        plain = interval_bounds(net, low, high)
        wider = sum(
            a.low < b.low or a.high > b.high for a, b in zip(form.bounds(), plain, strict=True)
        )
        numbers += [
            row(f"depth {depth}, samples outside the proved range", 0.0, outside),
            row(f"depth {depth}, outputs wider than intervals", 0.0, wider),
        ]

    return numbers
