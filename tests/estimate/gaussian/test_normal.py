"""The Gaussian that is carried through a network."""

import pytest
import torch

from offkey.errors import BadInput, Mismatch
from offkey.estimate.gaussian import Normal


def test_draws_have_its_moments():
    covariance = torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    normal = Normal(torch.tensor([1.0, -1.0]), covariance)
    drawn = normal.sample(200_000, torch.Generator().manual_seed(0))

    torch.testing.assert_close(drawn.mean(0), normal.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), normal.full, atol=0.03, rtol=0)


def test_masking_can_break_definiteness_and_says_so():
    full = torch.full((3, 3), 0.9) + 0.1 * torch.eye(3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 2] = mask[2, 0] = False
    masked = Normal(torch.zeros(3), full).masked(mask)

    assert torch.linalg.eigvalsh(masked.full)[0] == pytest.approx(-0.27279, abs=1e-5)
    with pytest.raises(BadInput, match=r"semi-definite.*maxent"):
        masked.sample(1, torch.Generator())


def test_what_cannot_be_a_gaussian_is_refused():
    with pytest.raises(BadInput, match="negative"):
        Normal(torch.zeros(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(BadInput, match="symmetric"):
        Normal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.2, 1.0]]))
    with pytest.raises(BadInput, match="finite"):
        Normal(torch.zeros(1), torch.tensor([float("nan")]))
    with pytest.raises(Mismatch):
        Normal(torch.zeros(2), torch.ones(3))
    with pytest.raises(BadInput, match="mask"):
        Normal.standard(2).masked(torch.tensor([[True, True], [False, True]]))


def test_diagonal_and_full_agree():
    normal = Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))

    assert normal.is_diagonal
    torch.testing.assert_close(normal.full.diagonal(), normal.variance)
    assert normal.density().rank == 3
