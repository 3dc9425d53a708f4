import json
import math
import socket
import subprocess

import pyarrow as pa
import pytest
import torch

from offkey.errors import BadInput, Damaged, Mismatch
from offkey.storage import commit, read_table, write_results, write_table

ROWS = [{"id": "a", "score": 0.5, "flagged": True}, {"id": "b", "score": None, "worst": "x"}]
EXPECTED = {
    "id": ["a", "b"],
    "score": [0.5, None],
    "flagged": [True, None],
    "worst": [None, "x"],
}


def test_rows_columns_and_tables(tmp_path):
    path = tmp_path / "scores.parquet"

    write_table(path, ROWS, version=2)
    assert read_table(path, version=2).to_pydict() == EXPECTED
    write_table(path, {"x": torch.tensor([1.5, 2.5]), "y": ("a", "b")})
    assert read_table(path).to_pydict() == {"x": [1.5, 2.5], "y": ["a", "b"]}
    write_table(path, pa.table({"x": [1]}))
    assert json.loads(read_table(path).schema.metadata[b"offkey"]) == {
        "table": "scores",
        "version": 1,
    }
    write_table(path, [])
    assert read_table(path).num_rows == 0


def test_nan_is_refused_and_infinity_kept(tmp_path):
    with pytest.raises(ValueError, match="'score' .* holds NaN"):
        write_table(tmp_path / "a.parquet", {"score": [1.0, math.nan]})
    write_table(tmp_path / "a.parquet", {"score": [1.0, math.inf]})
    assert read_table(tmp_path / "a.parquet")["score"].to_pylist() == [1.0, math.inf]


def test_newer_schema(tmp_path):
    write_table(tmp_path / "a.parquet", ROWS, version=2)

    with pytest.raises(Mismatch) as caught:
        read_table(tmp_path / "a.parquet")
    assert str(caught.value) == (
        f"{tmp_path / 'a.parquet'}: the table has version 2 of its schema, known is 1. Update "
        "offkey."
    )


def test_truncated_and_edited_tables(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, {"x": [float(i) for i in range(1000)]})
    data = path.read_bytes()

    for broken in (data[:-9], b"", data[:100] + bytes([data[100] ^ 1]) + data[101:]):
        path.write_bytes(broken)
        with pytest.raises(Damaged) as caught:
            read_table(path)
        assert str(caught.value) == (f"{path}: the table was truncated or edited. Write it again.")


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
