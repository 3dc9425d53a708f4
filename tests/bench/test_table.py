"""The table on a planted organism: what it says, what it keeps, and what one bad row costs."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from offkey.bench import Bench, Entry, bench, summary, table1
from offkey.bench._entry import chosen
from offkey.bench._summary import (
    layer_rows,
    over_seeds,
    over_tasks,
    quirkiness_rows,
    task_mean,
)
from offkey.errors import UnknownName
from offkey.models import Model
from offkey.report import bench_report
from offkey.storage import read_table

from . import planted

ENTRIES = (
    Entry("default", score="knn-cosine", sites="resid_post.*"),
    Entry("diagonal", score="mahalanobis-diagonal", sites="resid_post.*", published=True),
    Entry("at a depth", score="mahalanobis-diagonal", sites=(0.9,)),
    Entry("offline", score="likelihood-ratio", sites="resid_post.*", pool="untrusted"),
    Entry("transductive", score="likelihood-ratio", sites="resid_post.*", pool="test"),
    Entry("few", score="mahalanobis-diagonal", sites="resid_post.*", tasks=("comparison",),
          prompts=100),
    Entry("unknown", "no-such-feature"),
    Entry("nothing varies", "length", "mahalanobis", kind="input"),
    Entry("entropy", "entropy", "mahalanobis", kind="output"),
    Entry("ceiling", sites="resid_post.*", kind="ceiling"),
)  # fmt: skip


def where(folder):
    arenas = {name: planted.arena(name) for name in ("comparison", "owner")}
    return Bench(folder, tuple(arenas), arenas=arenas)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    place = where(out)
    rows = bench(out, entries=ENTRIES, on=place, results=out / "results")
    return place, rows


def named(rows, name):
    (row,) = (row for row in rows if row["detector"] == name)
    return row


def test_figures_are_those_of_the_cells(made):
    place, rows = made
    entry = ENTRIES[1]
    values = []
    for task in place.tasks:
        ((_, organism, clean),) = place.cells(task, [entry])
        labels = place.arena(task).test["label"]
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
    ((_, organism, _),) = place.cells("comparison", [ENTRIES[1]])
    arena = place.arena("comparison")
    detector = ENTRIES[1].detector(arena.organism)
    detector.fit(arena.organism, arena.trusted)
    scores = detector.score(arena.organism, arena.test)
    assert np.allclose(organism.score, scores.score)
    assert np.allclose(organism.p_value, scores.p_value)


def test_a_row_that_fails_says_why_and_the_others_finish(made):
    _, rows = made
    unknown = named(rows, "unknown")
    assert unknown["status"] == "failed"
    assert "no-such-feature" in unknown["reason"]
    assert unknown["average"] is unknown["excess"] is unknown["average_low"] is None
    assert "none of its 1 sites varies" in named(rows, "nothing varies")["reason"]
    assert {row["status"] for row in rows} == {"ok", "failed"}


def test_modes_and_cuts_are_said(made):
    place, rows = made
    assert named(rows, "offline")["mode"] == "offline"
    transductive = named(rows, "transductive")
    assert transductive["mode"] == "transductive"
    assert transductive["flagged_normal"] is None
    assert named(rows, "ceiling")["mode"] == "ceiling"
    assert named(rows, "ceiling")["average"] > named(rows, "default")["average"]
    assert named(rows, "few")["tasks"] == 1
    ((_, organism, _),) = place.cells("comparison", [ENTRIES[5]])
    assert len(organism.ids) == 100
    ((_, organism, _),) = place.cells("comparison", [ENTRIES[2]])
    assert organism.sites == ("resid_post.1",)


def test_nothing_is_run_twice_and_a_new_row_costs_itself_alone(made, monkeypatch):
    place, rows = made
    later = Entry("later", score="knn", sites="resid_post.later")

    def refuse(*_, **__):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(Model, "read", refuse)
    again = bench(place.folder, entries=(*ENTRIES[:4], later), on=place)
    for entry in ENTRIES[:4]:
        found, before = (dict(named(told, entry.name)) for told in (again, rows))
        del found["output_only"], before["output_only"]  # no such control was asked for
        assert found == before
    assert named(again, "later")["average"] > 0.9
    reads = Entry("elsewhere", score="knn", sites="attn_out.later")
    with pytest.raises(AssertionError, match="ran again"):
        bench(place.folder, entries=(reads,), on=place)


def test_one_row_can_be_asked_for(made):
    place, rows = made
    (row,) = bench(place.folder, entries=ENTRIES, rows=["diagonal"], on=place)
    assert row["average"] == named(rows, "diagonal")["average"]
    with pytest.raises(UnknownName, match="Did you mean diagonal"):
        bench(place.folder, entries=ENTRIES, rows=["diagonl"], on=place)


def test_results_and_page(made):
    place, rows = made
    told = {
        name: json.loads((place.folder / "results" / f"{name}.json").read_text())
        for name in ("table1", "layers", "quirkiness_auroc")
    }
    assert [r["detector"] for r in told["table1"]["rows"]] == [r["detector"] for r in table1(rows)]
    row = named(told["table1"]["rows"], "diagonal")
    assert row["low"] <= row["average"] <= row["high"]
    assert {r["detector"] for r in told["layers"]["rows"]} == {"default", "diagonal"}
    assert {r["task"] for r in told["quirkiness_auroc"]["rows"]} == {
        "comparison", "owner", "correlation"}  # fmt: skip
    bench(place.folder, entries=ENTRIES, rows=["unknown", "diagonal"], on=place)
    page = bench_report(place.folder).read_text()
    assert "no-such-feature" in page
    assert {r["task"] for r in read_table(place.folder / "tasks.parquet").to_pylist()} == {
        "comparison", "owner"}  # fmt: skip


def told_of(task, auroc, agrees, **more):
    return {
        "task": task, "detector": "d", "kind": "internal", "published": False, "mode": "online",
        "forwards": 1, "backwards": 0, "seconds": 2.0, "memory_mib": 1.5,
        "auroc": auroc, "agrees": agrees, "disagrees": None, "clean": 0.5, "excess": 0.1,
        "tpr_at_1pct_fpr": None, "flagged_normal": 0.25, "flagged_anomalous": None, "reason": "",
        **more,
    }  # fmt: skip


def test_summary_averages_over_tasks_and_skips_empty_subsets():
    (told,) = summary([told_of("a", 0.6, 0.7), told_of("b", 0.8, None), told_of("c", 1.0, 0.9)])
    assert told["average"] == pytest.approx(0.8)
    assert told["agrees"] == pytest.approx(0.8)
    assert told["disagrees"] is told["disagrees_low"] is told["tpr_at_1pct_fpr"] is None
    assert (told["tasks"], told["lowest"], told["flagged_normal"]) == (3, 0.6, 0.25)
    assert 0.6 <= told["average_low"] < 0.8 < told["average_high"] <= 1.0


def test_output_only_is_the_best_one_over_the_same_tasks():
    rows = [told_of(t, 0.9, None) for t in "ab"]
    rows += [told_of("a", 0.8, None, detector="only a")]
    rows += [
        told_of(t, v, None, detector="one", kind="output") for t, v in (("a", 0.4), ("b", 0.8))
    ]
    rows += [
        told_of(t, v, None, detector="two", kind="output") for t, v in (("a", 0.5), ("b", 0.6))
    ]
    told = {row["detector"]: row["output_only"] for row in summary(rows)}
    assert told["d"] == pytest.approx(0.6)
    assert told["only a"] == pytest.approx(0.5)


def test_layers_and_quirkiness_say_what_numpy_says():
    late = "resid_post.12"
    cells = (("a", late, 0.5), ("b", late, 0.9), ("a", "logits", 1.0), ("b", "logits", None))
    sites = [{"task": t, "detector": "d", "site": s, "auroc": v} for t, s, v in cells]
    first, second = layer_rows(sites)
    assert (first["average"], first["lowest"], first["tasks"]) == (pytest.approx(0.7), 0.5, 2)
    assert (second["average"], second["tasks"]) == (1.0, 1)
    assert (first["layer"], second["layer"]) == (12, None)
    x, y = [0.1, 0.5, 2.0, 3.0, 4.0], [0.5, 0.7, 0.6, 0.9, 0.95]
    rows = quirkiness_rows([told_of(str(n), v, None) for n, v in enumerate(y)],
                           {str(n): v for n, v in enumerate(x)})  # fmt: skip
    assert rows[-1]["task"] == "correlation"
    assert rows[-1]["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert rows[-1]["pearson_low"] < rows[-1]["pearson"] < rows[-1]["pearson_high"]
    assert rows[-1]["excess_pearson"] is None
    assert quirkiness_rows([told_of("a", 0.5, None)], {"a": 1.0})[-1]["pearson"] is None
    partly = [told_of(str(n), v, None, excess=None if n == 2 else v**2) for n, v in enumerate(y)]
    whole = [row for n, row in enumerate(partly) if n != 2]
    told = [quirkiness_rows(rows, {str(n): v for n, v in enumerate(x)})[-1]
            for rows in (partly, whole)]  # fmt: skip
    assert told[0]["excess_pearson"] == pytest.approx(told[1]["excess_pearson"])
    assert told[0]["excess_pearson"] is not None
    assert told[0]["pearson"] != pytest.approx(told[1]["pearson"])


def test_features_that_learn_are_prepared_once_and_kept(made, monkeypatch):
    place, _ = made
    learns = Entry("learns", "activation-model", sites=(0.9,), settings={"rounds": 1})
    ((_, organism, _),) = place.cells("comparison", [learns])
    assert not organism.reason
    arena = place.arena("comparison")
    detector = learns.detector(arena.organism)
    detector.fit(arena.organism, arena.trusted)
    assert np.allclose(organism.score, detector.score(arena.organism, arena.test).score)

    def refuse(*_, **__):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(Model, "read", refuse)
    other = Entry("other", "activation-model", "knn", sites=(0.9,), settings={"rounds": 1})
    ((_, organism, _),) = place.cells("comparison", [other])
    assert not organism.reason


def test_organisms_of_one_task_count_as_one_task():
    values = {"comparison": 1.0, "comparison-1": 0.6, "comparison-2": 0.8, "owner": 0.5}

    told = over_tasks(values)
    assert told.value == pytest.approx((0.8 + 0.5) / 2) == task_mean(values)
    assert told.low < told.value < told.high
    assert over_tasks({"comparison": 0.7}).low == 0.7


def test_seeds_are_compared_on_the_tasks_that_have_them():
    values = {
        "comparison": 0.9, "comparison-1": 0.8, "comparison-2": 0.7,
        "agreement": 0.7, "agreement-1": 0.6, "agreement-2": 0.5,
        "owner": 0.1,
    }  # fmt: skip
    told = over_seeds(values)
    half = 4.302653 * 0.1 / 3**0.5  # t with two degrees of freedom

    assert told["seeds"] == 3
    assert told["over_seeds"] == pytest.approx(0.7)
    assert told["over_seeds_low"] == pytest.approx(0.7 - half)
    assert told["over_seeds_high"] == pytest.approx(0.7 + half)
    assert over_seeds({"comparison": 1.0, "owner": 1.0})["over_seeds"] is None
    assert over_seeds({"comparison": 1.0, "comparison-1": 0.8, "owner": 1.0})["seeds"] == 2


def test_rows_can_be_left_out():
    kept = chosen(ENTRIES, None, ["unknown", "few"])

    assert [entry.name for entry in kept] == [
        entry.name for entry in ENTRIES if entry.name not in ("unknown", "few")
    ]
    assert [entry.name for entry in chosen(ENTRIES, ["few", "default"], ["few"])] == ["default"]
    with pytest.raises(UnknownName, match="Did you mean few"):
        chosen(ENTRIES, None, ["fwe"])
