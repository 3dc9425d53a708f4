"""Closures of a masked covariance."""

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize

from offkey.errors import BadInput, BadValue, NotEnoughData
from offkey.estimate.activations import close, divergence_bits, mask_of
from tests.estimate.activations.planted import random_covariance


def nines():
    s = torch.full((3, 3), 0.9, dtype=torch.float64)
    s.fill_diagonal_(1.0)
    return s, mask_of({(0, 1), (1, 2)}, 3)


def by_optimiser(s, mask):
    """The entries off the mask that make the determinant largest, found blindly."""
    free = [(int(i), int(j)) for i, j in (~mask).triu(1).nonzero()]

    def filled(x):
        out = (s * mask).clone()
        for (i, j), value in zip(free, x, strict=True):
            out[i, j] = out[j, i] = value
        return out

    def loss(x):
        sign, value = torch.linalg.slogdet(filled(x))
        return -float(value) if float(sign) > 0 else 1e3

    best = minimize(
        loss,
        [float(s[i, j]) for i, j in free],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20000},
    )
    return filled(best.x)


def test_a_masked_covariance_need_not_be_one():
    s, mask = nines()
    zeroed = close(s, mask, "zero")

    assert torch.linalg.eigvalsh(zeroed)[0] == pytest.approx(1 - 0.9 * math.sqrt(2), rel=1e-12)
    assert zeroed[0, 2] == 0


def test_the_entropic_closure_of_a_chain():
    s, mask = nines()
    closed = close(s, mask)

    assert closed[0, 2] == pytest.approx(0.81, rel=1e-12)
    assert torch.linalg.det(closed) == pytest.approx(0.0361, rel=1e-10)
    assert divergence_bits(s, closed) == pytest.approx(0.183286, abs=5e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_entropic_closure_is_the_one_an_optimiser_finds(seed):
    s = random_covariance(5, seed=seed)
    mask = mask_of({(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)}, 5)
    closed = close(s, mask)

    torch.testing.assert_close(closed, by_optimiser(s, mask), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(closed[mask], s[mask], rtol=1e-12, atol=1e-12)
    assert float(torch.linalg.inv(closed)[~mask].abs().amax()) < 1e-8
    assert torch.linalg.eigvalsh(closed)[0] > 0


def test_blocks_and_whole_matrices_are_closed_as_they_are():
    s = random_covariance(6, seed=7)
    block = mask_of(set(itertools.combinations(range(3), 2)), 6)
    closed = close(s, block)

    torch.testing.assert_close(closed, s * block)
    torch.testing.assert_close(close(s, torch.ones(6, 6, dtype=torch.bool)), s)
    torch.testing.assert_close(close(s, torch.eye(6, dtype=torch.bool)), torch.diag(s.diagonal()))


def test_more_pairs_never_bring_it_further_from_the_full_gaussian():
    s = random_covariance(7, seed=3)
    every = list(itertools.combinations(range(7), 2))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    result = [
        divergence_bits(s, close(s, mask_of([every[n] for n in order[:k]], 7)))
        for k in range(len(every) + 1)
    ]

    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(result))
    assert result[-1] == pytest.approx(0, abs=1e-9)
    assert result[0] > 0.5


def test_the_divergence_is_the_integral():
    s, q = random_covariance(3, seed=1), random_covariance(3, seed=2)
    gap = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    p = torch.distributions.MultivariateNormal(torch.zeros(3).double(), s)
    other = torch.distributions.MultivariateNormal(gap, q)
    nats = torch.distributions.kl_divergence(p, other)

    assert divergence_bits(s, q, gap) == pytest.approx(float(nats) / math.log(2), rel=1e-10)


def test_clipping_keeps_variances_and_is_positive():
    s, mask = nines()
    s = s * torch.outer(*[torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)] * 2)
    for rank in (None, 1):
        closed = close(s, mask, "clip", rank=rank)
        torch.testing.assert_close(closed.diagonal(), s.diagonal())
        assert torch.linalg.eigvalsh(closed)[0] > 0
    low = close(s, mask, "clip", rank=1)
    scale = s.diagonal().sqrt()
    off = low / torch.outer(scale, scale)
    # one factor: off the diagonal r_ij r_jk / r_ik = l_j squared, which is at most 1
    assert float(off[0, 1] * off[1, 2] / off[0, 2]) <= 1


def test_wide_sparse_masks_are_closed_and_scale_free():
    s = random_covariance(80, seed=5)
    pairs = {(i, (i + step) % 80) for i in range(80) for step in (1, 7)}
    mask = mask_of(pairs, 80)
    closed = close(s, mask)
    scale = torch.logspace(-6, 6, 80, dtype=torch.float64)

    torch.testing.assert_close(closed[mask], s[mask])
    assert float((torch.linalg.inv(closed) * ~mask).abs().amax()) < 1e-7
    scaled = close(s * torch.outer(scale, scale), mask) / torch.outer(scale, scale)
    torch.testing.assert_close(scaled, closed, rtol=1e-8, atol=1e-10)


def test_masks_without_chordless_cycles_are_exact():
    s = random_covariance(9, seed=4)
    tree = {(0, 3), (1, 3), (3, 4), (4, 5), (5, 6), (5, 7), (7, 8), (2, 4)}
    triangles = tree | {(0, 4), (1, 4), (6, 7)}
    for pairs in (tree, triangles):
        mask = mask_of(pairs, 9)
        closed = close(s, mask, tolerance=0.5)
        assert float((torch.linalg.inv(closed) * ~mask).abs().amax()) < 1e-10
    cycle = mask_of(tree | {(8, 0)}, 9)
    loose, tight = (close(s, cycle, tolerance=t) for t in (0.5, 1e-12))
    torch.testing.assert_close(loose[cycle], s[cycle])
    assert torch.linalg.slogdet(loose)[1] <= torch.linalg.slogdet(tight)[1]
    assert float((torch.linalg.inv(tight) * ~cycle).abs().amax()) < 1e-9


def test_bad_input_is_refused_plainly():
    s, mask = nines()
    lopsided = mask.clone()
    lopsided[0, 2] = True
    with pytest.raises(BadInput, match=r"mask: \(0, 2\) and \(2, 0\) differ"):
        close(s, lopsided)
    with pytest.raises(BadInput, match="mask: shape"):
        close(s, mask[:2, :2])
    with pytest.raises(BadInput, match="not positive semi-definite .eigenvalue -0.273"):
        close(s * mask, mask)
    with pytest.raises(BadInput, match="not symmetric"):
        close(s + torch.triu(torch.ones(3, 3)), mask)
    with pytest.raises(BadInput, match="dimension 1: variance -1 is negative"):
        close(torch.diag(torch.tensor([1.0, -1.0, 1.0])), mask, "zero")
    with pytest.raises(BadInput, match="not finite"):
        close(s * float("nan"), mask)
    with pytest.raises(NotEnoughData, match="dimension 2: it does not vary"):
        close(torch.diag(torch.tensor([1.0, 1.0, 0.0])), mask)
    with pytest.raises(NotEnoughData, match="3 tracked dimensions is singular"):
        close(torch.ones(3, 3), mask)
    with pytest.raises(BadValue, match="unknown closure 'max'"):
        close(s, mask, "max")
    with pytest.raises(BadValue, match="rank 9"):
        close(s, mask, "clip", rank=9)
