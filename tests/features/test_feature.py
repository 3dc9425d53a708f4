"""Several features learn from one pass, each from its own part, and no reading is held."""

import gc
import weakref

import pytest
import torch

from offkey.data import Batch
from offkey.errors import BadValue
from offkey.features import Feature, get_feature, learn_together
from offkey.models import Model, Reading, Site
from offkey.passes import Plan

FIRST, SECOND = Site("module", path="first"), Site("module", path="second")


class Mean(Feature):
    name = "mean"
    learns = True

    def __init__(self, site="module:first"):
        self.site = site

    def plan(self, model):
        return Plan(reads=(Site.parse(self.site),))

    def learner(self, model):
        total, count = 0, 0
        while (reading := (yield)) is not None:
            assert list(reading.values) == [Site.parse(self.site)]
            total, count = total + reading[self.site].sum(0), count + len(reading.batch)
        self.mean_ = total / count

    def rows(self, model, reading):
        self.need_learned()
        return {site: x - self.mean_ for site, x in reading.values.items()}


@pytest.fixture
def model():
    return Model(torch.nn.Linear(2, 2), name="plain")


def stream(rows, alive):
    """Readings of two sites, four rows each; counts those that are still held somewhere."""
    held = []
    for start in range(0, len(rows), 4):
        part = rows[start : start + 4]
        batch = Batch({"x": part}, tuple(str(n) for n in range(start, start + 4)))
        reading = Reading(batch, {FIRST: part.clone(), SECOND: 2 * part})
        held.append(weakref.ref(reading))
        yield reading
        del reading
        gc.collect()
        alive.append(sum(ref() is not None for ref in held))


def test_each_learns_from_its_own_part_of_one_pass_that_holds_one_reading(model):
    rows, alive = torch.arange(24.0).view(12, 2), []
    features = [Mean(), Mean("module:second")]
    learn_together(features, model, stream(rows, alive))

    assert torch.equal(features[0].mean_, rows.mean(0))
    assert torch.equal(features[1].mean_, 2 * rows.mean(0))
    assert max(alive) <= 1


def test_learning_alone_replaces_what_was_learned(model):
    feature = Mean()
    with pytest.raises(BadValue, match="feature mean: it has seen no trusted prompts yet"):
        feature.rows(model, next(stream(torch.ones(4, 2), [])))
    for rows in (torch.ones(8, 2), torch.arange(8.0).view(4, 2)):
        parts = (Reading(r.batch, {FIRST: r.values[FIRST]}) for r in stream(rows, []))
        feature.learn(model, parts)
        assert torch.equal(feature.mean_, rows.mean(0))


def test_a_feature_that_learns_nothing_may_see_readings_too(model):
    feature = get_feature("entropy")
    feature.learn(model, stream(torch.ones(8, 2), []))
    assert feature.learned() == {}
