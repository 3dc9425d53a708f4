import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from offkey.errors import BadValue
from offkey.testing.sites_score import normal_sites, odd_sites
from tests.scores.rows import auroc, same
from tests.scores.test_layers import fitted


def slow_ranks(query, trusted, k, reference, skip=None):
    """Rank vectors of a prompt's k neighbours; ``skip`` is the prompt itself, if it is trusted."""
    others = [i for i in range(len(trusted[0])) if i != skip]

    def distance(site, i):
        return cdist(query[site][None], trusted[site][i][None], "cosine")[0, 0]

    near = sorted(others, key=lambda i: distance(reference, i))[:k]
    vectors = []
    for j in near:
        vectors.append(
            [
                sum(distance(site, i) < distance(site, j) for i in others) / (len(others) - 1)
                for site in range(len(trusted))
                if site != reference
            ]
        )
    return np.array(vectors)


@pytest.mark.parametrize("reference", [-1, 2])
def test_is_the_definition(reference):
    rows, queries = normal_sites(20, seed=1), odd_sites(5, seed=2)
    trusted = [x.double().numpy() for x in rows.values()]
    asked = [x.double().numpy() for x in queries.values()]
    place = reference % len(trusted)
    own = np.concatenate(
        [slow_ranks([x[i] for x in trusted], trusted, 4, place, skip=i) for i in range(20)]
    )
    precision = np.linalg.pinv(np.cov(own.T, bias=True), rcond=1e-9, hermitian=True)
    expected = []
    for i in range(5):
        gaps = slow_ranks([x[i] for x in asked], trusted, 4, place) - own.mean(0)
        expected.append(np.mean([gap @ precision @ gap for gap in gaps]))
    same(fitted("ted", rows, k=4, reference=reference)(queries), expected, rtol=1e-7)


def test_ranks_of_sites_that_agree_are_their_places():
    angles = torch.linspace(0, 1.5, 12) ** 2
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    score = fitted("ted", {"a": rows, "b": 7 * rows, "c": rows}, k=3)
    edge = torch.tensor([[1.0, -0.2]], dtype=torch.float64)
    ranks = score._ranks([edge, edge, edge])
    same(ranks[0, :, 0], np.arange(3) / 11)
    same(ranks[0, :, 1], np.arange(3) / 11)


def test_a_prompt_that_changes_sides_is_seen():
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.arange(120) % 2 == 0, 1.0, -1.0)[:, None]
    centre = torch.tensor([[3.0, 1.0, 0.0]])

    def around(sides):
        return sides * centre + 0.5 * torch.randn(len(sides), 3, generator=generator)

    score = fitted("ted", {site: around(side) for site in "abcd"}, k=5)
    normal = {site: around(side[:60]) for site in "abcd"}
    odd = {site: around(-side[:60] if site == "d" else side[:60]) for site in "abcd"}
    assert auroc(score(normal), score(odd)) > 0.99


def test_an_unknown_reference_is_refused():
    with pytest.raises(BadValue, match="no site at place 6 of the 6"):
        fitted("ted", normal_sites(30, seed=1), reference=6)
