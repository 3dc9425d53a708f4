"""Wick coefficients of powers of a rectifier, by quadrature and by differences."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from offkey.estimate.whest.propagation import NUMPY, relu_wick

MEAN, VARIANCE = np.array([-1.3, 0.0, 0.4, 2.0]), np.array([0.5, 1.0, 2.0, 0.3])


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_moments_by_quadrature(power):
    result = relu_wick(MEAN, VARIANCE, NUMPY)(power, 0)
    for one, mean, sigma in zip(result, MEAN, np.sqrt(VARIANCE), strict=True):
        slow, _ = quad(
            lambda z, m=mean, s=sigma: z**power * norm.pdf(z, m, s), 0, mean + 12 * sigma
        )
        assert one == pytest.approx(slow, rel=1e-8)


@pytest.mark.parametrize("power", [1, 2, 3, 4])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_by_differences(power, order):
    r""":math:`E[g'(z)] = \partial E[g(z)] / \partial \mu`."""
    step = 1e-5
    up, down = (relu_wick(MEAN + d, VARIANCE, NUMPY) for d in (step, -step))
    slow = (up(power, order - 1) - down(power, order - 1)) / (2 * step)
    result = relu_wick(MEAN, VARIANCE, NUMPY)(power, order)
    np.testing.assert_allclose(result, slow, rtol=1e-6, atol=1e-8)


def test_edgeworth_of_a_skewed_sum():
    """The mean of a rectified sum of k exponentials nears the corrected value as 1/k."""
    for count, within in ((25, 3e-3), (100, 8e-4)):
        shift = np.array([0.3])
        z = (np.random.default_rng(0).gamma(count, size=4_000_000) - count) / np.sqrt(count)
        wick = relu_wick(shift, np.ones(1), NUMPY)
        truth = np.maximum(z + shift, 0).mean()
        third = np.array([2 / np.sqrt(count)])
        plain, corrected = wick.moment(1, 0 * third)[0], wick.moment(1, third)[0]
        assert abs(corrected - truth) < within < 2 * abs(plain - truth)
