"""Saving follows from the constructor and from attributes that end in an underscore."""

import json

import pytest
import torch
from torch import Tensor

from offkey.errors import Mismatch
from offkey.storage import Stateful, flatten, unflatten


class Line(Stateful):
    name = "line"

    def __init__(self, sites=("a", "b"), slope=2.0, label=None):
        self.sites, self.slope, self.label = sites, slope, label
        self._cache = 7

    def fit(self, x):
        self.mean_ = x.mean(0)
        self.parts_ = {"low": x.amin(0), "rows": [x[0], x[1]], "count": len(x)}


class Free(Stateful):
    def __init__(self, rows=3, **settings):
        self.rows, self.own = rows, settings

    def settings(self):
        return {"rows": self.rows} | self.own


class Bare(Stateful):
    pass


@pytest.fixture
def line():
    line = Line(("c",), slope=0.5)
    line.fit(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    return line


def through_json(state):
    settings, tensors = flatten(state)
    return unflatten(json.loads(json.dumps(settings)), tensors)


def test_state_is_settings_and_what_was_learned(line):
    assert line.settings() == {"sites": ["c"], "slope": 0.5, "label": None}
    assert set(line.state()) == {"sites", "slope", "label", "mean_", "parts_"}
    assert line.state()["mean_"].tolist() == [2.0, 5.0]
    assert Line().learned() == {}
    assert Bare().state() == {}


def test_a_state_that_went_through_json_gives_an_equal_object(line):
    again = Line.from_state(through_json(line.state()))
    assert (again.sites, again.slope, again.label) == (("c",), 0.5, None)
    assert again.mean_.tolist() == [2.0, 5.0]
    assert again.parts_["low"].tolist() == [1.0, 2.0]
    assert [row.tolist() for row in again.parts_["rows"]] == [[1.0, 2.0], [3.0, 8.0]]
    assert again.parts_["count"] == 2


def test_the_restored_object_holds_tensors_of_its_own(line):
    def tensors(value):
        if isinstance(value, Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value
        return [t for part in parts if not isinstance(part, int) for t in tensors(part)]

    again = Line.from_state(line.state())
    pairs = list(zip(tensors(line.learned()), tensors(again.learned()), strict=True))
    assert len(pairs) == 4
    for old, new in pairs:
        assert torch.equal(old, new)
        assert old.data_ptr() != new.data_ptr()


def test_further_settings_reach_a_constructor_that_takes_any():
    again = Free.from_state(Free(4, depth=2).state())
    assert (again.rows, again.own) == (4, {"depth": 2})


def test_what_cannot_be_is_refused(line):
    with pytest.raises(Mismatch, match=r"line: its saved state has a setting 'rate'"):
        Line.from_state({"rate": 1.0})
    with pytest.raises(AttributeError, match="line has not learned anything yet"):
        _ = Line().mean_
    with pytest.raises(AttributeError, match="'Line' object has no attribute 'nosuch'"):
        _ = line.nosuch
    assert repr(line) == "Line(sites=['c'], slope=0.5, label=None)"
