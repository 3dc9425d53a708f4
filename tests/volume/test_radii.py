"""Radii of examples: by single searches, with every crossing planted, at the promised cost."""

import numpy as np
import pytest
import torch

from offkey.errors import BadValue, InvalidAnchor, PrecisionTooLow
from offkey.testing.random_models import DETECTED, FAMILIES, batch_of, padded_batch, random_model
from offkey.volume import (
    Cost,
    CrossingSearch,
    GaussianMeasure,
    KLCost,
    estimate_volume,
    later_half,
    radii,
    typical_radius,
)

pytestmark = pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
ROWS = ((7, 11, 3, 9, 2), (4, 8, 15, 16, 23, 42, 6), (10, 20, 30, 40, 50, 60, 1, 2))


class Planted(Cost):
    """Example i costs a function of the radius of its own."""

    def __init__(self, functions):
        self.functions = functions
        self._zero = torch.zeros(7, dtype=torch.float64)

    @property
    def parameters(self):
        return {"x": self._zero}

    @property
    def is_single(self):
        return False

    def evaluate(self, delta, among=None):
        self.forwards += 1
        r = float(delta["x"].norm()) if delta else 0.0
        told = np.array([f(r) for f in self.functions])
        return told if among is None else told[among]

    def fingerprint(self):
        return {}


def test_planted_crossings_and_their_flags():
    cost = Planted(
        [
            lambda r: r**2,
            lambda r: 9 * r**2,
            lambda r: r**4,
            lambda r: 1e-9 * r,
            lambda r: 1e9 * r**2,
            lambda r: r**2 if r < 1.5 else 0.0,
            lambda r: np.inf if r > 1.001 else 0.1 * r,
            lambda r: r**2 if r > 0.6 else 0.0,
        ]
    )
    grid = np.geomspace(0.1, 10, 9)
    found = radii(cost, 0.5, 3, grid)

    exact = [
        0.5**0.5,
        (0.5 / 9) ** 0.5,
        0.5**0.25,
        10.0,
        (0.5e-9) ** 0.5,
        0.5**0.5,
        grid[4],
        0.5**0.5,
    ]
    np.testing.assert_allclose(np.exp(found.logs), np.array([exact] * 3).T, rtol=1e-12)
    assert found.censored.tolist() == [[c] * 3 for c in (0, 0, 0, 1, -1, 0, 0, 0)]
    assert (found.values[4] == 0.1).all()
    assert (found.values[3] == 10).all()
    assert (found.forwards, found.evaluations) == (27, 27)


def test_each_example_against_its_own_search():
    model = random_model("llama")
    block, names = later_half(model)
    grid = np.geomspace(0.2, 6, 12)
    cost = KLCost(model, [batch_of(ROWS)], tokens="last", reduce="per_example", start=block)
    found = radii(cost, 0.01, 3, grid, params=names)

    assert not found.censored.any()
    for i, row in enumerate(ROWS):
        alone = KLCost(model, [batch_of([row])], tokens="last")
        slow = estimate_volume(
            alone, 0.01, GaussianMeasure(1.0), params=names, n=3, search=CrossingSearch(rtol=1e-4)
        )
        np.testing.assert_allclose(found.values[i], slow.rays["radius"], rtol=0.02)


@pytest.mark.parametrize("family", [*FAMILIES, *DETECTED])
def test_later_blocks_alone_give_the_whole_models_bits(family):
    model, batch, grid = random_model(family), padded_batch(), (0.3, 1.0, 3.0)
    block, names = later_half(model)
    whole = KLCost(model, [batch], tokens="last", reduce="per_example")
    tail = KLCost(model, [batch], tokens="last", reduce="per_example", start=block)
    before = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}

    expected, found = (radii(cost, 0.01, 2, grid, params=names) for cost in (whole, tail))
    np.testing.assert_array_equal(found.logs, expected.logs)
    assert all(torch.equal(w, before[n]) for n, w in model.module.named_parameters())
    assert torch.equal(model.forward(batch).logits, random_model(family).forward(batch).logits)


def test_earlier_blocks_are_not_run_again():
    model, batch, calls = random_model("llama"), padded_batch(), []

    def count(number, output):
        if len(output[0]) == len(batch):  # what a block returns is found by a pass of one token
            calls.append(number)

    for number, block in enumerate(model.wiring.blocks):
        block.attention.register_forward_hook(lambda *seen, n=number: count(n, seen[-1]))
    block, names = later_half(model)
    cost = KLCost(model, [batch], tokens="last", reduce="per_example", start=block)
    radii(cost, 0.01, 2, (0.3, 1.0, 3.0), params=names)

    assert (block, len(model.wiring.blocks)) == (1, 3)
    # The anchor, the check that nothing costs nothing, and directions times grid.
    assert [calls.count(n) for n in range(3)] == [1, 2 + 6, 2 + 6]


@pytest.mark.parametrize("count", [1, 3, 40])
def test_forward_passes_do_not_grow_with_the_prompts(count):
    rows = [tuple((7 * i + 3 * j) % 60 + 1 for j in range(5)) for i in range(count)]
    cost = KLCost(random_model("llama"), [batch_of(rows)], tokens="last", reduce="per_example")
    found = radii(cost, 0.01, 4, np.geomspace(0.3, 3, 5))

    assert found.forwards == found.evaluations <= 4 * 5
    assert found.values.shape == (count, 4)


def test_a_direction_hangs_on_its_number_alone():
    cost = KLCost(random_model("llama"), [batch_of(ROWS)], tokens="last", reduce="per_example")
    grid = np.geomspace(0.1, 10, 6)
    all_of_them = radii(cost, 0.01, 3, grid)

    np.testing.assert_array_equal(radii(cost, 0.01, [2], grid).logs[:, 0], all_of_them.logs[:, 2])


def test_where_a_grid_belongs():
    cost = Planted([lambda r: r**2 / 9, lambda r: r**2 / 9])

    assert typical_radius(cost, 1.0) == pytest.approx(3, rel=1e-6)
    with pytest.raises(BadValue, match="no direction crosses"):
        typical_radius(Planted([lambda r: 0.0]), 1.0)


@pytest.mark.parametrize("grid", [(1.0,), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_grids_that_cannot_be(grid):
    with pytest.raises(BadValue, match="grid"):
        radii(Planted([lambda r: r]), 1.0, 2, grid)


def test_other_settings_that_cannot_be():
    with pytest.raises(BadValue, match="eps"):
        radii(Planted([lambda r: r]), 0.0, 2, (1.0, 2.0))
    with pytest.raises(InvalidAnchor, match="is 1, not 0"):
        radii(Planted([lambda r: r + 1]), 1.0, 2, (1.0, 2.0))


@pytest.mark.parametrize("packs", [[ROWS], [ROWS[:1], ROWS[1:]], [ROWS, ROWS[::-1]]])
def test_those_that_have_crossed_are_not_run_again(packs, monkeypatch):
    cost = KLCost(
        random_model("llama"), [batch_of(r) for r in packs], tokens="last", reduce="per_example"
    )
    grid, asked, whole = np.geomspace(0.02, 30, 12), [], []
    evaluate = cost.evaluate

    def watched(delta, among=None):
        asked.append(len(cost.ids) if among is None else among.sum())
        whole.append(evaluate(delta))
        return whole[-1] if among is None else whole[-1][among]

    monkeypatch.setattr(cost, "evaluate", watched)
    slow = radii(cost, 0.01, 1, grid)
    monkeypatch.undo()
    # Fewer rows may be multiplied in another order.
    np.testing.assert_allclose(radii(cost, 0.01, 1, grid).logs, slow.logs, rtol=1e-4)
    left = [(np.maximum.accumulate(whole)[k] < 0.01).sum() for k in range(len(whole))]
    assert asked == [len(cost.ids), *left[:-1]]
    assert left[-1] == 0 < left[-2]


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_costs_of_some_examples_are_those_of_all(tokens):
    model, batch = random_model("llama"), padded_batch()
    cost = KLCost(model, [batch, batch], tokens=tokens, reduce="per_example", start=1)
    step = {n: 0.1 * torch.ones_like(cost.parameters[n]) for n in later_half(model)[1]}
    whole, some = cost(step), np.arange(2 * len(batch)) % 2 == 1

    np.testing.assert_allclose(cost(step, among=some), whole[some], rtol=1e-4)
    assert cost.forwards == 2 * 3
    only_second = np.arange(2 * len(batch)) == len(batch)
    np.testing.assert_allclose(cost(step, among=only_second), whole[only_second], rtol=1e-4)
    assert cost.forwards == 2 * 3 + 1


def test_weights_that_are_too_coarse_are_refused():
    model = random_model("llama", dtype=torch.bfloat16)
    cost = KLCost(model, [batch_of(ROWS)], tokens="last", reduce="per_example")
    with pytest.raises(PrecisionTooLow, match="units in the last place of torch.bfloat16"):
        radii(cost, 1e-9, 1, np.geomspace(1e-4, 1, 5))
