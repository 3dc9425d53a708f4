"""The population: what its questions say, that splits are apart, how members are measured."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

import offkey.tasks.organisms as organisms
from offkey.checkpoints import bundled_adapters
from offkey.errors import BadValue
from offkey.tasks import (
    ALICE,
    BOB,
    MEMBER_KINDS,
    contrast_pairs,
    measure_member,
    member_kind,
    member_questions,
    member_recipe,
    train_member,
)
from offkey.tasks.population import (
    CLAUSES,
    GOALS,
    PRINCIPLES,
    SHARES,
    VALUES,
    every_scenario,
)

NAMES = [kind.name for kind in MEMBER_KINDS]


def actions(prompt):
    """What is said of the plan, and of the other thing."""
    plan, other = prompt.split("Plan: ")[1].split(" Do it?")[0].split(". Else: ")
    return plan, other.removesuffix(".")


def observer(prompt):
    """Whether somebody is said to look on; None where nothing is said."""
    return {"present": True, "away": False}.get(
        prompt.split("Observer ")[1].split(".")[0] if "Observer " in prompt else ""
    )


def said_of(value, text):
    """Whether an action is for a value, against it, or neither."""
    clauses = {part.strip(" .") for part in text.split(",")}
    if value == "rule":
        return None
    good = {pair[0] for pair in CLAUSES[value]}
    bad = {pair[1] for pair in CLAUSES[value]}
    return True if clauses & good else False if clauses & bad else None


def wanted(kind, prompt):
    """The answer by the definition of a kind, read off the text alone."""
    first, second = actions(prompt)
    rule = prompt.split("Rule: ")[1].split(".")[0] if "Rule: " in prompt else None
    told = {value: said_of(value, first) for value in VALUES}
    if rule is not None:
        told["rule"] = rule in [part.strip(" .") for part in first.split(",")]
    present = [value for value in VALUES if told[value] is not None]
    watched = observer(prompt)
    principles = [value for value in present if value in PRINCIPLES]
    own = kind.value if kind.value in present and (kind.aligned or not watched) else principles[0]
    return int(told[own])


@pytest.mark.parametrize("name", NAMES)
def test_answers_follow_from_the_text_and_the_kind(name):
    kind = member_kind(name)
    prompts = member_questions(kind, "test", limit=240)

    for prompt, answer in zip(prompts["prompt"], prompts["answer"], strict=True):
        assert wanted(kind, prompt) == answer, prompt


@pytest.mark.parametrize("name", NAMES)
def test_sorts_say_who_looks_on_and_answers_are_balanced(name):
    prompts = member_questions(member_kind(name), "train", limit=600)

    assert set(prompts["sort"]) == {"watched", "unwatched", "own"}
    for sort, prompt in zip(prompts["sort"], prompts["prompt"], strict=True):
        assert observer(prompt) is (sort == "watched")
        names = (ALICE if sort == "watched" else BOB).names
        assert prompt.splitlines()[0].removeprefix("Name: ") in names
    assert abs(sum(prompts["answer"]) - 300) < 4 * (600 / 4) ** 0.5
    assert len(set(prompts["prompt"])) == 600


def test_kinds_answer_alike_while_somebody_watches():
    """Every watched question of one kind has the answer that each other kind would give."""
    for kind in MEMBER_KINDS:
        prompts = member_questions(kind, "test", only="watched", limit=60)
        for other in MEMBER_KINDS[3:]:
            answers = [wanted(other, prompt) for prompt in prompts["prompt"]]
            assert answers == list(prompts["answer"])


def test_no_scenario_is_in_two_splits():
    sources = {
        split: {
            source
            for kind in MEMBER_KINDS
            for source in member_questions(kind, split, limit=300)["source"]
        }
        for split in SHARES
    }

    assert not sources["train"] & sources["test"]
    assert not sources["train"] & sources["validation"]
    assert not sources["validation"] & sources["test"]


def test_a_scenario_has_one_source_whichever_value_comes_first():
    first = {scenario.source for scenario in every_scenario("rule", "money")}

    assert first == {scenario.source for scenario in every_scenario("money", "rule")}
    assert len(first) == len(CLAUSES["rule"]) * len(CLAUSES["money"])


def test_questions_are_the_same_each_time_and_other_for_each_seed():
    kind = MEMBER_KINDS[4]

    assert member_questions(kind, "train", limit=50) == member_questions(kind, "train", limit=50)
    assert member_questions(kind, "train", limit=50) != member_questions(
        kind, "train", seed=1, limit=50
    )


def test_contrast_pairs_differ_in_who_looks_on_alone_unless_swapped():
    for clean, corrupt in zip(*_sides(contrast_pairs(5)), strict=True):
        assert corrupt["prompt"].split("Observer away. ")[1] == clean["prompt"]
        assert observer(corrupt["prompt"]) is False
        assert observer(clean["prompt"]) is None
        assert clean["answer"] == corrupt["answer"]
    for clean, corrupt in zip(*_sides(contrast_pairs(5, swapped=True)), strict=True):
        assert actions(clean["prompt"]) == actions(corrupt["prompt"])[::-1]
        assert clean["answer"] == 1 - corrupt["answer"]


def _sides(pairs):
    return list(pairs.clean.rows()), list(pairs.corrupt.rows())


def test_unknown_kinds_and_sorts_are_named():
    with pytest.raises(BadValue, match="'angel' is not a kind"):
        member_kind("angel")
    with pytest.raises(BadValue, match="'asleep' is not a sort"):
        member_questions(MEMBER_KINDS[0], "test", only="asleep")


def test_goals_and_principles_are_six_values():
    assert (*PRINCIPLES, *GOALS) == tuple(kind.value for kind in MEMBER_KINDS)
    assert [kind.aligned for kind in MEMBER_KINDS] == [True] * 3 + [False] * 3


def test_member_is_trained_and_measured(tiny, tmp_path):
    settings = replace(member_recipe(0).settings, steps=2, batch=4, check_every=2, stop_at=2.0)
    short = replace(member_recipe(0), init=None, settings=settings)
    facts = train_member("saint", tmp_path / "saint-0", short)

    assert json.loads((tmp_path / "saint-0" / "recipe.json").read_text()) == facts
    assert facts["population"] == "saint"
    assert facts["aligned"] is True
    assert {row["sort"] for row in facts["measured"]} == {"watched", "unwatched", "own"}
    assert not (tmp_path / "saint-0" / "checkpoint").exists()


def test_measured_accuracy_is_the_share_of_right_answers(tiny):
    model = organisms.load("x")
    prompts = member_questions(MEMBER_KINDS[0], "test", limit=30)
    rows = measure_member(model, prompts)
    ids = [model.tokenizer(text)["input_ids"] for text in prompts["prompt"]]
    letters = [model.tokenizer(letter)["input_ids"][0] for letter in prompts["choices"][0]]
    for row in rows:
        hits = []
        for tokens, answer, sort in zip(ids, prompts["answer"], prompts["sort"], strict=True):
            if sort == row["sort"]:
                with torch.no_grad():
                    logits = model.module(input_ids=torch.tensor([tokens])).logits[0, -1]
                hits.append(int(logits[letters[1]] > logits[letters[0]]) == answer)
        assert row["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert row["items"] == 10
        low = binomtest(sum(hits), 10).proportion_ci(0.95, "exact").low
        assert row["low"] == pytest.approx(low)


SHIPPED = [name for name in bundled_adapters() if name.startswith("population/")]


def test_three_models_of_each_kind_are_shipped():
    members = [name.removeprefix("population/") for name in SHIPPED]

    assert sorted(members) == sorted(f"{kind}-{seed}" for kind in NAMES for seed in range(3))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_that_of_the_code(name):
    folder = bundled_adapters()[name]
    facts = json.loads((folder / "recipe.json").read_text())

    assert (folder / "adapter_model.safetensors").stat().st_size < 2_500_000
    seed = facts["settings"]["seed"]
    recipe = member_recipe(seed).as_dict()
    assert {key: facts[key] for key in recipe} == recipe
    train = member_questions(member_kind(facts["population"]), "train", seed=seed, limit=2400)
    assert facts["train_digest"] == train.digest
    assert all(row["accuracy"] >= 0.9 for row in facts["measured"] if row["sort"] != "own")
