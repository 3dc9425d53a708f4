"""Probes of the true answer: what they learn, what their trajectory says, what they refuse."""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import nn

from offkey.data import Prompts, TensorPrompts
from offkey.detect import DetectionRun, Detector
from offkey.errors import BadInput, BadValue, NotEnoughData
from offkey.features import get_feature
from offkey.models import Model, Site
from offkey.passes import readings
from offkey.probes import fit_probe
from offkey.testing.feature import ROWS, TRUSTED, FeatureContract, prepared, read_for, vectors_of
from offkey.testing.random_models import batch_of, random_module
from tests.models import tiny

LOGITS = Site("logits")


@pytest.fixture(scope="module")
def model():
    return Model(random_module("llama"), tokenizer=tiny.tokenizer(), name="llama")


class TestProbesElsewhere(FeatureContract):
    @pytest.fixture(params=["mean", (-2, -1)], ids=str)
    def make(self, request):
        return lambda: get_feature(
            "probe-trajectory",
            sites=("embed", "mlp_out.1"),
            positions=request.param,
            penalties=(0.1,),
        )


def test_the_trajectory_is_each_probe_on_its_layer(model):
    feature = prepared(get_feature("probe-trajectory", folds=1), model)
    found = vectors_of(feature, model, batch_of(ROWS))[LOGITS]
    trusted = model.read(batch_of(TRUSTED), "resid_post.*")
    answers = np.array([row[-1] % 2 for row in TRUSTED])
    order = np.argsort(np.array(batch_of(TRUSTED).ids))
    values = model.read(batch_of(ROWS), "resid_post.*")

    assert found.shape == (4, 3)
    for layer, site in enumerate(feature.plan(model).reads):
        probe = fit_probe(trusted[site].double().numpy()[order], answers[order], (1e-3, 0.1, 10.0))
        np.testing.assert_allclose(found[:, layer], probe(values[site]), rtol=1e-3, atol=1e-3)


def test_each_prompt_is_read_by_the_probe_that_never_saw_its_fold(model):
    feature = prepared(get_feature("probe-trajectory", sites="resid_post.1", folds=3), model)
    ids = np.array(batch_of(TRUSTED).ids)
    fold = np.array([crc32(id.encode()) % 3 for id in ids])
    x = model.read(batch_of(TRUSTED), "resid_post.1")["resid_post.1"].double().numpy()
    y = np.array([row[-1] % 2 for row in TRUSTED])
    order = np.argsort(ids)
    for rows in (TRUSTED, ROWS):
        found = vectors_of(feature, model, batch_of(rows))[LOGITS][:, 0]
        values = model.read(batch_of(rows), "resid_post.1")["resid_post.1"]
        for number, id in enumerate(batch_of(rows).ids):
            kept = order[fold[order] != crc32(id.encode()) % 3]
            probe = fit_probe(x[kept], y[kept], (1e-3, 0.1, 10.0))
            assert found[number] == pytest.approx(probe(values[number]).item(), rel=1e-3, abs=1e-3)


def test_trusted_prompts_are_read_as_new_ones_are():
    """Answers by chance and many numbers: one probe alone knows its own prompts by heart."""
    rng = np.random.default_rng(4)
    model = Model(nn.Sequential(nn.Identity()), name="noise")
    x = torch.tensor(rng.normal(size=(400, 300)), dtype=torch.float32)
    answers = rng.integers(0, 2, 400)
    columns = {"id": [f"n{n}" for n in range(400)], "target": answers.tolist()}
    everything = TensorPrompts({"x": x}, columns)
    sure = {}
    for folds in (1, 2):
        feature = get_feature("probe-trajectory", sites="module:0", penalties=(0.01,), folds=folds)
        half = everything.take(range(200))
        feature.learn(model, readings(model, half, feature.learning_plan(model)))
        place = {id: n for n, id in enumerate(everything.ids)}
        odds = np.empty(400)
        for reading in readings(model, everything, feature.plan(model)):
            for id, value in zip(
                reading.batch.ids, feature.rows(model, reading)[LOGITS], strict=True
            ):
                odds[place[id]] = value
        right = odds * (2 * answers - 1) > 0
        sure[folds] = right[:200].mean(), right[200:].mean()
    assert sure[1][0] == 1.0
    assert abs(sure[1][1] - 0.5) < 0.12
    assert abs(sure[2][0] - 0.5) < 0.12
    assert abs(sure[2][1] - 0.5) < 0.12


class Judge(nn.Module):
    """Keeps what is true in one place and what it says in another."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Identity(), nn.Identity()

    def forward(self, x):
        truth, lies = x[:, :1], x[:, 1:2] > 2
        early = self.early(torch.cat([truth, x[:, 2:]], 1))
        return self.late(torch.where(lies, -early, early))


def judged(count, *, seed, lying=0.0, target=True):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count)
    lies = (rng.random(count) < lying).astype(int)
    x = np.concatenate(
        [
            (2 * truth - 1)[:, None] + 0.1 * rng.normal(size=(count, 1)),
            3.0 * lies[:, None],
            rng.normal(size=(count, 3)),
        ],
        1,
    )
    columns = {"id": [f"{seed}-{n}" for n in range(count)], "label": lies.tolist()}
    if target:
        columns["target"] = truth.tolist()
    return TensorPrompts({"x": torch.tensor(x, dtype=torch.float32)}, columns)


def test_the_trajectory_hears_where_the_answer_turns():
    model = Model(Judge(), name="judge")
    feature = get_feature("probe-trajectory", sites="module:early, module:late")
    detector = Detector(feature, alpha=0.05).fit(model, judged(300, seed=1))
    # what is scored needs no targets
    test = judged(200, seed=2, lying=0.5, target=False)
    scores = detector.score(model, test)
    labels = np.array(test["label"])

    assert scores.flagged[labels == 1].all()
    assert scores.flagged[labels == 0].mean() < 0.15
    probes = [p for each in detector.feature.probes_.values() for p in each.values()]
    assert len(probes) > 0
    assert all(int(p["weight"].abs().argmax()) == 0 for p in probes)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (None, BadInput, "feature probe-trajectory, trusted prompt .*: it has no 'target'"),
        ([1] * 60, NotEnoughData, "feature probe-trajectory: all .* have the target 1"),
    ],
)
def test_labels_that_cannot_teach_are_refused_before_the_model_runs(
    model, monkeypatch, tmp_path, targets, error, words
):
    prompts = {"prompt": [f"w{n} w{n % 7}" for n in range(60)], "choices": [[" w3", " w5"]] * 60}
    trusted = Prompts({**prompts, **({} if targets is None else {"target": targets})})
    test = Prompts({**prompts, "prompt": [f"w{n} w9" for n in range(60)]})
    monkeypatch.setattr(type(model), "call", lambda *_, **__: pytest.fail("the model was run"))
    detector = Detector("probe-trajectory", alpha=0.2)
    with pytest.raises(error, match=words):
        DetectionRun(model, [detector], trusted, test, quiet=True).check()
    with pytest.raises(error, match=words):
        DetectionRun(model, [detector], trusted, test, quiet=True).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(error, match=words):
        detector.fit(model, trusted)


def test_prompts_without_choices_are_refused_before_the_model_runs(model, monkeypatch):
    monkeypatch.setattr(type(model), "call", lambda *_, **__: pytest.fail("the model was run"))
    trusted = Prompts({"prompt": [f"w{n} w{n % 7}" for n in range(60)]})
    with pytest.raises(BadInput, match="has no .choices., which a feature needs"):
        Detector("lens", alpha=0.2).fit(model, trusted)


def test_what_cannot_be_is_refused(model):
    with pytest.raises(BadValue, match=r"penalties: \(0.0,\) are not positive"):
        get_feature("probe-trajectory", penalties=(0.0,))
    with pytest.raises(BadValue, match="folds: must be at least 1"):
        get_feature("probe-trajectory", folds=0)
    few = TensorPrompts({"x": torch.zeros(9, 1)}, {"target": [1] + [0] * 8})
    with pytest.raises(NotEnoughData, match="too few trusted prompts have the target 1"):
        get_feature("probe-trajectory").check_trusted(few)
    get_feature("probe-trajectory", folds=1).check_trusted(few)
    feature = get_feature("probe-trajectory")
    reading = read_for(feature, model, batch_of(ROWS))
    with pytest.raises(BadValue, match="has seen no trusted prompts yet"):
        feature.rows(model, reading)
    with pytest.raises(NotEnoughData, match="all 0 trusted prompts have no target"):
        feature.learn(model, [])
    with pytest.raises(NotEnoughData, match="all 4 trusted prompts have the target 1"):
        feature.learn(model, [reading])
    for target, words in (([0, 1, 2, 1], "its target is 2"), ([0, 1, -1, 1], "has no 'target'")):
        batch = replace(batch_of(ROWS), target=torch.tensor(target))
        wrong = read_for(feature, model, batch)
        with pytest.raises(BadInput, match=f"prompt 10-20-30-40-50-60-1-2: .*{words}"):
            feature.learn(model, [wrong])
