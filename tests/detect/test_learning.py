"""Features that learn from trusted prompts first, and scores over all sites at once."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from offkey.data import TensorPrompts
from offkey.detect import DetectionRun, Detector, Session, TrustedSplit
from offkey.errors import BadValue, Mismatch
from offkey.features import Feature, get_feature
from offkey.models import Model
from offkey.passes import Plan, readings

from . import planted

SITES = "module:first, module:route"


class Centred(Feature):
    """Activations less their trusted mean; remembers which prompts it saw."""

    name = "centred"
    learns = True
    default_score = "mahalanobis"

    def __init__(self, sites="module:first"):
        self.sites = sites

    def plan(self, model):
        return Plan(reads=model.sites_at(self.sites))

    def learner(self, model):
        total, ids = 0, []
        while (reading := (yield)) is not None:
            (value,) = reading.values.values()
            total = total + value.double().sum(0)
            ids += reading.batch.ids
        self.mean_, self.ids_ = total / len(ids), sorted(ids)

    def rows(self, model, reading):
        return {s: (v.double() - self.mean_).float() for s, v in reading.values.items()}


class Failing(Centred):
    """Stops in the middle of its pass."""

    name = "failing"
    left = 1

    def learner(self, model):
        inner = super().learner(model)
        next(inner)
        while (reading := (yield)) is not None:
            if not type(self).left:
                raise KeyboardInterrupt
            type(self).left -= 1
            inner.send(reading)
        next(inner, None)


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.fixture(scope="module")
def trusted():
    return planted.prompts(200, seed=1)


@pytest.fixture
def counted(model, monkeypatch):
    """Counts prompts that the model reads."""
    rows = []
    read = type(model).read

    def counting(self, batch, *args, **kwargs):
        rows.extend(batch.ids)
        return read(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(model), "read", counting)
    return rows


def test_a_feature_learns_from_the_fit_part_only(model, trusted):
    feature = Centred()
    detector = Detector(feature).fit(model, trusted)
    split = TrustedSplit.of(trusted, None, 0)

    assert set(detector.feature.ids_) == split.fit
    inside = torch.tensor([id in split.fit for id in trusted.ids])
    values = model.module.first(trusted.arrays["x"][inside]).double()
    torch.testing.assert_close(detector.feature.mean_, values.mean(0))
    assert not feature.learned()


def test_features_that_agree_share_one_pass(model, trusted, counted):
    twins = [
        Detector(Centred(), "mahalanobis"),
        Detector(Centred(), "knn", name="twin"),
        Detector(Centred("module:route"), "mahalanobis", name="other"),
    ]
    Session(model).fit(twins, trusted)

    # one pass to learn, over the 120 of the fit part, and one to record all
    assert len(counted) == 120 + 200
    assert twins[0].feature is twins[1].feature
    assert twins[0].feature.sites != twins[2].feature.sites
    assert len(twins[2].feature.mean_) == planted.WIDTH + 1


def test_fitting_again_learns_anew(model, trusted):
    detector = Detector(Centred()).fit(model, trusted)
    once = detector.feature
    detector.fit(model, trusted)
    assert detector.feature is not once
    assert torch.equal(detector.feature.mean_, once.mean_)
    assert detector.feature.ids_ == once.ids_
    detector.fit(model, planted.prompts(150, seed=7))
    assert len(detector.feature.ids_) == 90


def test_what_was_learned_is_kept_and_not_made_twice(model, trusted, counted, tmp_path):
    split = TrustedSplit.of(trusted, None, 0)
    first, second = Detector(Centred()), Detector(Centred())
    Session(model, tmp_path).learn([first], trusted, split.fit)
    assert len(counted) == 120
    Session(model, tmp_path).learn([second], trusted, split.fit)
    assert len(counted) == 120
    assert torch.equal(first.feature.mean_, second.feature.mean_)

    other = planted.prompts(200, seed=8)
    with pytest.raises(Mismatch, match="prepared with another prompts"):
        Session(model, tmp_path).learn([Detector(Centred())], other, frozenset(other.ids))


def test_an_interrupted_preparation_begins_anew(model, trusted, tmp_path, monkeypatch):
    split = TrustedSplit.of(trusted, None, 0)
    monkeypatch.setattr("offkey.passes.recording.CPU_BUDGET", 256)
    monkeypatch.setattr(Failing, "left", 2)
    detector = Detector(Failing())
    with pytest.raises(KeyboardInterrupt):
        Session(model, tmp_path).learn([detector], trusted, split.fit)
    assert not detector.feature.learned()
    monkeypatch.setattr(Failing, "left", 10**6)
    Session(model, tmp_path).learn([detector], trusted, split.fit)
    whole = Detector(Centred())
    Session(model, tmp_path / "whole").learn([whole], trusted, split.fit)

    assert set(detector.feature.ids_) == split.fit
    assert torch.equal(detector.feature.mean_, whole.feature.mean_)


def test_rows_of_other_trusted_prompts_are_not_taken_for_these(model, trusted, tmp_path):
    detector = Detector(Centred())
    session = Session(model, tmp_path / "one")
    session.fit([detector], trusted)
    test = planted.prompts(40, seed=3)
    session.score([detector], test)
    other = Detector(Centred()).fit(model, planted.prompts(200, seed=9))
    with pytest.raises(Mismatch):
        session.score([other], test)


def test_a_run_prepares_resumes_and_runs_again(model, trusted, tmp_path, counted):
    def run_of(*detectors):
        return DetectionRun(
            model, detectors, trusted, planted.prompts(60, seed=2, anomalous=0.5), quiet=True
        )

    feature = get_feature("activation-model", sites=SITES)
    detector = Detector(feature, alpha=0.2)
    metrics = run_of(detector).run(tmp_path / "run")
    once = len(counted)
    assert once == 120 + 200 + 60
    # the same job again, with the feature that has learned by now and with a fresh one
    again = run_of(detector).run(tmp_path / "run")
    fresh = run_of(Detector(get_feature("activation-model", sites=SITES), alpha=0.2)).run(
        tmp_path / "run"
    )
    assert len(counted) == once
    assert metrics.detectors == again.detectors == fresh.detectors
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["detectors"][0]["feature_settings"]["pairs"] == 256

    loaded = Detector.load(tmp_path / "run" / "detector" / detector.name.replace("/", "-"))
    test = planted.prompts(60, seed=2, anomalous=0.5)
    np.testing.assert_array_equal(
        loaded.score(model, test).score, detector.score(model, test).score
    )


def test_an_unprepared_feature_says_so(model, trusted):
    feature = get_feature("activation-model", sites="module:first")
    (reading,) = readings(model, trusted.take(range(4)), feature.plan(model))
    with pytest.raises(BadValue, match="has seen no trusted prompts yet"):
        feature.rows(model, reading)


def test_features_with_sites_take_them_by_name():
    detector = Detector.named("activation-model", sites="resid_post.2", positions="mean")
    assert detector.name == "activation-model/mahalanobis-diagonal"
    assert (detector.feature.sites, detector.feature.positions) == ("resid_post.2", "mean")
    assert Detector.named("activation-model").feature.sites == "resid_post.later"
    assert (
        Detector.named("entropy/mahalanobis", sites="resid_post.2").name == "entropy/mahalanobis"
    )


@pytest.mark.parametrize(
    ("feature", "score"),
    [
        ("activation-model", "mahalanobis-diagonal"),
        ("activations", "activation-model"),
        ("activations", "activation-model-joint"),
    ],
)
def test_the_activation_model_finds_the_hidden_route(model, feature, score, tmp_path):
    # the route is taken by some trusted prompts too: it is the combination that is odd
    trusted = planted.prompts(600, seed=1)
    trusted.arrays["x"][::3, 0] = 2.5
    test = planted.prompts(300, seed=2, anomalous=0.5)
    test.arrays["x"][:, 0] = 2.5 * torch.tensor(test["label"])
    detector = Detector(feature, score, sites=SITES, alpha=0.2)
    Session(model).fit([detector], trusted)
    scores = detector.score(model, test)
    assert np.isfinite(scores.score).all()
    assert scores.sites == (
        ("all sites",) if "joint" in score else ("module:first", "module:route")
    )
    detector.save(tmp_path / "detector")
    again = Detector.load(tmp_path / "detector").score(model, test)
    np.testing.assert_array_equal(again.score, scores.score)


class Halves(nn.Module):
    """Passes each half of its input through a place of its own."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Identity(), nn.Identity()
        self.out = nn.Linear(6, 2).requires_grad_(False)

    def forward(self, x):
        return self.out(torch.cat([self.left(x[:, :3]), self.right(x[:, 3:])], dim=1))


def halves(count, *, seed, rho):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    x[:, 3:] = rho * x[:, :3] + (1 - rho**2) ** 0.5 * x[:, 3:]
    return TensorPrompts({"x": x}, {"id": [f"{seed}-{n}" for n in range(count)]})


def test_a_score_over_all_sites_hears_what_each_site_hides():
    model = Model(Halves(), name="halves")
    usual, odd = halves(500, seed=2, rho=0.9), halves(500, seed=3, rho=-0.9)
    scores = {}
    for score in ("activation-model", "activation-model-joint"):
        detector = Detector("activations", score, sites="module:left, module:right")
        detector.fit(model, halves(1000, seed=1, rho=0.9))
        scores[score] = detector.score(model, usual), detector.score(model, odd)
    alone, joint = scores["activation-model"], scores["activation-model-joint"]

    assert joint[1].flagged.mean() > 0.7
    assert joint[0].flagged.mean() < 0.05 + 3 * (0.05 * 0.95 * (1 / 500 + 1 / 200)) ** 0.5
    assert alone[1].flagged.mean() < 0.15
    assert joint[1].worst_site == ("all sites",) * 500
