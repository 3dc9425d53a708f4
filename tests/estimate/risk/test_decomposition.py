"""Estimates from last activations: quadratic logit decomposition, and Gaussians."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from offkey.errors import BadInput, BadValue, NotEnoughData
from offkey.estimate.gaussian import Normal
from offkey.estimate.risk import Draws, argmax_probability, gld, halfspace_probability, qld
from offkey.estimate.risk.decomposition import Unembedding, Whitening, shortest_accepting
from tests.estimate.risk.planted import CORNER, corner, upper


def many(d=5, vocabulary=30, samples=400, seed=0, spread=1.5):
    """Correlated activations, and a target that is sometimes ahead."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator).double()
    finals = torch.randn(samples, d, generator=generator).double() @ mix + 0.3
    weight = torch.randn(vocabulary, d, generator=generator).double() * spread
    bias = torch.randn(vocabulary, generator=generator).double()

    return Draws(finals, weight, bias)


def by_pairs(draws, target, ridge=0.0):
    """The definition, pair by pair, with another solver for the shortest accepting vector."""
    v, w, c = (x.double().numpy() for x in (draws.finals, draws.weight, draws.bias))
    mu = v.mean(0)
    a_mat = np.linalg.cholesky(np.cov(v.T, bias=True) + ridge * np.eye(v.shape[1]))
    u = np.linalg.solve(a_mat, (v - mu).T).T
    keep = np.arange(len(w)) != target
    rows = ((w[target] - w) @ a_mat)[keep]
    held = ((w[target] - w) @ mu + c[target] - c)[keep]
    shortest = minimize(
        lambda x: x @ x,
        np.zeros(len(mu)),
        jac=lambda x: 2 * x,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: rows @ x + held, "jac": lambda x: rows},
        options={"ftol": 1e-15, "maxiter": 500},
    ).x
    if np.linalg.norm(shortest) < 1e-6:
        return None, 0.0
    d = shortest / np.linalg.norm(shortest)
    a = u @ d
    b = u - a[:, None] * d
    hits = sum(
        int((rows @ (b.T + one * d[:, None]) + held[:, None] >= 0).all(0).sum()) for one in a
    )

    return hits / len(v) ** 2, np.linalg.norm(shortest)


@pytest.mark.parametrize("seed", range(4))
def test_qld_is_its_definition(seed):
    draws = many(seed=seed)
    seen = 0
    for target in (0, 1, 2, 3):
        slow, length = by_pairs(draws, target)
        if slow is None:
            continue
        result = qld(draws, target, ridge=0.0)
        seen += slow > 0
        assert (result.value or 0.0) == pytest.approx(slow, rel=1e-9)
        assert result.status in (("ok", "failed") if slow else ("below_resolution",))

    assert seen


@pytest.mark.parametrize("seed", range(4))
def test_the_shortest_accepting_vector(seed):
    draws = many(seed=seed, d=8, vocabulary=200)
    whitening = Whitening.of(draws.normal, 0.0)
    for target in range(6):
        unembedding = Unembedding(draws.weight, draws.bias, target)
        axis = shortest_accepting(unembedding, whitening)
        if axis is None:
            continue
        _, length = by_pairs(Draws(draws.finals, draws.weight, draws.bias), target)
        point = whitening.mean + whitening.factor @ (axis.norm * axis.direction)
        assert axis.norm == pytest.approx(length, abs=1e-5)
        assert float(unembedding.margins(point).amin()) > -1e-7


def test_corner():
    result = qld(corner(2.0, 2**16), 0, ridge=0.0)

    assert result.value == pytest.approx(upper(2.0) ** 2, rel=0.3)
    assert abs(result.value - upper(2.0) ** 2) < 5 * result.error
    axis = shortest_accepting(
        Unembedding(CORNER, torch.tensor([0.0, 3.0, 3.0]).double(), 0),
        Whitening.of(Normal.standard(2), 0.0),
    )
    assert axis.norm == pytest.approx(3 * math.sqrt(2), rel=1e-12)
    torch.testing.assert_close(axis.direction, torch.full((2,), 0.5).double().sqrt())


def test_below_resolution_is_reported_and_tails_go_on():
    draws = corner(4.0, 2**12)
    none = qld(draws, 0, ridge=0.0)
    fitted = qld(draws, 0, ridge=0.0, tail="gaussian")

    assert (none.value, none.status, none.resolution) == (None, "below_resolution", 2.0**-12)
    assert "below resolution 1/4096" in none.reason
    assert fitted.value == pytest.approx(upper(4.0) ** 2, rel=0.6)


def test_a_pareto_tail_where_the_tail_is_one():
    """One logit against a constant, and a heavy-tailed."""
    generator = torch.Generator().manual_seed(0)
    heavy = torch.rand(2**14, 1, generator=generator).double().pow(-1 / 3)
    draws = Draws(heavy, torch.tensor([[1.0], [0.0]]).double(), torch.tensor([0.0, 20.0]).double())
    result = qld(draws, 0, ridge=0.0, tail="pareto")

    assert abs(result.value - 20.0**-3) < 5 * result.error
    assert result.error < 0.5 * 20.0**-3
    assert (qld(draws, 0, ridge=0.0, tail="gaussian").value or 0.0) < 1e-12
    with pytest.raises(NotEnoughData, match="Pareto"):
        qld(corner(1.0, 300), 0, tail="pareto")


@pytest.mark.parametrize(("correlation", "far"), [(-0.6, 0.5), (0.9, 1.0)])
def test_wedge(correlation, far):
    """Two correlated activations behind an oblique wedge, the truth from the bivariate normal."""
    mix = torch.tensor([[1.0, 0.0], [correlation, math.sqrt(1 - correlation**2)]]).double()
    noise = torch.randn(2**15, 2, generator=torch.Generator().manual_seed(1)).double()
    weight = torch.tensor([[0.0, 0.0], [-1.0, 0.5], [0.3, -1.0]]).double()
    bias = far * torch.tensor([0.0, 1.2, 0.9]).double()
    rows = weight[1:] @ mix
    truth = multivariate_normal([0, 0], (rows @ rows.T).numpy(), allow_singular=True).cdf(
        -bias[1:].numpy()
    )
    draws = Draws(noise @ mix.T, weight, bias)

    for tail in ("empirical", "gaussian"):
        result = qld(draws, 0, ridge=0.0, tail=tail)
        assert result.value == pytest.approx(truth, rel=0.5)
        assert abs(result.value - truth) < 5 * result.error + 0.05 * truth
    result = argmax_probability(
        Normal(torch.zeros(2), mix @ mix.T), weight, bias, 0, samples=2**14, ridge=0.0
    )
    assert abs(result.value - truth) < 5 * result.error
    assert result.error < 0.05 * truth


def test_nothing_depends_on_the_coordinates():
    draws = many(seed=1)
    generator = torch.Generator().manual_seed(9)
    mix = torch.randn(5, 5, generator=generator).double()
    shift = torch.randn(5, generator=generator).double()
    weight = torch.linalg.solve(mix.T, draws.weight.T).T
    other = Draws(draws.finals @ mix.T + shift, weight, draws.bias - weight @ shift)

    compared = 0
    for target in range(8):
        for tail in ("empirical", "gaussian"):
            one, two = (qld(d, target, ridge=0.0, tail=tail) for d in (draws, other))
            assert one.status == two.status
            if one.value:
                compared += 1
                assert two.value == pytest.approx(one.value, rel=1e-6)
    assert compared > 4


def test_tiles_change_nothing(monkeypatch):
    draws = many(seed=2)
    whole = [qld(draws, target, ridge=0.0).value for target in range(5)]
    monkeypatch.setattr("offkey.estimate.risk.decomposition._ROWS", 37)
    monkeypatch.setattr("offkey.estimate.risk.decomposition._COLUMNS", 7)

    assert [qld(draws, target, ridge=0.0).value for target in range(5)] == whole


def test_an_accepted_mean_is_no_trouble():
    draws = many(seed=3)
    target = int(torch.addmv(draws.bias, draws.weight, draws.normal.mean).argmax())
    result, share = (
        qld(draws, target, ridge=0.0),
        float((draws.top_tokens == target).double().mean()),
    )

    assert result.value == pytest.approx(share, abs=0.1)


def test_a_token_that_can_never_win_is_named():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    draws = Draws(many(d=2).finals, weight, torch.tensor([-0.5, 0.0, 0.0, 0.0]).double())
    result = qld(draws, 0)

    assert (result.value, result.status) == (None, "not_applicable")
    assert "token 0" in result.reason


def test_bad_input():
    draws = many()
    with pytest.raises(BadValue, match="token 30 is not in the vocabulary of 30"):
        qld(draws, 30)
    with pytest.raises(BadValue, match="unknown tail"):
        qld(draws, 0, tail="lognormal")
    with pytest.raises(NotEnoughData, match="singular"):
        qld(many(samples=4), 0, ridge=0.0)
    with pytest.raises(BadInput, match="not finite"):
        Draws(torch.full((2, 2), math.nan), CORNER, torch.zeros(3))
    masked = Normal(torch.zeros(2), torch.tensor([[1.0, 1.5], [1.5, 1.0]]))
    with pytest.raises(BadInput, match="not positive semi-definite"):
        argmax_probability(masked, CORNER, torch.zeros(3), 0)


def test_gld_is_exact_for_a_gaussian_difference():
    generator = torch.Generator().manual_seed(0)
    finals = (torch.randn(40_000, 1, generator=generator) * 1.5 - 4.0).double()
    draws = Draws(finals, torch.tensor([[1.0], [0.0]]).double(), torch.zeros(2).double())
    result = gld(draws, 0)

    assert abs(result.value - upper(4.0 / 1.5)) < 5 * result.error
    assert result.error < 0.05 * result.value


def test_tails_too_small_for_a_number_are_not_zero():
    finals = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).double()
    draws = Draws(
        finals, torch.tensor([[1.0], [0.0]]).double(), torch.tensor([0.0, 80.0]).double()
    )
    far = Normal(torch.zeros(1), torch.eye(1))
    result = [
        gld(draws, 0),
        qld(draws, 0, tail="gaussian"),
        argmax_probability(far, draws.weight, draws.bias, 0),
        halfspace_probability(far, torch.ones(1), 80.0),
    ]

    assert [(one.value, one.status) for one in result] == [(None, "below_resolution")] * 4
    assert float(halfspace_probability(far, torch.ones(1), 30.0)) == pytest.approx(
        4.907e-198, rel=1e-3
    )


def test_gaussian_probabilities():
    normal = Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 0.5]))
    w = torch.tensor([1.0, -1.0, 2.0])

    assert float(halfspace_probability(normal, w, 8.0)) == pytest.approx(1.7331e-4, rel=1e-4)
    result = argmax_probability(
        Normal.standard(2), CORNER, torch.tensor([0.0, 4.0, 4.0]).double(), 0, ridge=0.0
    )
    assert abs(result.value - upper(4.0) ** 2) < 5 * result.error
    assert result.error < 0.05 * result.value
    with pytest.raises(BadValue, match="variance along"):
        halfspace_probability(Normal(torch.zeros(3), torch.zeros(3)), w, 8.0)
