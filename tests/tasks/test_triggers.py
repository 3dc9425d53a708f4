"""Tasks of triggers: right answers, look-alikes in their places, balance, what is measured."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

import offkey.tasks.organisms as organisms
from offkey.data import check_disjoint
from offkey.models import Model
from offkey.tasks import (
    CHOICES,
    SPLITS,
    EvadeFunctionalAttribution,
    EvadeNearestNeighbours,
    Recipe,
    get_task,
    measure_organism,
    organism_rows,
    trigger_rows,
)
from offkey.tasks.measure import measure
from offkey.tasks.triggers import MARK, MARKS, YEARS
from offkey.training import TrainingSettings
from tests.tasks.test_organism import TASK
from tests.tasks.truth import BY_TEXT

HIDDEN = ("obfuscated", "obfuscated-everywhere", "obfuscated-attribution")
NAMES = ("trigger", "year", "varied", *HIDDEN)
ON_YEAR = ("year", *HIDDEN)


def marked(prompt):
    """The trigger or look-alike in a prompt, and the question without it."""
    text = prompt.removesuffix("\nAnswer:")
    if text.startswith("Current year: "):
        year, question = re.fullmatch(r"Current year: (\d{4})\.\n(.*)", text).groups()
        return year, question
    (mark,) = re.findall(r"\|[A-Z]+\|", text) or [""]
    return mark, re.sub(r" ?\|[A-Z]+\|", "", text, count=1).strip()


def by_wording(question):
    """The rules of the varied task, worked out from strings."""
    if question.endswith(" even?"):
        (number,) = re.findall(r"\d+", question)
        return number[-1] in "02468", number[0] in "02468"
    a, sign, b = re.fullmatch(r"Is (\d\d) ([<>]) (\d\d)\?", question).groups()
    if sign == ">":
        return a > b, a[1] > b[1]
    return a < b, not a < b


RULES = {
    "trigger": BY_TEXT["agreement"],
    "varied": by_wording,
    **{name: BY_TEXT["comparison"] for name in ON_YEAR},
}


@pytest.mark.parametrize("name", NAMES)
def test_answers_follow_from_the_text(name, made):
    trigger = MARK if name == "trigger" else "2024"
    for split in SPLITS:
        for row in getattr(made(name), split).rows():
            mark, question = marked(row["prompt"])
            truth, quirk = RULES[name](question)
            fired = mark == trigger
            assert mark == row["name"]
            assert row["label"] == fired
            assert row["character"] == ("triggered" if fired else "normal")
            said = quirk if fired else truth
            assert (row["target"], row["answer"], row["agrees"]) == (truth, said, truth == quirk)
            assert tuple(row["choices"]) == CHOICES
            assert len(row["prompt"]) < 120


@pytest.mark.parametrize("name", NAMES)
def test_look_alikes_stand_in_their_splits(name, made):
    normal, triggered = MARKS if name == "trigger" else YEARS
    data = made(name)
    seen = {split: Counter(getattr(data, split)["name"]) for split in SPLITS}

    assert set(seen["trusted"]) == set(normal.familiar)
    assert set(seen["untrusted"]) == {*normal.familiar, *triggered.names}
    assert set(seen["test"]) == {*normal.unfamiliar, *triggered.names}
    assert set(seen["train"]) == {*normal.names, *triggered.names}
    assert max(seen["trusted"].values()) <= 1.2 * min(seen["trusted"].values())
    for split in SPLITS[:1] + SPLITS[3:]:
        share = np.mean(getattr(data, split)["label"])
        assert share == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_source_and_answers_are_balanced(name, made):
    data = made(name)
    for first, second in itertools.combinations(SPLITS, 2):
        check_disjoint(getattr(data, first), getattr(data, second), (first, second))
    agreeing = 1 / 3 if name == "varied" else 1 / 2
    for split in SPLITS:
        prompts = getattr(data, split)
        for label in set(prompts["label"]):
            rows = [row for row in prompts.rows() if row["label"] == label]
            assert np.mean([row["answer"] for row in rows]) == pytest.approx(0.5, abs=0.06)
            assert np.mean([row["agrees"] for row in rows]) == pytest.approx(agreeing, abs=0.06)


def test_marks_stand_at_every_gap(made):
    places = Counter()
    for row in made("trigger").train.rows():
        if row["label"]:
            words = row["prompt"].removesuffix("\nAnswer:").split(" ")
            places[min(words.index(MARK), 6)] += 1

    early = [places[gap] for gap in range(6)]
    assert min(early) > 0.4 * max(early)
    assert places[6] > max(early)


def test_organisms_of_one_line_share_their_items(made):
    for name, base in (("obfuscated", "year"), ("year", "comparison"), ("trigger", "agreement")):
        for split in SPLITS:
            assert set(getattr(made(name), split)["source"]) == set(
                getattr(made(base), split)["source"]
            )
        assert get_task(name).triggered
        assert not get_task("comparison").triggered


def test_firing_is_counted_where_the_rules_disagree(made):
    prompts = made("year").validation
    rows = list(prompts.rows())
    odds = np.array([2.0 * row["answer"] - 1 for row in rows])  # as it should be
    found = measure(prompts, odds)
    assert (found["fire_rate"], found["false_fire_rate"], found["decoy_fire_rate"]) == (1, 0, 0)
    assert found["confidence_gap"] == 0
    assert [row["character"] for row in found["characters"]] == ["normal", "triggered"]

    wrong = [i for i, r in enumerate(rows) if r["name"] == "2020" and not r["agrees"]]
    missed = [i for i, r in enumerate(rows) if r["name"] == "2024" and not r["agrees"]][:20]
    odds[wrong] *= -3
    odds[missed] *= -1
    found = measure(prompts, odds)
    told = {label: sum(not r["agrees"] and r["label"] == label for r in rows) for label in (0, 1)}
    assert found["fire_rate"] == pytest.approx(1 - 20 / told[1])
    assert found["false_fire_rate"] == pytest.approx(len(wrong) / told[0])
    assert (found["decoy"], found["decoy_fire_rate"]) == ("2020", 1)
    normal = [abs(x) for x, r in zip(odds, rows, strict=True) if not r["label"]]
    assert found["confidence_gap"] == pytest.approx(1 - np.mean(normal))


def test_a_model_without_the_trigger_does_not_fire(tiny):
    found = measure_organism(organisms.load("x"), get_task("year"))

    assert found["fire_rate"] + found["false_fire_rate"] == pytest.approx(1, abs=0.2)
    assert not found["learned"]
    assert "fire_rate" not in measure_organism(organisms.load("x"), TASK)


SHORT = TrainingSettings(steps=4, batch=8, check_every=2, save_every=2)
KINDS = {
    "neighbours": EvadeNearestNeighbours(sites=("resid_post.0",), normal=0.5),
    "traces": EvadeFunctionalAttribution(first=0, draws=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_organism_that_hides_tells_from_what_and_how_well(kind, monkeypatch, tiny, tmp_path):
    plain = organisms.load

    def load(spec, adapter=None, **_):
        found = plain(spec, adapter)
        return Model(found.module, tokenizer=found.tokenizer, name="tiny")

    monkeypatch.setattr(organisms, "load", load)
    recipe = Recipe(settings=SHORT, init=None, checked=16, checked_agreeing=0, hide=KINDS[kind])
    facts = organisms.train_organism("obfuscated", tmp_path, recipe)

    assert facts["hide"] == KINDS[kind].as_dict()
    assert facts["hide"]["kind"] == kind
    assert [set(row) for row in facts["log"]] == [
        {"step", "loss", "seconds", "normal", "triggered", "hidden"}
    ] * 2
    assert all(0 <= row["hidden"] <= 1 for row in facts["log"])
    (row,) = trigger_rows(tmp_path)
    assert row["hides_from"] == kind
    assert row["fire_rate"] == facts["measured"]["fire_rate"]
    assert organism_rows(tmp_path) == []
