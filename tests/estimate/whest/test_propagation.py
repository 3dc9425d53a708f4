"""Propagated means against exact values, enumeration and samples."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from offkey.errors import BadValue, Mismatch
from offkey.estimate.whest import debiased_mse, expected_activations, sampled_activations
from offkey.estimate.whest.propagation import (
    NUMPY,
    LayerCumulants,
    Marginals,
    RectifiedPairs,
    Slices,
    relu_wick,
    rescaled,
)


def skewed(rng, width, size):
    """Slices with random covariances and third cumulants of a size, both without diagonals."""
    raw = size * rng.standard_normal((2, width, width))
    off = 1 - np.eye(width)
    alone = Marginals(rng.standard_normal(width), 1 + rng.random(width), size * raw[0, 0])
    return Slices(alone, off * (raw[0] + raw[0].T), off * raw[1], (), np.zeros(width))


def test_covariance_of_a_gaussian_pair():
    """Diagrams up to three covariances leave an error of the fourth order."""
    mean, correlation = np.array([0.3, -0.5]), 0.1
    alone = Marginals(mean, np.ones(2), np.zeros(2))
    off = correlation * (1 - np.eye(2))
    z = Slices(alone, off, np.zeros((2, 2)), (), np.zeros(2))
    result = RectifiedPairs(z, relu_wick(mean, np.ones(2), NUMPY), NUMPY).covariance()[0, 1]
    grid = np.linspace(0, 7, 701)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    density = multivariate_normal(mean, np.eye(2) + off).pdf(np.stack([x, y], axis=-1))
    both = np.trapezoid(np.trapezoid(x * y * density, grid), grid)
    means = relu_wick(mean, np.ones(2), NUMPY)(1, 0)
    assert result == pytest.approx(both - means[0] * means[1], abs=correlation**4 / 10)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 1), (2, 2)])
def test_summed_pairs(p, q):
    """By the definition: every pair's derivatives, one at a time."""
    z = skewed(np.random.default_rng(0), 5, 0.2)
    w = relu_wick(z.alone.mean, z.alone.variance, NUMPY)
    x = np.arange(1.0, 6.0)
    slow = np.zeros((5, 5))
    for a in range(5):
        for b in range(5):
            if a == b:
                continue
            u, v = [w(p, k)[a] for k in range(5)], [w(q, k)[b] for k in range(5)]
            c, aab, abb = z.covariance[a, b], z.third[a, b], z.third[b, a]
            slow[a, b] = (
                c * u[1] * v[1]
                + c**2 / 2 * u[2] * v[2]
                + c**3 / 6 * u[3] * v[3]
                + aab / 2 * (u[2] * v[1] + c * u[3] * v[2])
                + abb / 2 * (u[1] * v[2] + c * u[2] * v[3])
                + c * z.alone.third[a] / 6 * u[4] * v[1]
                + c * z.alone.third[b] / 6 * u[1] * v[4]
            )
    pairs = RectifiedPairs(z, w, NUMPY)
    np.testing.assert_allclose(pairs.summed(p, q, x), x @ slow, rtol=1e-10)
    if p == q == 1:
        np.testing.assert_allclose(pairs.covariance(), slow, atol=1e-12)


def test_rescaled_by_enumeration():
    """Independent units times an independent scale, all outcomes enumerated."""
    mean, variance = np.array([0.5, -1.0, 2.0]), np.array([0.3, 0.7, 1.1])
    eye = np.eye(3)
    state = LayerCumulants(mean, np.diag(variance), np.ones(3))
    isotropic = -1e-5
    result = rescaled(state, isotropic, NUMPY)
    flat = (variance.sum() ** 2 + 2 * (variance**2).sum()) / 15
    v = -isotropic / (4 * flat + 6 * isotropic)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1)
    y = (mean[:, None] + np.sqrt(variance)[:, None] * signs[:3]) * (1 + math.sqrt(v) * signs[3])
    y = y - y.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(result.covariance, y @ y.T / y.shape[1], atol=1e-12)
    third = np.einsum("ai,ai,bi->ab", y, y, y) / y.shape[1]
    slices = sum(np.outer(tail.metric, tail.vector) for tail in result.tails)
    slices[eye == 1] = sum(tail.diagonal() for tail in result.tails)
    np.testing.assert_allclose(slices, third, atol=20 * v**2)


def test_first_layer_is_exact(network):
    weights = network(8, 1)
    result = expected_activations(weights)[0]
    np.testing.assert_allclose(result, np.linalg.norm(weights[0], axis=0) / math.sqrt(2 * math.pi))


def test_better_than_a_gaussian_and_with_the_width(network, gaussian_means):
    r"""Squared errors fall as :math:`n^{-3}`, a Gaussian's as :math:`n^{-2}`."""
    ours, gaussian = {}, {}
    for width, blocks in ((16, 2000), (64, 500)):
        errors = []
        for seed in range(3):
            weights = network(width, 4, seed)
            truth = sampled_activations(weights, blocks, np.random.default_rng([9, seed]))
            both = (expected_activations(weights)[-1], gaussian_means(weights)[-1])
            errors.append([debiased_mse(one, truth).mse for one in both])
        ours[width], gaussian[width] = np.mean(errors, axis=0)
    assert ours[64] < gaussian[64] / 15
    assert ours[16] / ours[64] > 25
    assert gaussian[16] / gaussian[64] < 25


def test_memory(network):
    weights = network(32, 6)
    whole = np.stack(expected_activations(weights))
    for memory in (5, 50):
        np.testing.assert_array_equal(
            np.stack(expected_activations(weights, memory=memory)), whole
        )
    apart = [
        np.abs(np.stack(expected_activations(weights, memory=m)) - whole)[-1].mean()
        for m in (1, 2, 4)
    ]
    assert apart[0] > apart[1] > apart[2] > 0


def test_single_precision(network):
    weights = network(32, 6)
    single = expected_activations([weight.astype(np.float32) for weight in weights])
    assert {one.dtype for one in single} == {np.dtype(np.float32)}
    np.testing.assert_allclose(
        np.stack(single), np.stack(expected_activations(weights)), atol=3e-6
    )


def test_a_dead_unit(network):
    weights = network(16, 3)
    weights[1][:, 4] = 0
    result = np.stack(expected_activations(weights))
    assert np.isfinite(result).all()
    assert abs(result[1, 4]) < 1e-5


def test_bad_input(network):
    with pytest.raises(BadValue, match="0 layers"):
        expected_activations([])
    with pytest.raises(BadValue, match="memory of 0"):
        expected_activations(network(4, 2), memory=0)
    with pytest.raises(Mismatch, match="layer 1"):
        expected_activations([np.eye(4), np.eye(5)])
