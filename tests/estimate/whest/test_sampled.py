"""Sampled means, and squared errors freed of the truth's noise."""

import math

import numpy as np

from offkey.estimate.whest import Sampled, debiased_mse, sampled_activations


def test_first_layer(network):
    weights = network(12, 1)
    result = sampled_activations(weights, 4_000, np.random.default_rng(0))
    exact = np.linalg.norm(weights[0], axis=0) / math.sqrt(2 * math.pi)
    spread = np.std(result.blocks, axis=0) / math.sqrt(4_000)
    assert np.abs((result.layers[0] - exact) / spread).max() < 4
    assert result.inputs == 4_000 * 24


def test_second_layer_agrees_with_gaussian_inputs(network):
    weights = network(8, 3, 1)
    result = sampled_activations(weights, 5_000, np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((200_000, 8))
    for weight in weights:
        x = np.maximum(x @ weight, 0)
    ours, plain = result.blocks.std(axis=0) / math.sqrt(5_000), x.std(axis=0) / math.sqrt(len(x))
    noise = np.hypot(ours, plain) + 1e-12  # a unit may be dead
    assert np.abs((result.layers[-1] - x.mean(axis=0)) / noise).max() < 4
    assert result.blocks.var(axis=0).mean() * 16 < x.var(axis=0).mean() / 2


def test_blocks_are_exact_to_the_third_degree():
    """A linear layer made of two rectifiers: quadratic forms have their mean in every block."""
    width = 8
    inputs = []

    class Spy(np.ndarray):
        def __rmatmul__(self, left):
            inputs.append(np.asarray(left))
            return np.asarray(left) @ np.asarray(self)

    sampled_activations([np.eye(width).view(Spy)], 1, np.random.default_rng(0))
    x = inputs[0]
    radius = math.sqrt(2) * math.exp(math.lgamma((width + 1) / 2) - math.lgamma(width / 2))
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.T @ x / len(x), radius**2 / width * np.eye(width), atol=1e-5)
    np.testing.assert_allclose(np.einsum("ia,ib,ic->abc", x, x, x), 0, atol=1e-5)


def test_joined(network):
    weights = network(6, 2)
    parts = [sampled_activations(weights, b, np.random.default_rng(b)) for b in (3, 5)]
    both = parts[0] + parts[1]
    assert both.inputs == 8 * 12
    np.testing.assert_allclose(both.layers[-1], both.blocks.mean(axis=0))


def test_debiased():
    """Unbiased, and as uncertain as it says, over repeated truths with correlated noise."""
    rng = np.random.default_rng(0)
    width, count = 20, 40
    mixing = rng.standard_normal((width, width)) * np.linspace(2, 0.1, width)
    estimate = 0.3 * rng.standard_normal(width)
    result = []
    for _ in range(3000):
        blocks = rng.standard_normal((count, width)) @ mixing.T
        result.append(debiased_mse(estimate, Sampled(blocks.mean(axis=0)[None], blocks, count)))
    values = np.array([one.mse for one in result])
    truth = (estimate**2).mean()
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))
    stated = math.sqrt(np.mean([one.deviation**2 for one in result]))
    assert 0.95 < stated / values.std() < 1.3  # it is never stated below the noise's own part
    assert np.mean([one.truth_error for one in result]) > truth / 3
