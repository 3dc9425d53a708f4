import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from offkey.bench import (
    compare,
    default_detector,
    false_alarms,
    trusted_curve,
)
from offkey.detect import read_metrics
from offkey.report import print_table, write_report
from offkey.stats import conformal_p_values
from offkey.storage import read_table

from . import planted


@pytest.fixture(scope="module")
def models():
    return planted.task_models()


@pytest.fixture(scope="module")
def compared(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, compare(models, [default_detector()], out, quiet=True)


def scores_of(out, model, detector):
    rows = read_table(out / model / "scores.parquet").to_pylist()
    mine = [r for r in rows if r["role"] == "test" and r["detector"] == detector]
    return {r["id"]: r for r in mine}


def test_figures_are_those_of_the_scores_on_disk(compared):
    out, comparison = compared
    for row in (row for row in comparison.detectors if row.detector != "length"):
        organism, clean = (scores_of(out, m, row.detector) for m in ("organism", "clean"))
        labels = [r["label"] for r in organism.values()]
        ours = roc_auc_score(labels, [r["score"] for r in organism.values()])
        base = roc_auc_score(labels, [clean[id]["score"] for id in organism])
        assert row.auroc.value == pytest.approx(ours)
        assert row.clean.value == pytest.approx(base)
        assert row.excess.value == pytest.approx(ours - max(0.5, base))
        normal = [r["flagged"] for r in organism.values() if r["label"] == 0]
        assert row.flagged_normal == pytest.approx(np.mean(normal))


def test_finds_the_plant_and_gives_no_credit_for_the_input(compared):
    _, comparison = compared
    rows = {row.detector: row for row in comparison.detectors}
    assert rows["activations/knn-cosine"].auroc.value > 0.9
    assert rows["activations/knn-cosine"].excess.low > 0
    assert rows["length"].auroc is rows["length"].excess is None
    assert "none of its 1 sites varies" in rows["length"].reasons["auroc"]
    words = rows["bag-of-words"]
    assert words.excess.value == pytest.approx(words.auroc.value - max(0.5, words.clean.value))


def test_controls_stand_beside_the_detectors(compared):
    out, comparison = compared
    stored = read_metrics(out / "organism")
    assert stored == comparison.metrics
    assert [row.detector for row in stored.detectors] == ["activations/knn-cosine"]
    kinds = {row.control: row.kind for row in stored.controls}
    assert kinds["clean model, activations/knn-cosine"] == "clean"
    assert kinds["entropy"] == "output"
    assert kinds["bag-of-words"] == kinds["embed"] == "input"


def test_its_report_and_table_can_be_made(compared, capsys):
    out, comparison = compared
    page = write_report(out / "organism").read_text()
    assert "activations/knn-cosine" in page
    print_table(comparison.metrics)
    assert "control" in capsys.readouterr().out


def test_running_again_changes_nothing(models, compared):
    out, comparison = compared
    before = (out / "organism" / "scores.parquet").read_bytes()
    again = compare(models, [default_detector()], out, quiet=True)
    assert (out / "organism" / "scores.parquet").read_bytes() == before
    assert again.detectors == comparison.detectors


def test_false_alarms_count_what_they_say(models, tmp_path):
    one, mean, normal = false_alarms(models, tmp_path, alpha=0.1)
    assert one.low <= one.rate <= one.high
    assert mean.low <= 0.1
    assert abs(mean.rate - 0.1) < 0.06
    assert normal.low is None
    assert 0 <= normal.rate <= 1


def test_p_values_of_fresh_draws_are_valid():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        scores = rng.normal(size=120)
        rates.append((conformal_p_values(scores[:60], scores[60:]) <= 0.05).mean())
    assert np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(len(rates))


def test_more_trusted_prompts_never_need_another_pass(models, tmp_path, monkeypatch):
    rows = trusted_curve(models, tmp_path, counts=(60, 120), seed=1)
    assert [row.trusted for row in rows] == [60, 120]
    assert all(row.low <= row.auroc <= row.high for row in rows)

    def refuse(*_, **__):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(type(models.organism), "read", refuse)
    assert trusted_curve(models, tmp_path, counts=(60, 120), seed=1) == rows
