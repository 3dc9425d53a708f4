"""A run that is stopped, killed or shared ends in the same tables."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offkey.cli import main
from offkey.storage import ShardFolder, read_run
from tests.cli.conftest import rows, write_rows

pytestmark = pytest.mark.forks

SRC = str(Path(__file__).parents[2] / "src")
FORK = multiprocessing.get_context("fork")
DETECTORS = ("activations/mahalanobis", "activations/knn", "entropy/mahalanobis")


@pytest.fixture(scope="module")
def large(home):
    """Prompts enough for several shards of each set."""
    write_rows(home / "many.jsonl", rows(600, name="m"))
    write_rows(home / "more.jsonl", rows(300, name="n", label=lambda i: i % 2))
    return home


def _command(large, out):
    given = (
        "-m",
        large / "model",
        "--trusted",
        large / "many.jsonl",
        "--test",
        large / "more.jsonl",
        "--out",
        out,
    )
    named = [part for name in DETECTORS for part in ("-d", name)]
    return ["detect", *map(str, given), *named, "--json"]


def _child(command, environment):
    os.environ.update(environment)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    main(command)


def start(large, out, **environment):
    """The command in a process of its own, forked so that no library is loaded anew."""
    process = FORK.Process(target=_child, args=(_command(large, out), environment))
    process.start()
    return process


def finish(process):
    process.join(120)
    return process.exitcode


def shard_count(out):
    return len(list(out.glob("rows/*/*/shard-*.safetensors")))


def what_stands(out):
    """Everything of a run but its times."""
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["seconds"]
    return {
        "scores": (out / "scores.parquet").read_bytes(),
        "sites": (out / "site_scores.parquet").read_bytes(),
        "metrics": metrics,
        "shards": {
            str(path.parent.relative_to(out)): _digest(path.parent)
            for path in sorted(out.glob("rows/*/*/shards.json"))
        },
    }


def _digest(folder):
    settings = json.loads((folder / "shards.json").read_text())["fingerprint"]
    return ShardFolder(folder, settings).digest(len(list(folder.glob("shard-*"))))


@pytest.fixture(scope="module")
def undisturbed(large, tmp_path_factory):
    """What a run in one go leaves, and how many seconds it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    main(_command(large, out))  # here, so that the children find every library loaded
    begun = time.perf_counter()
    assert finish(start(large, out.with_name("again"))) == 0
    seconds = time.perf_counter() - begun
    assert what_stands(out.with_name("again")) == what_stands(out)
    assert shard_count(out) == 5
    return what_stands(out), seconds


@pytest.mark.parametrize("moment", [0.15, 0.4, 0.65, 0.9])
def test_killed_at_any_moment_it_goes_on_to_the_same_tables(moment, large, undisturbed, tmp_path):
    expected, seconds = undisturbed
    out = tmp_path / "run"
    process = start(large, out)
    time.sleep(moment * seconds)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    done = {path: path.stat().st_mtime_ns for path in out.glob("rows/*/*/shard-*.safetensors")}
    if (out / "run.json").exists():
        assert read_run(out, complete=False).status in ("started", "success")

    assert finish(start(large, out)) == 0

    assert what_stands(out) == expected
    assert read_run(out, complete=False).status == "success"
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert not list(out.rglob(".*.partial"))


def test_interrupted_it_is_cancelled_and_goes_on(large, undisturbed, tmp_path):
    expected, _ = undisturbed
    out = tmp_path / "run"
    process = start(large, out)
    while shard_count(out) < 1:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)

    assert finish(process) == 130
    assert read_run(out, complete=False).status == "cancelled"
    assert not (out / "report.html").exists()
    assert finish(start(large, out)) == 0
    assert what_stands(out) == expected
    assert [a.status for a in read_run(out, complete=False).record.attempts] == [
        "cancelled",
        "success",
    ]


def test_interrupted_it_says_how_to_go_on(large, tmp_path, offkey, monkeypatch):
    from offkey.detect import DetectionRun

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DetectionRun, "run", interrupted)
    ran = offkey(*_command(large, tmp_path / "run"))

    assert ran.status == 130
    assert ran.out == ""
    assert ran.err == "stopped; give the same command again to resume the run\n"


@pytest.mark.parametrize("killed", [0, 1])
def test_two_workers_one_of_them_killed_leave_the_bytes_of_one(
    killed, large, undisturbed, tmp_path
):
    expected, _ = undisturbed
    out = tmp_path / "run"
    pair = [start(large, out, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    while shard_count(out) < 2:
        assert all(process.is_alive() for process in pair)
        time.sleep(0.002)
    for process in (pair[killed], pair[1 - killed]):  # a launcher ends the others too
        process.kill()
        finish(process)

    pair = [start(large, out, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [finish(process) for process in pair] == [0, 0]
    assert what_stands(out) == expected


def test_under_torchrun_two_workers_leave_the_bytes_of_one(large, undisturbed, tmp_path):
    out = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "offkey",
    ]
    paths = os.pathsep.join([SRC, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*launcher, *_command(large, out)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(out)
    assert what_stands(out) == undisturbed[0]


def test_a_finished_run_given_again_stays_as_it_is(large, undisturbed, tmp_path):
    out = tmp_path / "run"
    assert finish(start(large, out)) == 0
    before = what_stands(out)
    assert before == undisturbed[0]

    assert finish(start(large, out)) == 0

    assert what_stands(out) == before
