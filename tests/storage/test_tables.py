import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from offkey.errors import Damaged, Mismatch
from offkey.storage import read_table, write_table

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


def test_columns_that_must_be_there_and_those_left_out(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, {"id": ["a", "b"], "text": ["x", "y"], "score": [1.0, 2.0]})

    assert read_table(path, ["id"], leave_out=["text"]).to_pydict() == {
        "id": ["a", "b"],
        "score": [1.0, 2.0],
    }
    with pytest.raises(Damaged) as caught:
        read_table(path, ["id", "p_value"])
    assert str(caught.value) == f"{path}: column 'p_value' is missing. Write it again."


def test_rows_by_filter(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, {"id": ["a", "b", "c"], "role": ["test", "test", "calibration"]})

    assert read_table(path, filters=[("role", "==", "test")])["id"].to_pylist() == ["a", "b"]
    wanted = [("role", "==", "test"), ("id", "in", ["b", "c"])]
    assert read_table(path, filters=wanted)["id"].to_pylist() == ["b"]


def test_nan_of_another_writer_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, {"score": [1.0, 2.0]})
    table = read_table(path)
    edited = table.set_column(0, "score", pa.array([1.0, math.nan]))
    pq.write_table(edited.replace_schema_metadata(table.schema.metadata), path)

    with pytest.raises(Damaged, match="'score' holds NaN; a missing number is null"):
        read_table(path)
