import numpy as np
import pytest
import torch

from tests.scores.rows import auroc, finished, gaussian_rows, same


def slow_beatrix(trusted, queries, powers, factor):
    """Every power's matrix by itself, entry by entry."""

    def gram(x, p):
        product = np.outer(x**p, x**p)
        root = np.sign(product) * np.abs(product) ** (1 / p)
        return root[np.triu_indices(len(x))]

    scores = np.zeros(len(queries))
    for p in range(1, powers + 1):
        known = np.array([gram(x, p) for x in trusted])
        middle = np.median(known, axis=0)
        spread = np.median(np.abs(known - middle), axis=0)
        low, high = middle - factor * spread, middle + factor * spread
        for i, x in enumerate(queries):
            g = gram(x, p)
            below = np.maximum(low - g, 0) / np.abs(low)
            above = np.maximum(g - high, 0) / np.abs(high)
            scores[i] += np.mean(below + above) / powers
    return scores


@pytest.mark.parametrize("powers", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [40, 41])
def test_is_the_definition_for_every_power(powers, count):
    trusted, queries = gaussian_rows(count, 4, seed=1), gaussian_rows(9, 4, seed=2) * 4
    expected = slow_beatrix(trusted.numpy(), queries.numpy(), powers, 3.0)
    score = finished("beatrix", trusted, powers=powers, factor=3.0)
    same(score(queries), expected, rtol=1e-7)
    assert expected.min() > 0


def test_a_case_by_hand():
    # Squares 1, 4, 9: median 4, median absolute deviation 3, bounds 1 and 7.
    score = finished("beatrix", torch.tensor([[1.0], [2.0], [3.0]]), factor=1)
    same(score(torch.tensor([[2.0], [3.0], [0.5], [-3.0]])), [0, 2 / 7, 0.75, 2 / 7])


def test_wide_rows_are_projected_on_orthogonal_directions():
    trusted = gaussian_rows(60, 30, seed=1)
    score = finished("beatrix", trusted, dimensions=8, factor=2)
    narrow = score.projection_
    same(narrow.T @ narrow, np.eye(8), atol=1e-12)
    inside = finished("beatrix", trusted @ narrow, factor=2)
    queries = gaussian_rows(20, 30, seed=2) * 3
    same(score(queries), inside(queries @ narrow), rtol=1e-8)


def test_a_broken_correlation_is_seen():
    generator = torch.Generator().manual_seed(0)
    signal = torch.rand(400, 1, generator=generator) + 1
    trusted = torch.cat([signal, signal], 1) + 0.05 * torch.randn(400, 2, generator=generator)
    odd = trusted[:100] * torch.tensor([1.0, -1.0])
    score = finished("beatrix", trusted[200:], factor=3)
    assert auroc(score(trusted[:100]), score(odd)) > 0.99


def test_blocks_change_nothing(monkeypatch):
    score = finished("beatrix", gaussian_rows(60, 5, seed=1), factor=1)
    queries = gaussian_rows(50, 5, seed=2) * 2
    expected = score(queries)
    monkeypatch.setattr("offkey.scores.beatrix._BUDGET", 100)
    same(score(queries), expected.numpy())
