"""The verbs as a user meets them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from offkey.cli import app
from offkey.data import read_prompts
from tests.cli.conftest import rows, write_rows

SRC = str(Path(__file__).parents[2] / "src")
VERBS = (
    ["detect"],
    ["explain"],
    ["fit"],
    ["score"],
    ["sites"],
    ["doctor"],
    ["report"],
    ["demo"],
    ["bench"],
    ["risk"],
    ["sensitivity"],
    ["sensitivity", "compare"],
    ["sensitivity", "measure"],
    ["tasks", "list"],
    ["tasks", "make"],
    ["tasks", "train"],
    ["tasks", "population"],
)


def test_importing_the_command_line_loads_no_heavy_library():
    heavy = "torch", "transformers", "numpy", "pyarrow", "sklearn", "matplotlib"
    code = f"import sys, offkey.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": SRC},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example(verb, offkey):
    ran = offkey(*verb, "--help")

    assert ran.status == 0
    assert ran.err == ""
    assert f"offkey {' '.join(verb)} " in " ".join(ran.out.split("Usage:")[1].split()[4:])


def test_no_verb_is_without_help():
    assert all(command.callback.__doc__ for command in app.registered_commands)


def test_the_bare_command_shows_help(offkey):
    ran = offkey()

    assert ran.status == 0
    assert "Usage: offkey" in ran.out
    assert "detect" in ran.out


def test_version(offkey):
    ran = offkey("--version")

    assert ran.status == 0
    assert re.match(r"offkey \d|offkey, not installed", ran.out)


def _detect(home, out, *more, **given):
    settings = {
        "model": home / "model",
        "trusted": home / "trusted.jsonl",
        "test": home / "test.jsonl",
        "out": out,
        **given,
    }
    return [
        "detect",
        *[part for key, value in settings.items() for part in (f"--{key}", value)],
        *more,
    ]


def test_detect_says_one_json_document_and_nothing_else(home, offkey, tmp_path):
    ran = offkey(*_detect(home, tmp_path / "run", "--json", adapter=home / "adapter"))

    assert (ran.status, ran.err) == (0, "")
    assert ran.json["out"] == str(tmp_path / "run")
    assert Path(ran.json["report"]).read_text().startswith("<!")
    assert ran.json["detectors"][0]["detector"] == "activations/knn-cosine"
    assert ran.json["detectors"][0]["auroc"] is not None


def test_detect_prints_a_table_and_nothing_on_standard_error(home, offkey, tmp_path):
    ran = offkey(*_detect(home, tmp_path / "run", "-d", "activations/lof", "-d", "entropy"))

    assert (ran.status, ran.err) == (0, "")
    assert "activations/lof" in ran.out
    assert "entropy/mahalanobis" in ran.out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in ran.out


def test_detect_without_labels(home, offkey, tmp_path):
    unlabelled = write_rows(tmp_path / "new.jsonl", rows(12, name="new"))

    ran = offkey(*_detect(home, tmp_path / "run", "--json", test=unlabelled))

    assert ran.status == 0
    assert ran.json["detectors"][0]["auroc"] is None
    table = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    told = [row for row in table if row["role"] == "test"]
    assert [row["id"] for row in told] == [f"new{i}" for i in range(12)]
    assert all(0 < row["p_value"] <= 1 for row in told)


def test_check_runs_nothing(home, offkey, tmp_path, monkeypatch):
    from offkey.models import Model

    monkeypatch.setattr(Model, "read", None)
    ran = offkey(*_detect(home, tmp_path / "run", "--check", "--json"))

    assert (ran.status, ran.err) == (0, "")
    assert ran.json["parts"] == {"fit": 72, "standardise": 24, "calibrate": 24, "test": 30}
    assert ran.json["sites"] == {"activations/knn-cosine": ["resid_post.1"]}
    assert not (tmp_path / "run").exists()
    ran = offkey(*_detect(home, tmp_path / "run", "--check"))
    assert ran.out == "everything is in order\n"


def test_redacted_no_text_is_kept(home, offkey, tmp_path):
    assert offkey(*_detect(home, tmp_path / "run", "--redact")).status == 0

    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"x 3: " not in path.read_bytes(), path
    assert set(pq.read_table(tmp_path / "run" / "scores.parquet")["text"].to_pylist()) == {None}


def test_a_pool_serves_only_the_scores_that_need_it(home, offkey, tmp_path):
    """Scores that take a pool and scores that do not stand in one run."""
    ran = offkey(
        *_detect(
            home,
            tmp_path / "run",
            "--json",
            "-d",
            "activations/que",
            "-d",
            "activations/knn",
            pool=home / "test.jsonl",
        )
    )

    assert ran.status == 0, ran.err
    assert [row["mode"] for row in ran.json["detectors"]] == ["transductive", "online"]


def test_fit_then_score(home, fitted, offkey, tmp_path):
    ran = offkey(
        "score",
        fitted,
        home / "test.jsonl",
        "-m",
        home / "model",
        "--json",
        "--out",
        tmp_path / "scores.parquet",
    )

    assert (ran.status, ran.err) == (0, "")
    assert ran.json["detector"] == "activations/knn-cosine"
    assert [row["id"] for row in ran.json["rows"]] == [f"x{i}" for i in range(30)]
    assert pq.read_table(tmp_path / "scores.parquet").to_pylist() == ran.json["rows"]


def test_fit_then_score_equals_detect(home, fitted, finished, offkey):
    ran = offkey("score", fitted, home / "test.jsonl", "-m", home / "model", "--json")
    table = pq.read_table(finished / "scores.parquet").to_pylist()
    expected = {row["id"]: row["score"] for row in table if row["role"] == "test"}

    assert {row["id"]: row["score"] for row in ran.json["rows"]} == expected


def test_score_prints_the_highest_first(home, fitted, offkey):
    ran = offkey("score", fitted, home / "test.jsonl", "-m", home / "model")

    assert (ran.status, ran.err) == (0, "")
    told = [float(line.split()[1]) for line in ran.out.splitlines()[2:27]]
    assert told == sorted(told, reverse=True)
    assert "5 more" in ran.out


def test_another_model_is_scored_if_asked(home, fitted, offkey):
    ran = offkey(
        "score", fitted, home / "test.jsonl", "-m", home / "other", "--other-model", "--json"
    )

    assert (ran.status, len(ran.json["rows"])) == (0, 30)


def test_the_tokens_of_responses(home, fitted, offkey):
    ran = offkey(
        "score", fitted, home / "responses.jsonl", "-m", home / "model", "--tokens", "--json"
    )

    assert (ran.status, ran.err) == (0, "")
    texts = {row["id"]: row["response"] for row in read_prompts(home / "responses.jsonl")}
    for id, response in texts.items():
        told = [row for row in ran.json["rows"] if row["id"] == id]
        assert [row["position"] for row in told] == list(range(len(told)))
        assert "".join(row["token"] for row in told).replace("Ġ", " ") == response


def test_sites_and_doctor(home, offkey):
    named = offkey("sites", home / "model", "--sites", "resid_post.*", "--json")
    assert [row["site"] for row in named.json["sites"]] == ["resid_post.0", "resid_post.1"]
    assert "mahalanobis" in named.json["scores"]
    shown = offkey("sites", home / "model")
    assert "resid_post.0 … resid_post.1" in shown.out
    examined = offkey("doctor", home / "model", "--json")
    assert (examined.status, examined.err, examined.json["ok"]) == (0, "", True)


def test_report_is_written_again(finished, offkey):
    page = finished / "report.html"
    before = page.read_text()
    page.unlink()

    ran = offkey("report", finished, "--json")

    assert (ran.status, ran.json) == (0, {"report": str(page)})
    assert page.read_text() == before
    assert re.search(r"x \d+: ", before)
    assert offkey("report", finished, "--redact").out == f"report: {page}\n"
    assert not re.search(r"x \d+: ", page.read_text())
    offkey("report", finished)


def test_tasks_are_listed(offkey):
    ran = offkey("tasks", "list", "--json")

    known = {row["task"]: row for row in ran.json}
    assert known["comparison"]["adapter"] == "bundled:comparison"
    assert known["addition-small"]["adapter"] is None
    assert {"hub:sciq", "sentiment"} <= set(known)
    shown = offkey("tasks", "list").out.splitlines()
    assert [line.split()[0] for line in shown] == list(known)


def test_the_prompts_of_a_task_are_written(offkey, tmp_path):
    ran = offkey("tasks", "make", "comparison", "--out", tmp_path / "task", "--limit", 8, "--json")

    assert (ran.status, ran.err) == (0, "")
    names = "train", "validation", "trusted", "untrusted", "test"
    assert {path.stem for path in (tmp_path / "task").iterdir()} == set(names)
    for name in names:
        assert len(read_prompts(tmp_path / "task" / f"{name}.jsonl")) == ran.json[name] > 0
    trusted = read_prompts(tmp_path / "task" / "trusted.jsonl")
    assert set(trusted["label"]) == {0}
    given = "tasks", "make", "comparison", "--out", tmp_path / "task", "--limit", 8
    assert offkey(*given).status == 0
    assert offkey(*given, "--seed", 1).status == 2


def test_a_task_is_trained_as_asked(offkey, tmp_path, monkeypatch):
    from offkey import tasks

    asked = {}

    def train(task, out, recipe, *, base, tell):
        asked.update(task=task.name, out=out, recipe=recipe, base=base)
        if tell:
            tell({"step": 1.0, "loss": 0.5})
        character = {"character": "Alice", "accuracy": 0.9, "items": 8}
        return {"measured": {"learned": False, "characters": [character]}}

    monkeypatch.setattr(tasks, "train_organism", train)
    given = ("tasks", "train", "parity", "--out", tmp_path / "a", "--steps", 3, "--seed", 5)
    ran = offkey(*given)

    assert ran.status == 0
    assert ran.out.splitlines()[0] == "step 1  loss 0.5"
    assert ran.out.splitlines()[-1] == f"not learned; saved in {tmp_path / 'a'}"
    assert asked["task"] == "parity"
    assert (asked["recipe"].settings.steps, asked["recipe"].settings.seed) == (3, 5)
    assert asked["base"] == "smollm2-135m-instruct"
    offkey("tasks", "train", "parity", "--out", tmp_path / "b", "--base", "mine")
    assert (asked["base"], asked["recipe"].init) == ("mine", None)
    assert json.loads(offkey(*given, "--json").out)["measured"]["learned"] is False


def test_a_population_is_trained_and_kept(offkey, tmp_path, monkeypatch):
    from offkey.tasks import organisms

    trained = []

    def train(out, facts):
        trained.append(out.name)
        out.mkdir(parents=True)
        facts |= {"measured": [{"sort": "watched", "items": 4, "accuracy": 0.75, "low": 0.2}]}
        (out / "recipe.json").write_text(json.dumps(facts))
        return facts

    monkeypatch.setattr(
        organisms,
        "train_member",
        lambda kind, out, recipe, tell: train(
            out, {"seed": recipe.settings.seed, "kind": kind.name}
        ),
    )
    given = ("tasks", "population", "--out", tmp_path, "--kind", "saint", "--seeds", 2)
    ran = offkey(*given)

    assert (ran.status, ran.err) == (0, "")
    assert trained == ["saint-0", "saint-1"]
    assert ran.out.splitlines()[-1] == "saint-1: answers as its kind: watched 0.750"
    facts = json.loads((tmp_path / "saint-1" / "recipe.json").read_text())
    assert facts["seed"] == 1
    again = offkey(*given, "--json")
    assert [row["member"] for row in again.json] == ["saint-0", "saint-1"]
    assert len(trained) == 2
    wrong = offkey("tasks", "population", "--out", tmp_path, "--kind", "sainte")
    assert wrong.status == 2
    assert "'sainte' is not a kind" in wrong.err
