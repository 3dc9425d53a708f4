"""Controls, the search on development tasks, and the one look at those held out."""

import json

import numpy as np
import pytest

from offkey.bench import (
    ENTRIES,
    Bench,
    Candidate,
    Entry,
    control_rows,
    development,
    held_out,
    held_out_rows,
    search,
)
from offkey.bench.controls import rename
from offkey.bench.selection import objective
from offkey.data import Prompts
from offkey.features import FEATURES, get_feature
from offkey.scores import get_score
from offkey.tasks import get_task, task_names

from . import planted
from .test_table import named, place_in

ROWS = (
    Entry("default", score="knn-cosine", sites="resid_post.*"),
    Entry("weak", score="knn", sites=(0.0,), published=True),
    Entry("entropy", "entropy", "mahalanobis", kind="output"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_in(tmp_path_factory.mktemp("protocol"))


def test_no_family_is_on_both_sides():
    names = ("comparison", "parity", "animal", "agreement", "owner", "dates", "hemisphere")
    tuned, judged = development(names), held_out(names)
    assert set(tuned) | set(judged) == set(names)
    families = [{get_task(name).family for name in side} for side in (tuned, judged)]
    assert not families[0] & families[1]
    assert {"comparison", "animal", "agreement"} <= set(tuned)


def test_rows_have_names_of_their_own_and_twelve_are_published():
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert sum(entry.published for entry in ENTRIES) == 12


def test_controls_do_to_the_plant_what_they_must(place):
    rows = {row.control: row for row in control_rows(place, ["default"], ROWS)}
    assert rows["none"].average > 0.9
    assert rows["none"].difference == 0
    assert rows["labels shuffled"].average == pytest.approx(0.5, abs=0.02)
    assert rows["5% of trusted anomalous"].average < rows["none"].average + 1e-9
    assert rows["benign prompts of another task"].tasks == 2
    assert "name nobody" in rows["decoy names"].reason
    assert rows["decoy names"].average is None


def test_many_anomalies_among_the_trusted_prompts_hide_the_rest(place, monkeypatch):
    monkeypatch.setattr("offkey.bench.controls.SHARES", (0.01, 0.2))
    rows = {row.control: row for row in control_rows(place, ["default"], ROWS)}
    assert rows["20% of trusted anomalous"].average < rows["none"].average - 0.01


def test_decoys_change_the_name_and_nothing_else():
    prompts = Prompts({"prompt": ["Name: Ann\nIs Ann here?"], "name": ["Ann"], "id": ["a"]})
    renamed = rename(prompts)
    assert renamed["prompt"] == ("Name: Xander\nIs Ann here?",)
    assert renamed.ids == ("a/decoy",)
    with pytest.raises(ValueError, match="name nobody"):
        rename(Prompts({"prompt": ["Is Ann here?"]}))


def test_the_search_reads_development_tasks_alone_and_agrees_with_detectors(place, tmp_path):
    options = [
        Candidate("resid_post", "knn", span, combine)
        for span in ("all", "later half")
        for combine in ("mean", "max")
    ]
    means = search(place, tmp_path / "log.jsonl", options)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["task"] for line in lines if "task" in line} == {"comparison"}
    assert len(lines) == 2 * len(options)
    objectives = [row.objective for row in means]
    assert objectives == sorted(objectives, reverse=True)
    entry = Entry("same", score="knn", sites="resid_post.later", combine="max")
    ((_, organism, _),) = place.results("comparison", [entry])
    labels = np.array(place.models("comparison").test["label"])
    wanted = ("later half", "max", "comparison")
    (line,) = (x for x in lines if (x["span"], x["combine"], x.get("task")) == wanted)
    assert line["flagged_normal"] == pytest.approx(organism.flagged[labels == 0].mean())


def test_the_objective_takes_false_alarms_off():
    assert objective(0.4, 0.02) == 0.4
    assert objective(0.4, 0.25) == pytest.approx(0.2)


def test_the_held_out_look_names_its_rivals(place):
    rows = {row.task: row.flat() for row in held_out_rows(place, ROWS)}
    assert set(rows) == {"owner", "mean", "best_seed_row"}
    assert rows["best_seed_row"]["detector"] == "weak"
    mean = rows["mean"]
    gap = mean["auroc"] - rows["best_seed_row"]["auroc"]
    assert mean["over_best_seed_row"] == pytest.approx(gap)
    assert mean["over_clean"] == pytest.approx(mean["auroc"] - mean["clean"])
    assert mean["tasks"] == 1
    assert mean["lowest"] == mean["auroc"]


def test_organisms_that_hide_stand_apart_and_have_a_mean_of_their_own(tmp_path):
    names = ("owner", "obfuscated", "obfuscated-1")
    loaded = {name: planted.task_models(name) for name in names}
    rows = held_out_rows(Bench(tmp_path, names, loaded=loaded), ROWS)
    by_task = {row.task: row.flat() for row in rows}
    assert len(by_task) == len(rows)
    means = {"mean", "best_seed_row", "obfuscated"}
    assert set(by_task) == {"owner", "obfuscated-0", "obfuscated-1", *means}
    assert by_task["mean"]["auroc"] == by_task["owner"]["auroc"]
    hidden = [by_task[name]["auroc"] for name in ("obfuscated-0", "obfuscated-1")]
    assert by_task["obfuscated"]["auroc"] == pytest.approx(np.mean(hidden))
    assert by_task["obfuscated"]["tasks"] == 1


def test_a_row_by_name(place):
    rows = control_rows(place, ["weak"], ROWS)
    assert named([row for row in rows if row.control == "none"], "weak")["tasks"] == 2


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_row_names_what_there_is(entry):
    settings = {**entry.settings, **({} if entry.sites is None else {"sites": "resid_post.*"})}
    if entry.feature != "sae":  # which loads its dictionary
        get_feature(entry.feature, **settings)
    score = entry.score or FEATURES.find(entry.feature).default_score
    assert get_score(score, **entry.score_settings).needs_pool == bool(entry.pool)
    assert set(entry.tasks) <= set(task_names())
