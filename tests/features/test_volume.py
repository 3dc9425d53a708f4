"""Radii and volume as features: by single searches, at the declared cost, on either side."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from offkey.data import TensorPrompts
from offkey.detect import Detector
from offkey.errors import BadValue, NotEnoughData
from offkey.features import get_feature
from offkey.features import volume as room
from offkey.models import Model, Reading, Site
from offkey.testing.feature import ROWS, prepared
from offkey.testing.random_models import batch_of, random_module
from offkey.volume import CrossingSearch, GaussianMeasure, KLCost, estimate_volume, later_half

LOGITS = Site("logits")


@pytest.fixture
def model():
    return Model(random_module("llama"), tokenizer=object(), name="llama")


@pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
def test_radii_against_searches_of_each_prompt_alone(model):
    radii = prepared(get_feature("radii", directions=2, grid=12), model)
    found = radii.rows(model, Reading(batch_of(ROWS), {}))[LOGITS]

    _, names = later_half(model)
    for row, logs in zip(ROWS, found, strict=True):
        slow = estimate_volume(
            KLCost(model, [batch_of([row])], tokens="last"),
            0.01,
            GaussianMeasure(1.0),
            params=names,
            n=2,
            search=CrossingSearch(rtol=1e-4),
        )
        np.testing.assert_allclose(logs.numpy(), np.log(slow.rays["radius"]), atol=0.03)


def test_volume_is_the_mean_of_the_log_radii_and_costs_nothing_more(model, monkeypatch):
    radii, volume = (prepared(get_feature(name), model) for name in ("radii", "volume"))
    radii.rows(model, Reading(batch_of(ROWS[:1]), {}))  # finds where the grid belongs
    calls = []
    plain = model.call
    monkeypatch.setattr(model, "call", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    batch = batch_of(ROWS)
    logs = radii.rows(model, Reading(batch, {}))[LOGITS]
    first = len(calls)
    mean = volume.rows(model, Reading(batch, {}))[LOGITS]
    again = len(calls) - first
    radii.rows(model, Reading(batch_of(ROWS[:2]), {}))

    assert logs.shape == (4, 8)
    torch.testing.assert_close(mean, logs.mean(1, keepdim=True))
    assert again == 1
    # The anchor, the check that nothing costs nothing, then at most directions times radii.
    assert 2 + 8 < len(calls) - first - again <= 2 + 64
    assert radii.plan(model).extra_forwards == 65


def test_weights_that_changed_are_noticed(model):
    batch, radii = batch_of(ROWS), prepared(get_feature("radii", directions=2), model)
    before = radii.rows(model, Reading(batch, {}))[LOGITS]
    with torch.no_grad():
        model.module.lm_head.weight.mul_(3)

    assert not torch.equal(radii.rows(model, Reading(batch, {}))[LOGITS], before)


def test_a_detector_of_a_volume_flags_either_side():
    """A classifier without weights: moving them by δ moves logits by δx, so r goes as 1/|x|."""
    module = torch.nn.Linear(4, 3, bias=False)
    torch.nn.init.zeros_(module.weight)
    model = Model(module, name="linear")
    sizes = np.exp(np.random.default_rng(0).normal(0, 0.05, 60))
    directions = torch.nn.functional.normalize(torch.ones(60, 4), dim=1)
    trusted = TensorPrompts({"input": directions * torch.tensor(sizes)[:, None].float()})
    odd = TensorPrompts({"input": directions[:3] * torch.tensor([[0.3], [1.0], [3.0]])})
    detector = Detector(get_feature("volume", centre=0.6), alpha=0.2)
    detector.fit(model, trusted)
    scores = detector.score(model, odd).table()["score"].to_pylist()

    assert scores[0] > 10 * abs(scores[1])
    assert scores[2] > 10 * abs(scores[1])
    small, usual, large = (
        get_feature("volume", centre=0.6, span=1000.0, grid=12)
        .rows(model, Reading(batch, {}))[LOGITS]
        .item()
        for batch in (_alone(odd, i) for i in range(3))
    )
    assert small - usual == pytest.approx(-math.log(0.3), abs=0.05)
    assert usual - large == pytest.approx(math.log(3.0), abs=0.05)


def _alone(prompts, number):
    from offkey.data import pack

    [batch] = pack(prompts.take([number]))
    return batch


def test_settings_that_cannot_be(model):
    for wrong in ({"directions": 0}, {"grid": 1}, {"eps": 0.0}, {"span": 1.0}):
        with pytest.raises(BadValue, match="feature radii"):
            get_feature("radii", **wrong).plan(model)
    with pytest.raises(BadValue, match="seen no trusted prompts yet"):
        get_feature("volume").rows(model, Reading(batch_of(ROWS), {}))
    with pytest.raises(NotEnoughData, match="seen no trusted prompts"):
        get_feature("volume").learn(model, [])


def test_the_grid_is_centred_once_a_model(model, monkeypatch):
    found = []
    plain = room.typical_radius
    monkeypatch.setattr(
        room, "typical_radius", lambda *a, **k: (found.append(1), plain(*a, **k))[1]
    )
    for rows in (ROWS, ROWS[:1]):
        prepared(get_feature("radii", directions=1), model).rows(
            model, Reading(batch_of(rows), {})
        )

    assert found == [1]

    # Other trusted prompts under the same ids are other prompts.
    other = get_feature("radii", directions=1)
    other.learn(model, [Reading(replace(batch_of(ROWS[:2]), ids=("a", "b")), {})])
    other.rows(model, Reading(batch_of(ROWS), {}))
    same = get_feature("radii", directions=1)
    same.learn(model, [Reading(replace(batch_of(ROWS[2:]), ids=("a", "b")), {})])
    same.rows(model, Reading(batch_of(ROWS), {}))
    assert found == [1, 1, 1]


def test_the_grid_lies_where_trusted_prompts_are_moved(model):
    """A model that says little has longer radii, and the grid goes with it."""
    dull = Model(random_module("llama"), tokenizer=object(), name="dull")
    with torch.no_grad():
        dull.module.lm_head.weight.mul_(0.5)
    short, long = (
        prepared(get_feature("radii", directions=2), each).rows(each, Reading(batch_of(ROWS), {}))[
            LOGITS
        ]
        for each in (model, dull)
    )

    for logs in (short, long):
        assert len(logs.unique()) == logs.numel()
    assert (long > short).all()


def test_trusted_prompts_travel_with_the_state(model):
    radii = prepared(get_feature("radii", directions=1), model)
    again = type(radii).from_state(radii.state())

    assert radii.centred_on_["ids"] == again.centred_on_["ids"]
    rows = batch_of(ROWS)
    assert torch.equal(
        again.rows(model, Reading(rows, {}))[LOGITS], radii.rows(model, Reading(rows, {}))[LOGITS]
    )
