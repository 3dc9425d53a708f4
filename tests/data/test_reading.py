import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offkey.data import Prompts, read_prompts
from offkey.errors import BadInput

ROWS = [
    {"prompt": "a, b", "choices": [" Yes", " No"], "target": 1, "label": 0, "note": "x"},
    {"prompt": "c\nd é", "choices": [" Yes", " No"], "target": 0, "label": 1, "note": "y"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_formats_give_the_same_prompts(folder):
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with (folder / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "p.parquet")

    expected = Prompts({name: [row[name] for row in ROWS] for name in ROWS[0]})
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        assert read_prompts(name) == expected, name
    assert read_prompts("p.jsonl").places == ("p.jsonl:1", "p.jsonl:2")
    assert read_prompts("p.csv").places == ("p.csv:2", "p.csv:3")
    assert read_prompts(folder / "p.parquet").places[1].endswith("p.parquet row 2")


def test_blank_lines_byte_order_mark_and_windows_line_ends(folder):
    (folder / "p.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    (folder / "p.csv").write_bytes(b"\xef\xbb\xbfprompt,label\r\na,true\r\n\r\nb,\r\n")

    assert read_prompts("p.jsonl")["prompt"] == ("a", "b")
    assert read_prompts("p.jsonl").places == ("p.jsonl:2", "p.jsonl:4")
    assert read_prompts("p.csv")["label"] == (1, None)


def test_chats_are_read_from_jsonl_and_csv(folder):
    chat = [{"role": "user", "content": "hi"}]
    (folder / "p.jsonl").write_text(json.dumps({"messages": chat}))
    with (folder / "p.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(chat)]])

    assert read_prompts("p.jsonl") == read_prompts("p.csv") == Prompts({"messages": [chat]})


def test_line_separators_inside_texts_do_not_end_a_line(folder):
    text = "a\u2028b\x85c"
    (folder / "p.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False))

    assert read_prompts("p.jsonl")["prompt"] == (text,)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b"", "t.jsonl: the file is empty. Give it at least one row."),
        ("t.csv", b" \n\n", "t.csv: the file is empty. Give it at least one row."),
        (
            "t.csv",
            b"prompt,label\n",
            "t.csv: the file holds no prompts. Give it at least one row.",
        ),
        (
            "t.jsonl",
            b'{"prompt": "a"}\n{"prompt": "b",}\n',
            "t.jsonl:2: broken JSON: Expecting property name enclosed in double quotes at column "
            "16. Write one JSON object a line.",
        ),
        (
            "t.jsonl",
            b'{"prompt": "a", "n": NaN}',
            "t.jsonl:1: broken JSON: NaN is not a JSON value. Write null.",
        ),
        (
            "t.jsonl",
            b'["a"]',
            't.jsonl:1: a JSON list, not an object. Write one object a line, such as {"prompt": '
            '"2 + 2 ="}.',
        ),
        (
            "t.jsonl",
            b'\n{"prompt": "\xff"}',
            "t.jsonl:2: not UTF-8: byte 0xff at column 13. Save the file as UTF-8.",
        ),
        (
            "t.csv",
            b"prompt\n\xe9",
            "t.csv:2: not UTF-8: byte 0xe9 at column 1. Save the file as UTF-8.",
        ),
        (
            "t.jsonl",
            b'{"prompt": "a"}\n{"prompt": "b", "label": "bad"}',
            "t.jsonl:2: label is 'bad', not 0 or 1. Use 1 for anomalous and 0 for normal.",
        ),
        (
            "t.csv",
            b'prompt,label\n"a\nb",0\nc,yes',
            "t.csv:4: label is 'yes', not 0 or 1. Use 1 for anomalous and 0 for normal.",
        ),
        (
            "t.jsonl",
            b'{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}',
            "t.jsonl:2: id 'x' was already used at t.jsonl:1. Give every prompt its own id, or "
            "leave the ids out.",
        ),
        (
            "t.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}',
            "t.jsonl:2: neither 'prompt' nor 'messages' is there. Add one of the two.",
        ),
        (
            "t.jsonl",
            b'{"prompt": "a", "lable": 1}',
            "t.jsonl: unknown field 'lable'. Did you mean 'label'?",
        ),
        (
            "t.csv",
            b"prompt,label\na,0,1",
            "t.csv:2: 3 fields where the header has 2. Put a field that holds a comma or a line "
            "break into double quotes.",
        ),
        ("t.csv", b'prompt\n"a', "t.csv:2: broken CSV: unexpected end of data."),
        ("t.csv", b"prompt,prompt\na,b", "t.csv:1: two columns are called 'prompt'. Rename one."),
        (
            "t.csv",
            b"prompt,choices\na,Yes",
            't.csv:2: choices is not a JSON list: Expecting value. Use ["Yes", "No"].',
        ),
        (
            "t.txt",
            b"a",
            "t.txt: unknown kind of file '.txt'. Use .jsonl, .ndjson, .json, .csv, .parquet or "
            "hf:NAME.",
        ),
    ],
)
def test_broken_files_are_told_in_one_line(folder, name, data, message):
    (folder / name).write_bytes(data)

    with pytest.raises(BadInput) as caught:
        read_prompts(name)

    assert str(caught.value) == message


def test_truncated_parquet(folder):
    pq.write_table(pa.table({"prompt": ["a"] * 100}), folder / "t.parquet")
    data = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(data[:-20])

    with pytest.raises(BadInput, match=r"^t.parquet: not a whole Parquet file"):
        read_prompts("t.parquet")


def test_missing_file_names_the_nearest(folder):
    (folder / "trusted.jsonl").write_text('{"prompt": "a"}')

    with pytest.raises(BadInput) as caught:
        read_prompts("trustd.jsonl")
    assert str(caught.value) == "trustd.jsonl: no such file. Did you mean trusted.jsonl?"
    with pytest.raises(BadInput) as caught:
        read_prompts("nowhere/x.csv")
    assert str(caught.value) == "nowhere/x.csv: no such file. There is no folder 'nowhere' either."
    (folder / "inner").mkdir()
    with pytest.raises(BadInput) as caught:
        read_prompts("inner")
    assert (
        str(caught.value) == "inner: a folder, not a file. Give a file, or hf:inner for a dataset."
    )


def test_file_as_folder(folder):
    (folder / "a").write_text("x")

    with pytest.raises(BadInput, match="cannot be read"):
        read_prompts("a/x.jsonl")
