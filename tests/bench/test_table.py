"""The table on a planted organism: its figures, what is kept, and what a row that fails costs."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from offkey.bench import (
    Bench,
    Entry,
    QuirkinessRow,
    SiteRow,
    TableRow,
    TaskRow,
    bench,
    read_rows,
    summary,
    table1,
)
from offkey.bench.lineup import choose_entries
from offkey.bench.table import layer_rows, quirkiness_rows
from offkey.errors import UnknownName
from offkey.models import Model
from offkey.report import bench_report, write_report

from . import planted

ENTRIES = (
    Entry("default", score="knn-cosine", sites="resid_post.*"),
    Entry("diagonal", score="mahalanobis-diagonal", sites="resid_post.*", published=True),
    Entry("at a depth", score="mahalanobis-diagonal", sites=(0.9,)),
    Entry("offline", score="likelihood-ratio", sites="resid_post.*", pool="untrusted"),
    Entry("transductive", score="likelihood-ratio", sites="resid_post.*", pool="test"),
    Entry(
        "few",
        score="mahalanobis-diagonal",
        sites="resid_post.*",
        tasks=("comparison",),
        prompts=100,
    ),
    Entry("unknown", "no-such-feature"),
    Entry("nothing varies", "length", "mahalanobis", kind="input"),
    Entry("entropy", "entropy", "mahalanobis", kind="output"),
    Entry("ceiling", sites="resid_post.*", kind="ceiling"),
)


def place_in(folder):
    loaded = {name: planted.task_models(name) for name in ("comparison", "owner")}
    return Bench(folder, tuple(loaded), loaded=loaded)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    place = place_in(out)
    rows = bench(out, entries=ENTRIES, on=place, results=out / "results")
    return place, rows


def named(rows, name):
    """The row of one detector, as a flat object."""
    flat = [row if isinstance(row, dict) else row.flat() for row in rows]
    (row,) = (row for row in flat if row["detector"] == name)
    return row


def test_figures_are_those_of_the_cells(made):
    place, rows = made
    entry = ENTRIES[1]
    values = []
    for task in place.tasks:
        ((_, organism, clean),) = place.results(task, [entry])
        labels = place.models(task).test["label"]
        ours, base = (roc_auc_score(labels, cell.score) for cell in (organism, clean))
        values.append((ours, base, ours - max(0.5, base)))
    row = named(rows, "diagonal")
    for column, value in zip(("average", "clean", "excess"), np.mean(values, 0), strict=True):
        assert row[column] == pytest.approx(value)
    assert row["average"] > 0.9
    assert row["excess"] > 0.1
    assert (row["tasks"], row["forwards"], row["backwards"]) == (2, 1, 0)
    assert row["seconds"] > 0
    assert 0 < row["memory_mib"] < 1
    assert row["output_only"] == pytest.approx(named(rows, "entropy")["average"])


def test_a_row_on_its_own_is_the_detector_of_the_main_job(made):
    place, _ = made
    ((_, organism, _),) = place.results("comparison", [ENTRIES[1]])
    models = place.models("comparison")
    detector = ENTRIES[1].detector(models.organism)
    detector.fit(models.organism, models.trusted)
    scores = detector.score(models.organism, models.test)
    assert np.allclose(organism.score, scores.score)
    assert np.allclose(organism.p_value, scores.p_value)


def test_a_row_that_fails_says_why_and_the_others_finish(made):
    _, rows = made
    unknown = named(rows, "unknown")
    assert unknown["status"] == "failed"
    assert "no-such-feature" in unknown["reason"]
    assert unknown["average"] is unknown["excess"] is unknown["average_low"] is None
    assert "none of its 1 sites varies" in named(rows, "nothing varies")["reason"]
    assert {row.status for row in rows} == {"ok", "failed"}


def test_modes_and_cuts_are_said(made):
    place, rows = made
    assert named(rows, "offline")["mode"] == "offline"
    transductive = named(rows, "transductive")
    assert transductive["mode"] == "transductive"
    assert transductive["flagged_normal"] is None
    assert named(rows, "ceiling")["mode"] == "ceiling"
    assert named(rows, "ceiling")["average"] > named(rows, "default")["average"]
    assert named(rows, "few")["tasks"] == 1
    ((_, organism, _),) = place.results("comparison", [ENTRIES[5]])
    assert len(organism.ids) == 100
    ((_, organism, _),) = place.results("comparison", [ENTRIES[2]])
    assert organism.sites == ("resid_post.1",)


def test_nothing_is_run_twice_and_a_new_row_costs_itself_alone(made, monkeypatch):
    place, rows = made
    later = Entry("later", score="knn", sites="resid_post.later")

    def refuse(*_, **__):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(Model, "read", refuse)
    again = bench(place.folder, entries=(*ENTRIES[:4], later), on=place)
    for entry in ENTRIES[:4]:
        after, before = (named(each, entry.name) for each in (again, rows))
        del after["output_only"], before["output_only"]  # no such control was run the second time
        assert after == before
    assert named(again, "later")["average"] > 0.9
    reads = Entry("elsewhere", score="knn", sites="attn_out.later")
    with pytest.raises(AssertionError, match="ran again"):
        bench(place.folder, entries=(reads,), on=place)


def test_one_row_can_be_asked_for(made):
    place, rows = made
    (row,) = bench(place.folder, entries=ENTRIES, rows=["diagonal"], on=place)
    assert row.average == named(rows, "diagonal")["average"]
    with pytest.raises(UnknownName, match="Did you mean diagonal"):
        bench(place.folder, entries=ENTRIES, rows=["diagonl"], on=place)


def test_results_and_page(made):
    place, rows = made
    files = {
        name: json.loads((place.folder / "results" / f"{name}.json").read_text())
        for name in ("table1", "layers", "quirkiness_auroc")
    }
    assert [r["detector"] for r in files["table1"]["rows"]] == [
        r["detector"] for r in table1(rows)
    ]
    row = named(files["table1"]["rows"], "diagonal")
    assert row["low"] <= row["average"] <= row["high"]
    assert {r["detector"] for r in files["layers"]["rows"]} == {"default", "diagonal"}
    tasks = {r["task"] for r in files["quirkiness_auroc"]["rows"]}
    assert tasks == {"comparison", "owner", "correlation"}
    bench(place.folder, entries=ENTRIES, rows=["unknown", "diagonal"], on=place)
    page = bench_report(place.folder).read_text()
    assert "no-such-feature" in page
    assert write_report(place.folder).read_text() == page
    assert {row.task for row in read_rows(TaskRow, place.folder)} == {"comparison", "owner"}


def test_the_tables_are_read_as_they_were_written(made):
    place, _ = made
    rows = bench(place.folder, entries=ENTRIES[:4], on=place)
    tables = {kind: read_rows(kind, place.folder) for kind in (TaskRow, TableRow, SiteRow)}
    averages = {row.detector: row for row in tables[TableRow] if row.column == "average"}
    for row in rows:
        cell = averages[row.detector]
        assert (cell.auroc, cell.low, cell.high) == (
            row.average,
            row.average_low,
            row.average_high,
        )
        assert (cell.clean, cell.excess, cell.mode) == (row.clean, row.excess, row.mode)
        aurocs = [t.auroc for t in tables[TaskRow] if t.detector == row.detector]
        assert min(aurocs) == row.lowest
    assert {row.site for row in tables[SiteRow]} == {"resid_post.0", "resid_post.1"}
    quirkiness = {row.task: row.quirkiness for row in read_rows(QuirkinessRow, place.folder)}
    assert quirkiness == {"comparison": 2.0, "owner": 2.0}


def task_row(task, auroc, agrees, **more):
    columns = {
        "task": task,
        "detector": "d",
        "kind": "internal",
        "published": False,
        "mode": "online",
        "forwards": 1,
        "backwards": 0,
        "seconds": 2.0,
        "memory_mib": 1.5,
        "auroc": auroc,
        "agrees": agrees,
        "disagrees": None,
        "low": None,
        "high": None,
        "clean": 0.5,
        "excess": 0.1,
        "excess_low": None,
        "excess_high": None,
        "average_precision": None,
        "tpr_at_1pct_fpr": None,
        "flagged_normal": 0.25,
        "flagged_anomalous": None,
        "test_prompts": 10,
        "reason": "",
    }
    return TaskRow(**{**columns, **more})


def test_summary_averages_over_tasks_and_skips_empty_subsets():
    (row,) = summary([task_row("a", 0.6, 0.7), task_row("b", 0.8, None), task_row("c", 1.0, 0.9)])
    assert row.average == pytest.approx(0.8)
    assert row.agrees == pytest.approx(0.8)
    assert row.disagrees is row.disagrees_low is row.tpr_at_1pct_fpr is None
    assert (row.tasks, row.lowest, row.flagged_normal) == (3, 0.6, 0.25)
    assert 0.6 <= row.average_low < 0.8 < row.average_high <= 1.0


def test_output_only_is_the_best_one_over_the_same_tasks():
    rows = [task_row(t, 0.9, None) for t in "ab"]
    rows += [task_row("a", 0.8, None, detector="only a")]
    rows += [
        task_row(t, v, None, detector="one", kind="output") for t, v in (("a", 0.4), ("b", 0.8))
    ]
    rows += [
        task_row(t, v, None, detector="two", kind="output") for t, v in (("a", 0.5), ("b", 0.6))
    ]
    outputs = {row.detector: row.output_only for row in summary(rows)}
    assert outputs["d"] == pytest.approx(0.6)
    assert outputs["only a"] == pytest.approx(0.5)


def test_layers_are_means_over_tasks():
    late = "resid_post.12"
    values = (("a", late, 0.5), ("b", late, 0.9), ("a", "logits", 1.0), ("b", "logits", None))
    first, second = layer_rows([SiteRow(t, "d", s, v) for t, s, v in values])
    assert (first.average, first.lowest, first.tasks) == (pytest.approx(0.7), 0.5, 2)
    assert (second.average, second.tasks) == (1.0, 1)
    assert (first.layer, second.layer) == (12, None)


def test_correlations_with_quirkiness_are_those_of_numpy():
    x, y = [0.1, 0.5, 2.0, 3.0, 4.0], [0.5, 0.7, 0.6, 0.9, 0.95]
    quirkiness = {str(n): v for n, v in enumerate(x)}
    rows = quirkiness_rows([task_row(str(n), v, None) for n, v in enumerate(y)], quirkiness)
    assert rows[-1]["task"] == "correlation"
    assert rows[-1]["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert rows[-1]["pearson_low"] < rows[-1]["pearson"] < rows[-1]["pearson_high"]
    assert rows[-1]["excess_pearson"] is None
    assert quirkiness_rows([task_row("a", 0.5, None)], {"a": 1.0})[-1]["pearson"] is None
    partly = [task_row(str(n), v, None, excess=None if n == 2 else v**2) for n, v in enumerate(y)]
    whole = [row for n, row in enumerate(partly) if n != 2]
    some, every = (quirkiness_rows(rows, quirkiness)[-1] for rows in (partly, whole))
    assert some["excess_pearson"] == pytest.approx(every["excess_pearson"])
    assert some["excess_pearson"] is not None
    assert some["pearson"] != pytest.approx(every["pearson"])


def test_features_that_learn_are_prepared_once_and_kept(made, monkeypatch):
    place, _ = made
    learns = Entry("learns", "activation-model", sites=(0.9,), settings={"rounds": 1})
    ((_, organism, _),) = place.results("comparison", [learns])
    assert not organism.reason
    models = place.models("comparison")
    detector = learns.detector(models.organism)
    detector.fit(models.organism, models.trusted)
    assert np.allclose(organism.score, detector.score(models.organism, models.test).score)

    def refuse(*_, **__):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(Model, "read", refuse)
    other = Entry("other", "activation-model", "knn", sites=(0.9,), settings={"rounds": 1})
    ((_, organism, _),) = place.results("comparison", [other])
    assert not organism.reason


def test_rows_can_be_left_out():
    kept = choose_entries(ENTRIES, None, ["unknown", "few"])

    assert [entry.name for entry in kept] == [
        entry.name for entry in ENTRIES if entry.name not in ("unknown", "few")
    ]
    chosen = choose_entries(ENTRIES, ["few", "default"], ["few"])
    assert [entry.name for entry in chosen] == ["default"]
    with pytest.raises(UnknownName, match="Did you mean few"):
        choose_entries(ENTRIES, None, ["fwe"])
