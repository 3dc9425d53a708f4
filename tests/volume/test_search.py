"""Crossings of planted costs along single rays."""

import numpy as np
import pytest

from offkey.errors import BadValue
from offkey.volume import CrossingSearch
from offkey.volume.search import find_crossings


def cross(cost, *, start=1.0, eps=0.5, limit=np.inf, settings=None, power=2.0):
    calls = []

    def evaluate(rows, t):
        calls.extend(t.tolist())
        return np.array([cost(x) for x in t], dtype=float)

    found = find_crossings(
        evaluate, np.array([start]), power, np.array([limit]), eps, settings or CrossingSearch()
    )
    assert len(calls) == found.evals[0]

    return found, calls


def by_bisection(cost, eps, low=0.0, high=1e3):
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < eps else (low, middle)
    return low


COSTS = {
    "quadratic": lambda r: 3 * r**2,
    "linear": lambda r: 0.2 * r,
    "quartic": lambda r: r**4,
    "bending": lambda r: r**2 / (1 + r),
    "stiffening": lambda r: r**2 * np.exp(min(r, 500)),
    "saturating": lambda r: 0.6 * (1 - np.exp(-(r**2))),
    "knee": lambda r: 1e-6 * r**2 + max(0.0, r - 3) ** 2,
}


@pytest.mark.parametrize("start", [1e-6, 0.3, 40.0, 900.0])
@pytest.mark.parametrize("name", COSTS)
def test_crossings_against_bisection(name, start):
    found, _ = cross(COSTS[name], start=start, settings=CrossingSearch(rtol=1e-3, max_evals=40))

    assert found.status[0] == "ok"
    assert found.radius[0] == pytest.approx(by_bisection(COSTS[name], 0.5), rel=2e-3)
    assert found.cost[0] == pytest.approx(COSTS[name](found.evaluated[0]))
    assert found.cost[0] == pytest.approx(0.5, rel=1.01e-3)


def test_a_power_law_takes_two_evaluations_and_is_then_exact():
    found, calls = cross(lambda r: 7 * r**2, start=3.0)

    assert len(calls) == 2
    assert found.radius[0] == pytest.approx(np.sqrt(0.5 / 7), rel=1e-14)


def test_a_good_start_takes_one():
    found, calls = cross(lambda r: 7 * r**2, start=np.sqrt(0.502 / 7))

    assert len(calls) == 1
    assert found.radius[0] == pytest.approx(np.sqrt(0.5 / 7), rel=1e-14)


def test_what_never_crosses_is_infinite_only_at_the_limit():
    found, calls = cross(lambda r: 0.1 * (1 - np.exp(-r)), limit=50.0)

    assert found.status[0] == "infinite"
    assert found.radius[0] == np.inf
    assert max(calls) == 50.0


def test_what_is_no_number_is_not_taken_for_a_crossing():
    found, _ = cross(
        lambda r: 0.01 * r**2 if r < 2 else np.nan, settings=CrossingSearch(max_evals=60)
    )

    assert found.status[0] == "nonfinite"
    assert found.radius[0] == pytest.approx(2, rel=1e-5)
    assert found.radius[0] < 2


def test_an_overflow_beyond_the_crossing_does_no_harm():
    found, _ = cross(lambda r: r**2 if r < 2 else np.inf, start=1000.0)

    assert found.status[0] == "ok"
    assert found.radius[0] == pytest.approx(np.sqrt(0.5))


def test_a_jump_is_found_where_it_is():
    found, _ = cross(lambda r: 0.1 if r < 1.7 else 3.0, settings=CrossingSearch(max_evals=60))

    assert found.status[0] == "ok"
    assert found.radius[0] == pytest.approx(1.7, rel=1e-6)


def test_a_spent_budget_is_said_and_leaves_a_lower_bound():
    found, calls = cross(lambda r: 0.1 if r < 1.7 else 3.0, settings=CrossingSearch(max_evals=4))

    assert found.status[0] == "budget"
    assert len(calls) == 4
    assert 0 < found.radius[0] < 1.7


def test_a_cost_that_falls_again_is_seen():
    def bump(r):
        return r**2 if r < 1 else 0.05 * r

    found, _ = cross(bump, start=2.0, settings=CrossingSearch(max_evals=40))

    assert found.status[0] in ("ok", "nonmonotone")
    found, _ = cross(bump, start=2.0, settings=CrossingSearch(max_evals=40, scan=20))
    assert found.status[0] == "nonmonotone"
    assert found.radius[0] == pytest.approx(np.sqrt(0.5), rel=1e-2)


def test_a_negative_cost_goes_on_outwards():
    found, _ = cross(lambda r: r**3 - r, start=0.2)

    assert found.lowest[0] < 0
    assert found.radius[0] == pytest.approx(by_bisection(lambda r: r**3 - r, 0.5), rel=1e-3)


def test_rays_side_by_side_do_not_disturb_each_other():
    costs = list(COSTS.values())
    alone = [cross(cost, start=0.7)[0].radius[0] for cost in costs]
    together = find_crossings(
        lambda rows, t: np.array([costs[r](x) for r, x in zip(rows, t, strict=True)]),
        np.full(len(costs), 0.7),
        2.0,
        np.full(len(costs), np.inf),
        0.5,
        CrossingSearch(),
    )

    np.testing.assert_array_equal(together.radius, alone)


@pytest.mark.parametrize(
    "wrong", [{"rtol": 0}, {"rtol": 2}, {"max_evals": 1}, {"scan": -1}, {"start": "here"}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(BadValue, match="search"):
        CrossingSearch(**wrong)
