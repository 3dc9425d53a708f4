"""Covariances, cumulants and exact moments of arithmetic circuits."""

from typing import Any

import numpy as np

from offkey.estimate.arithmetic import (
    Circuit,
    Cumulants,
    bernoulli,
    block,
    cumulant_terms,
    differ,
    hafnian,
    leaf,
    propagate,
)

from . import row


def rows() -> list[dict[str, Any]]:
    """Numbers of section 2."""
    return chain() + exclusive_or() + terms() + matchings() + gaussian_products()


def chain() -> list[dict[str, Any]]:
    """The chain a = x², b = a², d = ab of a standard Gaussian x."""
    x = leaf(0.0, 1.0)
    a = x * x
    b = a * a
    d = a * b
    circuit = Circuit(d)
    full, naive = propagate(circuit, "all"), propagate(circuit)
    third = Cumulants(circuit, 3)

    return [
        row("chain, all pairs, mean of a", 1.0, float(full.estimate(a))),
        row("chain, all pairs, mean of b", 3.0, float(full.estimate(b))),
        row("chain, all pairs, mean of d", 7.0, float(full.estimate(d))),
        row("chain, all pairs, covariance of a and b", 4.0, full.covariance(a, b)),
        row("chain, no pairs, mean of d", 3.0, float(naive.estimate(d))),
        row("chain, means alone, mean of a", 0.0, Cumulants(circuit, 1).joint(a)),
        row("chain, second order, mean of d", 7.0, Cumulants(circuit, 2).joint(d)),
        row("chain, exact, mean of d", 15.0, Cumulants(circuit).joint(d)),
        row("chain, third cumulant of a", 8.0, third.joint(a, a, a)),
    ]


def exclusive_or() -> list[dict[str, Any]]:
    """Variance of the exclusive or of two fair bits."""
    circuit = Circuit(differ(bernoulli(0.5), bernoulli(0.5)))
    place = circuit.outputs[0]

    return [
        row("exclusive or, no pairs, variance", 1.25, float(propagate(circuit).variances[place])),
        row(
            "exclusive or, all pairs, variance",
            0.25,
            float(propagate(circuit, "all").variances[place]),
        ),
    ]


def terms() -> list[dict[str, Any]]:
    """Terms of the joint cumulant of n products."""
    counts = enumerate((2, 11, 129, 2465), 1)

    return [row(f"terms of {n} products", count, cumulant_terms(n)) for n, count in counts]


def matchings(seed: int = 0) -> list[dict[str, Any]]:
    """Products of n centred Gaussians: cumulants of all orders against the hafnian."""
    rng = np.random.default_rng(seed)
    gathered = []
    for count in (2, 4, 6):
        root = rng.normal(size=(count, count))
        covariance = root @ root.T
        leaves = block(np.zeros(count), covariance)
        product = leaves[0]
        for factor in leaves[1:]:
            product = product * factor
        exact = hafnian(covariance)
        got = Cumulants(Circuit(product)).joint(product)
        gathered.append(row(f"product of {count} Gaussians", exact, got))

    return gathered


def gaussian_products(seed: int = 0, draws: int = 400_000) -> list[dict[str, Any]]:
    """Moments of products of jointly Gaussian leaves, beside drawn ones (5 standard errors)."""
    rng = np.random.default_rng(seed)
    mean = np.array([0.5, -1.0, 0.8, 1.2])
    root = rng.normal(size=(4, 4))
    covariance = root @ root.T / 4
    x, y, z, w = block(mean, covariance)
    first, second, total = x * y, z * w, 2 * x - y + 0.5 * z + 1
    circuit = Circuit(first, second, total)
    values = rng.multivariate_normal(mean, covariance, size=draws).T
    drawn = {
        "product": values[0] * values[1],
        "sum": 2 * values[0] - values[1] + 0.5 * values[2] + 1,
    }
    # xy is not Gaussian: its covariance with zw takes a third cumulant, which propagation drops.
    exact, full = Cumulants(circuit), propagate(circuit, "all")
    gathered = []
    for name, node in (("product", first), ("sum", total)):
        centred = drawn[name] - drawn[name].mean()
        moments = full.estimate(node), full.covariance(node, node)
        gathered += [
            _sampled(f"mean of a {name}", float(moments[0]), drawn[name]),
            _sampled(f"variance of a {name}", moments[1], centred**2),
        ]
    pairs = (values[0] * values[1], values[2] * values[3])
    joint = (pairs[0] - pairs[0].mean()) * (pairs[1] - pairs[1].mean())
    with_leaf = (pairs[0] - pairs[0].mean()) * (values[2] - values[2].mean())

    return [
        *gathered,
        _sampled("covariance of two products", exact.joint(first, second), joint),
        _sampled("covariance of a product and a leaf", full.covariance(z, first), with_leaf),
    ]


def _sampled(name: str, expected: float, values: np.ndarray) -> dict[str, Any]:
    error = float(values.std(ddof=1)) / len(values) ** 0.5

    return row(f"{name}, sampled", expected, float(values.mean()), 5 * error / abs(expected))
