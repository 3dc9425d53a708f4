"""Third cumulants in factors against the dense tensor."""

from itertools import permutations

import numpy as np
import pytest

from offkey.estimate.whest.propagation import LayerCumulants, Source, VectorSource

WIDTH = 6


def symmetric(tensor):
    return sum(np.transpose(tensor, order) for order in permutations(range(3))) / 6


def dense(source):
    j, p = source.jacobian, source.spread
    parts = (
        (3 * source.middle, (j, p, p)),
        (3 * source.folded, (j, j, p)),
        (source.single, (j, j, j)),
    )
    return symmetric(sum(np.einsum("j,aj,bj,cj->abc", w, *legs) for w, legs in parts))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def source(rng):
    square = [rng.standard_normal((WIDTH, WIDTH)) for _ in range(2)]
    return Source(*square, *rng.standard_normal((3, WIDTH)))


def test_source(source):
    tensor = dense(source)
    np.testing.assert_allclose(source.slices(), np.einsum("aab->ab", tensor))
    np.testing.assert_allclose(source.diagonal(), np.einsum("aaa->a", tensor))
    np.testing.assert_allclose(source.traces(), np.einsum("aab->b", tensor))
    np.testing.assert_allclose(dense(source.times(-2.5)), -2.5 * tensor)


def test_source_through_a_linear_map(source, rng):
    weight = rng.standard_normal((WIDTH, WIDTH))
    slow = np.einsum("ai,bj,ck,ijk->abc", weight, weight, weight, dense(source))
    np.testing.assert_allclose(dense(source.carried(weight)), slow, atol=1e-10)


def test_tail(rng):
    metric, vector = rng.standard_normal((2, WIDTH))
    tail = VectorSource(metric, vector)
    tensor = 3 * symmetric(np.einsum("ab,c->abc", np.diag(metric), vector))
    off = 1 - np.eye(WIDTH)
    np.testing.assert_allclose(off * np.outer(metric, vector), off * np.einsum("aab->ab", tensor))
    np.testing.assert_allclose(tail.diagonal(), np.einsum("aaa->a", tensor))
    np.testing.assert_allclose(tail.traces(), np.einsum("aab->b", tensor))


def test_what_a_layer_carries(source, rng):
    """The slopes enter all sources but not the new one's Jacobian, which was the identity."""
    weight, slopes = rng.standard_normal((WIDTH, WIDTH)), rng.random(WIDTH)
    spread = rng.standard_normal((WIDTH, WIDTH))
    made = Source(spread, spread, *rng.standard_normal((3, WIDTH)))
    state = LayerCumulants(np.zeros(WIDTH), np.eye(WIDTH), slopes, (source,), made)
    old, new = state.carried(weight)
    here = Source(np.eye(WIDTH), slopes[:, None] * spread, made.middle, made.folded, made.single)
    np.testing.assert_allclose(dense(new), dense(here.carried(weight)), atol=1e-10)
    slow = source.carried(np.diag(slopes)).carried(weight)
    np.testing.assert_allclose(dense(old), dense(slow), atol=1e-10)
