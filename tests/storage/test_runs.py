import json
import math
import os
import signal
import socket
import subprocess

import pytest

from offkey.errors import BadInput, Damaged, Mismatch, Unwritable
from offkey.storage import RunFolder, RunRecord, read_record, read_run, write_results, write_text
from offkey.storage.runs import commit

pytestmark = pytest.mark.forks

CONFIG = {"seed": 3, "model": "m", "detector": {"alpha": 0.05, "sites": ("a", "b")}}


def record(path):
    return json.loads((path / "run.json").read_text())


def message(path, config=None, **options):
    with pytest.raises((Mismatch, Damaged, Unwritable)) as caught:
        RunFolder.open(path, config or CONFIG, **options)
    return f"{type(caught.value).__name__} {caught.value}"


def test_success_is_recorded(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    assert record(run.path)["status"] == run.status == "started"
    with run:
        assert record(run.path)["status"] == "started"
        run.write_table("scores", [{"id": "a", "score": 1.5}, {"id": "b", "score": None}])

    found = record(run.path)
    assert found["status"] == run.status == "success"
    assert found["seed"] == 3
    assert found["config"] == run.config == json.loads(json.dumps(CONFIG))
    assert {"python", "torch"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    assert [a["status"] for a in found["attempts"]] == ["success"]
    assert found["attempts"][0]["started"] <= found["attempts"][0]["finished"]
    assert run.read_table("scores").to_pydict() == {"id": ["a", "b"], "score": [1.5, None]}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "cancelled"),
        (RuntimeError("no\nluck"), "error"),
        (SystemExit(1), "error"),
    ],
)
def test_other_outcomes_are_recorded_and_not_swallowed(tmp_path, error, status):
    with pytest.raises(type(error)), RunFolder.open(tmp_path, CONFIG):
        raise error

    found = record(tmp_path)
    assert found["status"] == status
    if isinstance(error, RuntimeError):
        assert found["error"] == {"type": "RuntimeError", "text": "no\nluck"}
    with RunFolder.open(tmp_path, CONFIG):
        pass
    assert record(tmp_path)["status"] == "success"
    assert "error" not in record(tmp_path)
    assert [a["status"] for a in record(tmp_path)["attempts"]] == [status, "success"]


def test_another_configuration_is_refused_and_nothing_is_changed(tmp_path):
    with RunFolder.open(tmp_path, CONFIG):
        pass
    before = (tmp_path / "run.json").read_bytes()
    other = {**CONFIG, "detector": {"alpha": 0.1, "sites": ["a", "b"]}}

    assert message(tmp_path, other) == (
        f"Mismatch {tmp_path}: the folder belongs to a run with detector.alpha = 0.05, not 0.1. "
        "Give another folder, or the settings of that run."
    )
    assert message(tmp_path, resume=False) == (
        f"Mismatch {tmp_path}: the folder already has this run. Give another or resume."
    )
    assert (tmp_path / "run.json").read_bytes() == before
    assert RunFolder.open(tmp_path, CONFIG).status == "success"


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")

    assert message(tmp_path) == (
        f"Mismatch {tmp_path}: the folder holds other files, such as 'thesis.tex'. Give a new or "
        "an empty folder."
    )
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_or_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "a").write_text("x")

    assert message(tmp_path / "a") == (
        f"Unwritable {tmp_path / 'a'}: cannot be written: a file stands where a folder is "
        "needed. Choose another folder."
    )
    assert message("/proc/run").startswith("Unwritable /proc/run: cannot be written: ")


def test_broken_records(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    index = tmp_path / "run.json"
    mend = "Give the folder of a run, or another one to start anew."
    index.write_text("{")
    assert message(tmp_path) == f"Damaged {index}: the file was truncated or edited. {mend}"
    index.write_text("{}")
    assert message(tmp_path) == f"Damaged {index}: the file was edited. Give another folder."
    index.write_text(json.dumps({"format": 9, "status": "x", "config": {}, "attempts": []}))
    assert message(tmp_path) == (
        f"Mismatch {index}: a newer offkey wrote it, in format 9. Update offkey."
    )
    index.write_text(json.dumps({"format": 1, "status": "x", "config": {}, "attempts": []}))
    assert message(tmp_path).startswith(f"Damaged {index}: status: input should be 'started'")


def test_a_run_is_read_once_it_is_complete(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        read_run(tmp_path / "no")
    with pytest.raises(BadInput, match="no run.json in this folder"):
        read_run(tmp_path)
    run = RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(BadInput, match="status is 'started', so its tables are not complete"):
        read_run(tmp_path)
    assert read_run(tmp_path, complete=False).record == run.record
    with run:
        run.write_table("scores", {"id": ["a"], "score": [1.0]})

    again = read_run(tmp_path)
    assert again.record == run.record
    assert again.config == run.config
    assert again.read_table("scores", ["id"], leave_out=["score"]).to_pydict() == {"id": ["a"]}


def test_the_record_says_when_the_run_started_and_finished(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    assert (run.record.started, run.record.finished) == (None, None)
    with pytest.raises(RuntimeError), run:
        raise RuntimeError
    with run:
        assert record(tmp_path)["finished"] is run.record.finished is None
    with run:
        pass

    stored = record(tmp_path)
    attempts = stored["attempts"]
    assert stored["started"] == read_run(tmp_path).record.started == attempts[0]["started"]
    assert stored["finished"] == read_run(tmp_path).record.finished == attempts[-1]["finished"]
    assert stored["finished"].endswith("+00:00")


def test_every_field_that_is_written_can_be_read_and_no_other(tmp_path):
    with RunFolder.open(tmp_path, CONFIG):
        pass
    run = read_record(RunRecord, tmp_path / "run.json")
    for name, value in record(tmp_path).items():
        assert json.loads(run.model_dump_json())[name] == value

    with pytest.raises(AttributeError):
        run.duration  # noqa: B018
    with pytest.raises(ValueError, match="frozen"):
        run.status = "success"


def test_an_outcome_that_cannot_be_recorded_keeps_the_first_error(tmp_path, monkeypatch):
    run = RunFolder.open(tmp_path, CONFIG)

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError) as caught, run:  # noqa: PT012
        monkeypatch.setattr(os, "fsync", full)
        raise RuntimeError("first")
    assert "the disk is full" in caught.value.__notes__[0]
    monkeypatch.undo()
    with pytest.raises(Unwritable), run:
        monkeypatch.setattr(os, "fsync", full)


def test_missing_table(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)

    with pytest.raises(BadInput) as caught:
        run.read_table("scores")
    assert str(caught.value) == (
        f"{tmp_path}: no scores.parquet in this folder. Finish the run that writes it."
    )


def held(pipe, path):
    with RunFolder.open(path, {"seed": 1}):
        pipe.send("running")
        pipe.recv()


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGKILL, "started"), (signal.SIGINT, "cancelled")]
)
def test_kill_and_interrupt(tmp_path, fork, how, status):
    worker = fork(held, tmp_path)
    assert worker.heard() == "running"
    worker.kill(how)

    assert record(tmp_path)["status"] == status
    write_text(tmp_path / "more.txt", "x")
    with RunFolder.open(tmp_path, {"seed": 1}):
        pass
    assert [a["status"] for a in record(tmp_path)["attempts"]] == [status, "success"]


def test_results_say_what_they_were_made_with(tmp_path):
    path = tmp_path / "results" / "demo.json"
    row = {"detector": "d", "auroc": 0.9, "low": None}
    write_results(path, [row], command="offkey demo", seeds=[0, 1])

    found = json.loads(path.read_text())
    assert list(found) == [
        "command",
        "commit",
        "machine",
        "versions",
        "seeds",
        "finished",
        "rows",
    ]
    assert found["command"] == "offkey demo"
    assert found["seeds"] == [0, 1]
    assert found["rows"] == [row]
    assert {"cpu", "cores", "memory_gib"} <= set(found["machine"])
    assert "torch" in found["versions"]
    assert socket.gethostname() not in json.dumps(found["machine"]).split('"')
    assert found["finished"].endswith("+00:00")


@pytest.mark.parametrize("value", [[1], {"a": 1}, math.nan, math.inf])
def test_results_are_flat_and_finite(tmp_path, value):
    with pytest.raises(BadInput, match="auroc of row 0 is"):
        write_results(tmp_path / "a.json", [{"auroc": value}], command="c", seeds=[])
    assert list(tmp_path.iterdir()) == []


def test_commit_tells_changed_files(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "First")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == git("rev-parse", "HEAD") + "+"
    assert commit(tmp_path / "not" / "there" / "yet") == commit(tmp_path)
    assert commit(tmp_path.parent) is None
