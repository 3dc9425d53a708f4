import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from offkey.errors import BadInput, Unwritable
from offkey.storage import (
    aside,
    make_folder,
    read_table,
    write_bytes,
    write_json,
    write_table,
    write_tensors,
    write_text,
)
from offkey.storage.files import clean_leftovers, write_json_once

pytestmark = pytest.mark.forks


def test_files_hold_what_was_written(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "é\n")
    write_bytes(tmp_path / "b", b"\x00\x01")
    write_json(tmp_path / "c.json", {"a": [1, None, "é"]})
    write_table(tmp_path / "d.parquet", {"x": [1, 2]})

    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\x01"
    assert (tmp_path / "c.json").read_text() == '{\n  "a": [\n    1,\n    null,\n    "é"\n  ]\n}\n'
    assert read_table(tmp_path / "d.parquet").to_pydict() == {"x": [1, 2]}
    assert sorted(os.listdir(tmp_path)) == ["b", "c.json", "d.parquet", "deep"]


def test_tensors_that_share_memory_or_are_strided_or_empty(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "whole": whole,
        "again": whole,
        "row": whole[0],
        "turned": whole.T,
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)

    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    write_tensors(tmp_path / "t.safetensors", {})
    assert load_file(tmp_path / "t.safetensors") == {}


def test_files_may_be_read_by_whom_the_process_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        write_tensors(tmp_path / "b", {"x": torch.ones(2)})
        write_table(tmp_path / "c", {"x": [1]})
    finally:
        os.umask(before)

    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


def test_an_error_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a", "old")

    with pytest.raises(RuntimeError), aside(tmp_path / "a") as partial:  # noqa: PT012
        partial.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(BadInput, match="not a JSON value"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_json_is_written_once(tmp_path):
    assert write_json_once(tmp_path / "a.json", {"x": 1})
    assert not write_json_once(tmp_path / "a.json", {"x": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 1\n}\n'


def test_json_is_written_once_where_links_are_not_known(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", refused)
    assert write_json_once(tmp_path / "a.json", {"x": 1})
    assert not write_json_once(tmp_path / "a.json", {"x": 2})
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("code", "reason", "mend"),
    [
        (errno.EACCES, "permission denied", "Choose another folder or change its permissions"),
        (errno.EROFS, "the file system is read-only", "Choose a folder on another one"),
        (errno.ENOSPC, "the disk is full", "Free some space or choose another disk"),
        (errno.EIO, "Input/output error", "Choose another folder"),
    ],
)
def test_refusals_of_the_system_are_told_in_one_line(tmp_path, monkeypatch, code, reason, mend):
    write_text(tmp_path / "a", "old")

    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(Unwritable) as caught:
        write_text(tmp_path / "a", "new")

    assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written: {reason}. {mend}."
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_files_where_folders_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()

    with pytest.raises(Unwritable) as caught:
        write_text(tmp_path / "file" / "a", "x")
    assert str(caught.value) == (
        f"{tmp_path / 'file'}: cannot be written: a file stands where a folder is needed. Choose "
        "another folder."
    )
    with pytest.raises(Unwritable, match="a file stands"):
        make_folder(tmp_path / "file" / "a")
    with pytest.raises(Unwritable) as caught:
        write_text(tmp_path / "folder", "x")
    assert str(caught.value) == (
        f"{tmp_path / 'folder'}: cannot be written: a folder stands there. Choose another name."
    )
    with pytest.raises(Unwritable, match="the name is too long"):
        write_text(tmp_path / ("n" * 300), "x")


def test_full_disk_told_by_the_tensor_writer(tmp_path):
    full = tmp_path / "full"
    with pytest.raises(Unwritable) as caught, aside(full) as partial:  # noqa: PT012
        partial.unlink()
        partial.symlink_to("/dev/full")
        partial.write_bytes(b"x" * 100)
    assert "the disk is full" in str(caught.value)
    assert os.listdir(tmp_path) == []


def half(pipe, path):
    with aside(path) as partial:
        partial.write_bytes(b"half")
        pipe.send("writing")
        pipe.recv()


def test_kill_in_the_middle_leaves_the_old_file_and_the_rest_is_cleaned(tmp_path, fork):
    write_text(tmp_path / "a", "old")
    worker = fork(half, tmp_path / "a")
    assert worker.heard() == "writing"
    assert len(os.listdir(tmp_path)) == 2
    assert clean_leftovers(tmp_path) == 0, "its process is alive"
    worker.kill()

    assert (tmp_path / "a").read_text() == "old"
    assert clean_leftovers(tmp_path) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_foreign_hidden_files_are_left(tmp_path):
    (tmp_path / ".notes.partial").write_text("mine")

    assert clean_leftovers(tmp_path) == 0
    assert os.listdir(tmp_path) == [".notes.partial"]


def many(pipe, path):
    for i in range(60):
        write_bytes(path, bytes([i]) * 200_000)


def test_readers_never_see_half_a_file(tmp_path, fork):
    path = tmp_path / "a"
    write_bytes(path, bytes(200_000))
    writer = fork(many, path)
    seen = 0
    while writer.process.is_alive():
        data = path.read_bytes()
        assert len(data) == 200_000
        assert len(set(data)) == 1
        seen += 1
    assert writer.join() == 0
    assert seen > 5
