import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from offkey.errors import BadValue, Mismatch, NotEnoughData
from offkey.scores import get_score
from offkey.testing.sites_score import normal_sites, odd_sites
from tests.scores.rows import auroc, finished, same


def fitted(name, rows, ids=None, **settings):
    score = get_score(name, **settings)
    statistics = {}
    for site, x in rows.items():
        statistics[site] = score.statistic()
        statistics[site].update(x, ids or [str(i) for i in range(len(x))])

    return score.finish(statistics, None, torch.Generator().manual_seed(0))


def doubles(rows):
    return [x.double().numpy() for x in rows.values()]


def steps_between(rows):
    return [rows[n + 1] - rows[n] for n in range(len(rows) - 1)]


def shrunk_distance(trusted, queries):
    """Squared Mahalanobis distance with scikit-learn's shrinkage, row by row."""
    oracle = LedoitWolf().fit(trusted)
    gaps = queries - trusted.mean(axis=0)

    return np.array([gap @ np.linalg.solve(oracle.covariance_, gap) for gap in gaps])


@pytest.fixture
def sites():
    return normal_sites(60, seed=1), odd_sites(9, seed=2)


def test_convergence_is_the_definition(sites):
    trusted, queries = sites

    def sizes(rows, told):
        columns = []
        for step, (mean, deviation) in zip(steps_between(doubles(rows)), told, strict=True):
            columns.append([np.sqrt(sum(((v - mean) / deviation) ** 2)) for v in step])
        return np.array(columns).T

    told = [(step.mean(0), step.std(0)) for step in steps_between(doubles(trusted))]
    own = sizes(trusted, told)
    z = (own - own.mean(0)) / own.std(0)
    asked = (sizes(queries, told) - own.mean(0)) / own.std(0)
    same(fitted("lcf", trusted)(queries), shrunk_distance(z, asked), rtol=1e-8)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_volatility_is_the_definition(sites, order):
    trusted, queries = (doubles(rows) for rows in sites)
    for _ in range(order):
        trusted, queries = steps_between(trusted), steps_between(queries)
    distances = [shrunk_distance(t, q) for t, q in zip(trusted, queries, strict=True)]
    expected = [
        np.mean([abs(distances[n + 1][i] - distances[n][i]) for n in range(len(distances) - 1)])
        for i in range(len(queries[0]))
    ]
    same(fitted("trajectory", sites[0], order=order)(sites[1]), expected, rtol=1e-8)


def test_volatility_of_a_known_path():
    # Four corners of a square: covariance is the identity, and shrinkage towards it does nothing.
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    score = fitted("trajectory", dict.fromkeys("abc", corners))
    path = {
        "a": torch.zeros(1, 2),
        "b": torch.tensor([[3.0, 0.0]]),
        "c": torch.tensor([[0.0, 2.0]]),
    }
    same(score(path), [(9 + 5) / 2])
    same(score(dict.fromkeys("abc", torch.tensor([[30.0, 40.0]]))), [0.0])


def test_concatenated_is_the_definition(sites):
    trusted, queries = (doubles(rows) for rows in sites)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    parts = [PCA(3).fit(unit(rows)) for rows in trusted]

    def joined(rows):
        return np.concatenate([p.transform(unit(r)) for p, r in zip(parts, rows, strict=True)], 1)

    expected = shrunk_distance(joined(trusted), joined(queries))
    score = fitted("mahalanobis-concatenated", sites[0], components=3)
    same(score(sites[1]), expected, rtol=1e-7)


def test_concatenated_of_one_site_and_all_components_is_mahalanobis_plus_plus(sites):
    rows, queries = (part["resid_post.4"] for part in sites)
    score = fitted("mahalanobis-concatenated", {"a": rows})
    same(score({"a": queries}), finished("mahalanobis-l2", rows)(queries), rtol=1e-7)


def swapped(rows, last):
    """Each prompt's rows from a site on are those of another prompt: each site looks normal."""
    return {s: x.roll(1, 0) if n >= last else x for n, (s, x) in enumerate(rows.items())}


@pytest.mark.parametrize("name", ["lcf", "ted", "mahalanobis-concatenated"])
def test_a_path_between_normal_places_is_seen_where_no_site_is_odd(name):
    trusted, normal = normal_sites(200, seed=1), normal_sites(80, seed=2)
    odd = swapped(normal, 3)
    score = fitted(name, trusted)
    assert auroc(score(normal), score(odd)) > 0.95
    alone = finished("mahalanobis", trusted["resid_post.7"])
    assert auroc(alone(normal["resid_post.7"]), alone(odd["resid_post.7"])) == 0.5


def test_prompts_that_lack_a_site_are_left_out():
    rows = normal_sites(40, seed=1)
    score, other = get_score("lcf"), get_score("lcf")
    statistics = {site: score.statistic() for site in rows}
    for n, (site, x) in enumerate(rows.items()):
        kept = [i for i in range(40) if i != n]
        statistics[site].update(x[kept], [f"prompt {i}" for i in kept])
    found = score.finish(statistics, None, torch.Generator())
    whole = {site: other.statistic() for site in rows}
    for site, x in rows.items():
        whole[site].update(x[len(rows) :], [f"prompt {i}" for i in range(len(rows), 40)])
    other.finish(whole, None, torch.Generator())
    same(found(rows), other(rows))


def test_other_sites_are_ignored():
    rows = normal_sites(30, seed=1)
    score = fitted("lcf", rows)
    assert torch.equal(score(rows | {"other": torch.zeros(30, 2)}), score(rows))


def test_rows_with_one_id_are_refused():
    with pytest.raises(BadValue, match="same id"):
        fitted("lcf", normal_sites(30, seed=1), ids=["again"] * 30)


@pytest.mark.parametrize("name", ["lcf", "ted"])
def test_prompts_never_seen_at_all_sites_are_refused(name):
    score = get_score(name)
    statistics = {site: score.statistic() for site in "ab"}
    for site, statistic in statistics.items():
        statistic.update(torch.randn(30, 3), [f"{site}{i}" for i in range(30)])
    with pytest.raises(NotEnoughData, match="0 trusted prompts with a row at every site"):
        score.finish(statistics, None, torch.Generator())


@pytest.mark.parametrize(("name", "settings"), [("lcf", {}), ("trajectory", {"order": 1})])
def test_differences_need_sites_of_one_width(name, settings):
    rows = {"a": torch.randn(30, 3), "b": torch.randn(30, 4), "c": torch.randn(30, 3)}
    with pytest.raises(Mismatch, match="widths 3, 4"):
        fitted(name, rows, **settings)
    assert fitted("trajectory", rows)(rows).isfinite().all()


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [("lcf", {}, 2), ("ted", {}, 2), ("trajectory", {}, 2), ("trajectory", {"order": 3}, 5)],
)
def test_needs_several_sites(name, settings, needed):
    rows = normal_sites(30, seed=1)
    few = {site: rows[site] for site in list(rows)[: needed - 1]}
    with pytest.raises(NotEnoughData, match=f"at least {needed} are needed"):
        fitted(name, few, **settings)
    enough = {site: rows[site] for site in list(rows)[:needed]}
    assert fitted(name, enough, **settings)(enough).isfinite().all()
