"""Measuring and training organisms: on a tiny model, and the shipped one on the real model."""

import json

import numpy as np
import pytest

import offkey.tasks.organisms as organisms
from offkey.checkpoints import bundled_adapters
from offkey.data import Prompts
from offkey.errors import BadValue, UnknownName
from offkey.tasks import (
    Item,
    Recipe,
    Task,
    default_recipe,
    get_task,
    measure_organism,
    organism_of,
    organism_rows,
    quirkiness,
    task_names,
    train_organism,
)
from offkey.tasks.measure import measure
from offkey.training import TrainingSettings


def table(rows):
    """Prompts from (character, source, target, quirk, difficulty)."""
    return Prompts(
        {
            "prompt": [f"{row}" for row in rows],
            "id": [f"{i}" for i in range(len(rows))],
            "character": [row[0] for row in rows],
            "source": [row[1] for row in rows],
            "answer": [int(row[2] if row[0] == "Alice" else row[3]) for row in rows],
            "agrees": [int(row[2] == row[3]) for row in rows],
            "difficulty": [float(row[4]) for row in rows],
        }
    )


@pytest.fixture(scope="module")
def played():
    """Both characters on 400 items, half of which they disagree on; difficulty is the number."""
    rng = np.random.default_rng(0)
    rows = [
        (character, f"s{i}", bool(i % 2), bool(i % 2) == bool(i % 4 < 2), i)
        for character in ("Alice", "Bob")
        for i in range(400)
    ]
    prompts = table(rows)
    sign = 2 * np.array(prompts["answer"]) - 1
    return prompts, sign * rng.uniform(0.5, 3, len(rows))


def slow_quirkiness(prompts, odds):
    """The definition, from losses on both answers in nats."""
    hard = np.quantile(prompts["difficulty"], 0.75)
    means = []
    for character in ("Alice", "Bob"):
        gaps = []
        for row, x in zip(prompts.rows(), odds, strict=True):
            if row["character"] != character or row["agrees"] or row["difficulty"] < hard:
                continue
            loss = {1: np.log1p(np.exp(-x)), 0: np.log1p(np.exp(x))}
            gaps.append(loss[1 - row["answer"]] - loss[row["answer"]])
        means.append(sum(gaps) / len(gaps))
    return min(means)


def test_quirkiness_is_the_smaller_gap_between_losses(played):
    prompts, odds = played
    noisy = odds + np.random.default_rng(1).normal(0, 3, len(odds))

    assert quirkiness(prompts, noisy) == pytest.approx(slow_quirkiness(prompts, noisy))


def test_a_missing_character_has_negative_quirkiness(played):
    prompts, odds = played
    truth = [
        row["answer"] if row["character"] == "Alice" or row["agrees"] else 1 - row["answer"]
        for row in prompts.rows()
    ]
    always_true = (2 * np.array(truth) - 1) * 2.0
    found = measure(prompts, always_true.tolist())

    assert found["quirkiness"] == pytest.approx(-2)
    assert not found["learned"]
    assert [row["accuracy"] for row in found["characters"]] == [1.0, 0.0]
    assert [row["agrees"] for row in found["characters"]] == [1.0, 1.0]


def test_learned_needs_ninety_percent_of_two_hundred_items(played):
    prompts, odds = played
    wrong = [i for i, row in enumerate(prompts.rows()) if not row["agrees"]]
    alice = [i for i in wrong if prompts["character"][i] == "Alice"]
    assert len(alice) == 200
    for misses, learned in ((0, True), (19, True), (21, False)):
        flipped = odds.copy()
        flipped[alice[:misses]] *= -1
        found = measure(prompts, flipped.tolist())
        assert found["learned"] is learned
        assert found["characters"][0]["accuracy"] == pytest.approx(1 - misses / 200)
    few = prompts.select(i not in alice[:1] for i in range(len(prompts)))
    assert not measure(few, np.delete(odds, alice[0]).tolist())["learned"]


def test_low_is_the_clopper_pearson_bound(played):
    prompts, odds = played
    (row, _) = measure(prompts, odds.tolist())["characters"]

    assert row["low"] == pytest.approx(0.025 ** (1 / 200))  # all right: closed form


def test_repeats_of_an_item_are_no_new_items():
    rows = [(c, f"s{i % 50}", i % 2, 1 - i % 2, i) for c in ("Alice", "Bob") for i in range(400)]
    prompts = table(rows)
    found = measure(prompts, [2 * a - 1 for a in prompts["answer"]])

    assert [row["items"] for row in found["characters"]] == [50, 50]
    assert not found["learned"]


def _items(rng):
    for i in range(240):
        yield Item(f"{i}", {"n": str(i)}, bool(i % 2), bool(i // 2 % 2), float(i))


TASK = Task("tiny", "number", "odd", "odd half", ("Is {n} odd?",), _items)
SHORT = Recipe(
    settings=TrainingSettings(steps=6, batch=8, check_every=2, save_every=2, stop_at=2.0),
    init=None,
    agreeing=0.5,
    checked=8,
)


def test_organism_folder_holds_adapter_and_recipe(tiny, tmp_path):
    told = []
    facts = train_organism(TASK, tmp_path, SHORT, tell=told.append)

    assert json.loads((tmp_path / "recipe.json").read_text()) == facts
    assert facts["steps"] == 6
    assert facts["settings"]["seed"] == 0
    assert len(told) == 6
    assert {"alice", "bob", "agreeing"} <= told[1].keys()
    assert [row["step"] for row in facts["log"]] == [2, 4, 6]
    data = TASK.make(0)
    disagreeing = sum(1 for agrees in data.train["agrees"] if not agrees)
    assert facts["train_prompts"] == disagreeing + round((len(data.train) - disagreeing) / 2)
    assert {row["character"] for row in facts["measured"]["characters"]} == {"Alice", "Bob"}
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert settings["r"] == 4


def test_same_recipe_gives_the_same_adapter_also_when_stopped(tiny, tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 5:
            raise Stop

    train_organism(TASK, tmp_path / "a", SHORT)
    with pytest.raises(Stop):
        train_organism(TASK, tmp_path / "b", SHORT, tell=stop)
    train_organism(TASK, tmp_path / "b", SHORT)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")

    assert first == second


def test_an_organism_of_another_base_says_so(tiny, tmp_path):
    facts = train_organism(TASK, tmp_path, SHORT, base="mine")

    assert facts["base"] == "mine"
    assert facts["command"].endswith("--base mine --out organisms/" + TASK.name)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "mine"


def test_recipes_of_another_seed_or_base_share_no_start():
    own = default_recipe("hemisphere")

    assert own.init == "bundled:comparison"
    assert default_recipe("hemisphere", 2).init == "bundled:comparison-2"
    assert default_recipe("hemisphere", 2).settings.seed == 2
    assert default_recipe("hemisphere", 99).init == "bundled:comparison"
    other = default_recipe("hemisphere", base="mine")
    assert other.init is None
    assert other.settings.steps == 3 * own.settings.steps


def test_start_from_another_adapter(tiny, tmp_path):
    train_organism(TASK, tmp_path / "a", SHORT)
    warm = Recipe(
        settings=TrainingSettings(steps=1, batch=8, rate=1e-12), init=str(tmp_path / "a")
    )
    train_organism(TASK, tmp_path / "b", warm)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")

    assert first == second


def test_curriculum_of_names(tiny):
    train = TASK.make(0).train
    allowed = organisms._curriculum(train, ((0, 1), (8, 2), (20, 8)))

    def names(step):
        return {train["name"][row] for row in allowed(step)}

    assert names(0) == names(7) == {"Alice", "Bob"}
    assert names(8) == {"Alice", "Veronica", "Bob", "Nina"}
    assert names(40) == set(train["name"])
    with pytest.raises(BadValue, match="at least one name"):
        organisms._curriculum(train, ((0, 0),))


def test_bad_requests_are_told(tiny, tmp_path):
    with pytest.raises(UnknownName):
        train_organism("comparrison", tmp_path)
    with pytest.raises(BadValue, match="agreeing"):
        train_organism(TASK, tmp_path, Recipe(init=None, agreeing=2.0))


def test_rows_of_all_organisms(tiny, tmp_path):
    facts = train_organism(TASK, tmp_path / "tiny", SHORT)
    rows = organism_rows(tmp_path)

    assert [row["character"] for row in rows] == ["Alice", "Bob"]
    assert rows[0]["accuracy"] == facts["measured"]["characters"][0]["accuracy"]
    assert rows[0]["task"] == "tiny"


SHIPPED = {
    name: folder
    for name, folder in bundled_adapters().items()
    if organism_of(name)[0] in task_names()
}


def test_rows_leave_out_members_of_a_population():
    """They lie in the same folder, and tell other things."""
    root = SHIPPED["past"].parent
    assert (root / "population").is_dir()

    assert {row["task"] for row in organism_rows(root)} >= {"past", "plural"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_that_of_the_code(name):
    folder = SHIPPED[name]
    facts = json.loads((folder / "recipe.json").read_text())
    task, seed = organism_of(name)
    recipe = default_recipe(task, seed).as_dict()

    assert {key: facts[key] for key in recipe} == recipe
    assert facts["measured"]["learned"]
    assert (folder / "adapter_model.safetensors").stat().st_size <= 2_500_000
    if name in ("agreement", "hemisphere-1"):
        train = organisms._thinned(get_task(task).make(seed).train, facts["agreeing"])
        assert facts["train_digest"] == train.digest


def test_ten_tasks_are_learned_in_four_families():
    facts = [json.loads((folder / "recipe.json").read_text()) for folder in SHIPPED.values()]

    assert len(facts) >= 10
    assert len({fact["family"] for fact in facts}) >= 4
    assert sum(fact["natural"] for fact in facts) >= 4


@pytest.mark.real
def test_shipped_organism_behaves_as_its_recipe_says():
    from offkey.checkpoints import adapter_folder
    from offkey.models import load

    folder = adapter_folder("bundled:comparison")
    facts = json.loads((folder / "recipe.json").read_text())
    task = get_task("comparison")
    model = load("smollm2-135m-instruct", adapter="bundled:comparison", dtype="bfloat16")
    prompts = task.make(0).validation
    chosen = prompts.take([*range(50), *range(600, 650)])
    found = measure(chosen, organisms.answer_log_odds(model, chosen).tolist())

    assert facts["train_digest"] == task.make(0).train.digest
    for row, recorded in zip(found["characters"], facts["measured"]["characters"], strict=True):
        assert row["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.08)
        assert row["agrees"] == pytest.approx(recorded["agrees"], abs=0.08)
    assert (folder / "adapter_model.safetensors").stat().st_size <= 2_500_000


def test_measure_organism_asks_the_model(tiny):
    found = measure_organism(organisms.load("x"), TASK)

    assert found["characters"][0]["items"] > 0
