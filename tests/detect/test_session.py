"""The one engine: in memory as in a folder, together as alone, a reading as its prompts."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from offkey.data import Prompts, pack
from offkey.detect import DetectionRun, Detector, Session
from offkey.errors import BadInput, Mismatch
from offkey.models import Model
from offkey.passes import Plan, World
from tests.cli.conftest import rows
from tests.data.conftest import _trained
from tests.models import tiny

from . import planted

SITES = "resid_post.*"


def _detectors():
    """Features that share a pass, others that need their own, and one that learns."""
    return [
        Detector("activations", "mahalanobis", sites=SITES),
        Detector("activations", "knn-cosine", sites="resid_post.1"),
        Detector.named("activations/lof", sites=SITES, positions="mean"),
        Detector("entropy", "mahalanobis"),
        Detector("bag-of-words", "mahalanobis"),
        Detector("activation-model"),
    ]


def _prompts(count, *, name):
    made = rows(count, name=name)
    return Prompts({key: [row[key] for row in made] for key in made[0]})


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request):
    tokenizer = _trained(bos=False)
    module = tiny.llama(vocab_size=len(tokenizer)).to(request.param)
    return Model(module, tokenizer=tokenizer, name="tiny")


@pytest.fixture(scope="module")
def trusted():
    return _prompts(300, name="t")


@pytest.fixture(scope="module")
def test_prompts():
    return _prompts(270, name="x")


@pytest.fixture(scope="module")
def in_memory(model, trusted, test_prompts):
    detectors = _detectors()
    session = Session(model)
    session.fit(detectors, trusted)
    return detectors, session.score(detectors, test_prompts)


def assert_same(ours, theirs):
    assert ours.ids == theirs.ids
    assert ours.sites == theirs.sites
    for name in ("score", "p_value", "by_site"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_rows_in_memory_are_bitwise_those_of_a_folder(model, trusted, tmp_path):
    detectors = _detectors()[:-1]
    kept = Session(model, tmp_path).record_features(detectors, trusted, "trusted")
    held = Session(model).record_features(detectors, trusted, "trusted")

    for ours, theirs in zip(held, kept, strict=True):
        assert ours.ids == theirs.ids == tuple(trusted.ids)
        shards = list(zip(ours.shards(), theirs.shards(), strict=True))
        assert [len(shard.ids) for shard, _ in shards] == [256, 44]
        for one, other in shards:
            assert set(one.values) == set(other.values)
            assert all(torch.equal(one.values[name], other.values[name]) for name in one.values)
            assert all(one[name].dtype == torch.float32 for name in one.values)


def test_compact_rows_lose_nothing(model, test_prompts):
    (held,) = Session(model).record_features(_detectors()[:1], test_prompts, "test")
    sites = model.sites_at(SITES)
    (batch,) = pack(test_prompts.take([7]), model.tokenizer)
    tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
    for name, values in next(held.shards()).values.items():
        assert values.dtype == model.dtype
        site = next(site for site in sites if name.endswith(f"|{site}"))
        alone = model.read(batch, [site])[site][0].float()
        assert (held.column(name)[7] - alone).norm() <= tolerance * alone.norm()


def test_scores_in_memory_are_bitwise_those_through_a_folder(
    model, trusted, test_prompts, in_memory, tmp_path
):
    detectors = _detectors()
    session = Session(model, tmp_path)
    session.fit(detectors, trusted)
    for ours, theirs in zip(in_memory[1], session.score(detectors, test_prompts), strict=True):
        assert_same(ours, theirs)
    # and again by what lies there
    again = _detectors()
    session = Session(model, tmp_path)
    session.fit(again, trusted)
    for ours, theirs in zip(in_memory[1], session.score(again, test_prompts), strict=True):
        assert_same(ours, theirs)


def test_nothing_is_written_in_memory(model, trusted, test_prompts, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was written")

    for name in ("open", "mkdir", "write_bytes", "write_text"):
        monkeypatch.setattr(f"pathlib.Path.{name}", never)
    monkeypatch.setattr("tempfile.mkdtemp", never)
    Detector(sites=SITES).fit(model, trusted).score(model, test_prompts)


def test_detectors_of_one_session_equal_each_alone(model, trusted, test_prompts, in_memory):
    for detector, together in zip(_detectors(), in_memory[1], strict=True):
        assert_same(detector.fit(model, trusted).score(model, test_prompts), together)


def test_a_reading_is_scored_as_its_prompts_are(model, test_prompts, in_memory):
    few = test_prompts.take(range(9))
    (batch,) = pack(few, model.tokenizer, context_length=model.context_length)
    apart = "lof"
    shared = [d for d in in_memory[0] if d.score_template.name != apart]
    session = Session(model)
    plan = session.plan(shared)
    reading = model.read(batch, plan.reads, positions=plan.positions, logits=plan.logits)

    from_reading = session.score_reading(shared, reading)
    for ours, theirs in zip(from_reading, session.score(shared, few), strict=True):
        order = [ours.ids.index(id) for id in theirs.ids]
        assert sorted(ours.ids) == sorted(few.ids)
        np.testing.assert_array_equal(ours.score[order], theirs.score)
        np.testing.assert_array_equal(ours.p_value[order], theirs.p_value)
        np.testing.assert_array_equal(ours.by_site[order], theirs.by_site)

    (alone,) = [d for d in in_memory[0] if d.score_template.name == apart]
    plan = alone.feature.plan(model)
    reading = model.read(batch, plan.reads, positions=plan.positions)
    ours, theirs = alone.score_reading(model, reading), alone.score(model, few)
    np.testing.assert_array_equal(
        ours.score[[ours.ids.index(id) for id in theirs.ids]], theirs.score
    )
    with pytest.raises(Mismatch, match="cannot share a pass"):
        session.score_reading(in_memory[0], reading)


def test_features_that_learned_from_other_prompts_are_kept_apart(model, trusted, test_prompts):
    few = test_prompts.take(range(20))
    detectors = [Detector("activation-model") for _ in range(3)]
    for detector, part in zip(
        detectors, (trusted, trusted.take(range(150)), trusted), strict=True
    ):
        detector.fit(model, part)
    alone = [detector.score(model, few) for detector in detectors]
    assert not np.array_equal(alone[0].score, alone[1].score)
    session = Session(model)
    (batch,) = pack(few, model.tokenizer, context_length=model.context_length)
    reading = model.read(batch, session.plan(detectors).reads)
    from_reading = session.score_reading(detectors, reading)
    for ours, theirs, read in zip(session.score(detectors, few), alone, from_reading, strict=True):
        assert_same(ours, theirs)
        order = [read.ids.index(id) for id in theirs.ids]
        np.testing.assert_array_equal(read.score[order], theirs.score)


def test_a_reading_of_another_model_is_refused(model, test_prompts, in_memory):
    detector = in_memory[0][0]
    other = Model(
        tiny.llama(seed=5, vocab_size=len(model.tokenizer)), tokenizer=model.tokenizer, name="o"
    )
    (batch,) = pack(test_prompts.take([0]), model.tokenizer)
    reading = other.read(batch, detector.feature.plan(other).reads)
    with pytest.raises(Mismatch, match="fitted on the model"):
        detector.score_reading(other, reading)
    assert len(detector.score_reading(other, reading, other_model=True)) == 1


def test_a_detector_that_learned_nothing_gives_its_reason():
    model, test = planted.model(), planted.prompts(300, seed=2)
    detector = Detector(sites="module:first")
    detector.fit(model, planted.prompts(200, seed=1))
    detector.fitted_ = type(detector.fitted).nothing(model.fingerprint, {}, "none varies")
    (scores,) = Session(model).score([detector], test)
    assert np.isnan(scores.score).all()
    assert set(scores.reasons.values()) == {"none varies"}


def test_plans_are_grouped_as_they_agree():
    last, mean, logits = Plan(positions="last"), Plan(positions="mean"), Plan(logits=True)
    site = planted.model().site("module:first")
    reads = [Plan((site,), positions=p) for p in ("last", "mean", "last", "all", "mean")]
    assert Plan.groups(reads) == [[0, 2], [1, 4], [3]]
    assert Plan.groups([last, mean, logits]) == [[0, 1, 2]]
    assert Plan.groups([]) == []


def test_every_worker_fits_and_scores_alike(model, trusted, test_prompts, tmp_path):
    """Each waits for the shards of the other."""

    def work(rank):
        detectors = [Detector("activations", "mahalanobis", sites=SITES)]
        session = Session(model, tmp_path / "shared", world=World(rank, 2))
        session.fit(detectors, trusted)
        return session.score(detectors, test_prompts)[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))
    alone = [Detector("activations", "mahalanobis", sites=SITES)]
    Session(model).fit(alone, trusted)
    (expected,) = Session(model).score(alone, test_prompts)
    for scores in (first, second):
        assert np.array_equal(scores.score, expected.score)
        assert np.array_equal(scores.p_value, expected.p_value)


def test_a_pool_that_holds_calibration_prompts_is_refused_before_anything_runs(
    model, trusted, test_prompts
):
    kept = _prompts(60, name="c")
    run = DetectionRun(
        model, [Detector("activations", "que")], trusted, test_prompts, pool=kept, calibration=kept
    )
    with pytest.raises(Mismatch, match="trusted ones too"):
        run.check()


def test_no_prompts_are_refused(model, test_prompts, in_memory):
    detectors, _ = in_memory
    with pytest.raises(BadInput, match="no prompts to score"):
        Session(model).score(detectors, test_prompts.take([]))
