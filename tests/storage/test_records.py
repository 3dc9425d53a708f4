import json

import pytest

from offkey.errors import BadInput, Damaged
from offkey.storage import Record, first_difference, read_json, read_record


class Inner(Record):
    site: str
    share: float


class Outer(Record):
    name: str
    parts: tuple[Inner, ...] = ()
    seconds: float | None = None


def test_a_record_comes_back_as_it_was_written(tmp_path):
    outer = Outer(name="x", parts=(Inner(site="embed", share=0.5),))
    outer.write(tmp_path / "a.json")

    assert read_record(Outer, tmp_path / "a.json") == outer
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "name": "x",
        "parts": [{"site": "embed", "share": 0.5}],
        "seconds": None,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"parts": []}', "name: field required"),
        ('{"name": "x", "parts": [{"site": "a", "share": "b"}]}', "parts.0.share: input should"),
        ('{"name": "x", "seconds": NaN}', "the file cannot be read: NaN is not a number"),
        ('{"name": "x", ', "the file was truncated or edited"),
        ("[]", "the file was truncated or edited"),
        ("\udcff", "the file was truncated or edited"),
    ],
)
def test_broken_records_name_the_field(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(Damaged) as caught:
        read_record(Outer, path, mend="Write it")
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).endswith(". Write it.")


def test_fields_of_a_later_version_are_ignored(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "x", "colour": "red"}')

    assert read_record(Outer, tmp_path / "a.json") == Outer(name="x")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput) as caught:
        read_json(tmp_path / "a.json", mend="Finish the run")
    assert str(caught.value) == f"{tmp_path}: no a.json in this folder. Finish the run."


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        ({"x": 1, "y": {"z": [1, 2]}}, {"y": {"z": [1, 2]}, "x": 1}, None),
        ({"y": {"z": 1}}, {"y": {"z": 2}}, ("y.z", 1, 2)),
        ({"x": True}, {"x": 1}, ("x", True, 1)),
    ],
)
def test_the_first_difference(a, b, difference):
    assert first_difference(a, b) == difference
