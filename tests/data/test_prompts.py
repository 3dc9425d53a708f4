# ruff: noqa: E501  (a message is one line)
import datetime
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offkey.data import Prompts, read_prompts
from offkey.errors import BadInput, OffkeyError, UnknownName


def full() -> Prompts:
    return Prompts(
        {
            "prompt": ["2 + 2 =", "2 + 3 =", "capital:"],
            "id": ["a", "b", 7],
            "choices": [[" 4", " 5"], [" 4", " 5"], None],
            "target": [0, 1, None],
            "label": [0, True, None],
            "agrees": [1, 0, None],
            "source": ["x", "x", None],
            "note": [{"k": [1, 2]}, None, "é"],
        }
    )


def test_columns_are_normal_and_ordered():
    prompts = full()

    assert len(prompts) == 3
    assert prompts.columns[:2] == ("id", "prompt")
    assert prompts.columns[-1] == "note"
    assert prompts.ids == ("a", "b", "7")
    assert prompts["label"] == (0, 1, None)
    assert prompts["source"] == ("x", "x", "7")
    assert prompts["choices"][0] == (" 4", " 5")
    assert "target" in prompts
    assert "response" not in prompts
    assert repr(prompts).startswith("Prompts(3 rows: id, prompt, choices")
    assert [row["prompt"] for row in prompts] == list(prompts["prompt"])


def test_default_ids_count_repeats_which_share_a_source():
    prompts = Prompts({"prompt": ["a", "b", "a"]})

    first, other, again = prompts.ids
    assert first.endswith("-1")
    assert again.endswith("-2")
    assert first[:-2] == again[:-2] != other[:-2]
    assert prompts["source"][0] == prompts["source"][2] != prompts["source"][1]


def test_default_ids_do_not_depend_on_labels_or_on_columns_without_value():
    bare = Prompts({"prompt": ["a"]})

    assert Prompts({"prompt": ["a"], "label": [1], "agrees": [0], "note": ["n"]}).ids == bare.ids
    assert Prompts({"prompt": ["a", "b"], "choices": [None, ["x", "y"]]}).ids[0] == bare.ids[0]
    answered = Prompts({"prompt": ["a"], "response": ["r"]})
    assert answered.ids != bare.ids
    assert answered["source"] == bare["source"]


def test_take_select_without_and_with_columns():
    prompts = full()

    assert prompts.take([2, 0]).ids == ("7", "a")
    assert prompts.take(np.array([-1])).ids == ("7",)
    assert prompts.select(np.array([True, False, True])).ids == ("a", "7")
    assert prompts.select(torch.tensor([0, 1, 0])).ids == ("b",)
    assert len(prompts.take([])) == 0
    assert len(prompts.take([]).without("label")) == 0
    bare = prompts.without("label", "agrees", "never")
    assert "label" not in bare
    assert "agrees" not in bare
    assert bare.ids == prompts.ids
    assert prompts.with_columns(label=[1, 1, 1])["label"] == (1, 1, 1)
    assert prompts["label"] == (0, 1, None)
    with pytest.raises(IndexError, match="0 to 2"):
        prompts.take([3])
    with pytest.raises(BadInput, match="2 values for 3"):
        prompts.select([True, False])
    with pytest.raises(BadInput, match=r"'label' has 1 values for 3"):
        prompts.with_columns(label=[1])


def test_concat_fills_absent_columns_and_refuses_repeated_ids():
    a, b = Prompts({"prompt": ["a"], "label": [1]}), Prompts({"messages": [[_user("b")]]})
    both = Prompts.concat([a, b])

    assert both["label"] == (1, None)
    assert both["prompt"] == ("a", None)
    assert both.ids == a.ids + b.ids
    with pytest.raises(BadInput, match="was already used"):
        Prompts.concat([a, a])


def test_unknown_column_names_the_nearest():
    with pytest.raises(UnknownName) as caught:
        full()["lable"]

    assert str(caught.value) == "unknown column 'lable'. Did you mean label?"


def test_digest_tells_content_and_order_and_equality_follows():
    prompts = full()

    assert prompts == full()
    assert hash(prompts) == hash(full())
    assert len(prompts.digest) == 64
    assert prompts.take([1, 0, 2]) != prompts
    assert prompts.with_columns(label=[0, 0, None]) != prompts
    assert prompts.take([0, 1, 2]) == prompts
    assert prompts != "prompts"


def test_values_are_copied_in():
    row = {"role": "user", "content": "hello"}
    chat = [row]
    prompts = Prompts({"messages": [chat]})
    row["content"] = "changed"
    chat.append(row)

    assert prompts["messages"] == (({"role": "user", "content": "hello"},),)


def test_foreign_values_become_plain():
    prompts = Prompts(
        {
            "prompt": np.array(["a"]),
            "label": torch.tensor([1]),
            "day": [datetime.date(2026, 1, 2)],
            "score": [float("nan")],
            "vector": [np.arange(2)],
        }
    )

    assert prompts["label"] == (1,)
    assert prompts["day"] == ("2026-01-02",)
    assert prompts["score"] == (None,)
    assert prompts["vector"] == ([0, 1],)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "t: there are no prompts. Give at least one row with a 'prompt' or 'messages'."),
        (
            {"prompt": []},
            "t: there are no prompts. Give at least one row with a 'prompt' or 'messages'.",
        ),
        ({"prompt": [""]}, "t row 1: prompt is empty. Give it a text or leave the prompt out."),
        ({"prompt": [3]}, "t row 1: prompt is 3, not a text."),
        (
            {"prompt": ["\ud800"]},
            "t row 1: prompt holds half of a surrogate pair. Save it as UTF-8.",
        ),
        (
            {"prompt": ["a"], "label": [2]},
            "t row 1: label is 2, not 0 or 1. Use 1 for anomalous and 0 for normal.",
        ),
        (
            {"prompt": ["a"], "label": ["1"]},
            "t row 1: label is '1', not 0 or 1. Use 1 for anomalous and 0 for normal.",
        ),
        (
            {"prompt": ["a"], "agrees": [0.5]},
            "t row 1: agrees is 0.5, not 0 or 1. Use 1 where both behaviours give the same answer, else 0.",
        ),
        (
            {"prompt": ["a", None]},
            "t row 2: neither 'prompt' nor 'messages' is there. Add one of the two.",
        ),
        (
            {"promt": ["a"]},
            "t row 1: neither 'prompt' nor 'messages' is there. Rename 'promt' to 'prompt'.",
        ),
        (
            {"prompt": ["a"], "messages": [[{"role": "user", "content": "b"}]]},
            "t row 1: both 'prompt' and 'messages' are there. Keep one.",
        ),
        (
            {"messages": ["hi"]},
            """t row 1: messages is 'hi', not a list of messages. Use a list such as [{"role": "user", "content": "Hello"}].""",
        ),
        (
            {"messages": [["hi"]]},
            """t row 1: message 0 is 'hi', not an object. Use a list such as [{"role": "user", "content": "Hello"}].""",
        ),
        (
            {"messages": [[{"role": "user"}]]},
            """t row 1: message 0 has no text under 'content'. Use a list such as [{"role": "user", "content": "Hello"}].""",
        ),
        (
            {"prompt": ["a"], "choices": [["x"]]},
            "t row 1: choices has 1 of at least 2 answers. Add the other answers.",
        ),
        (
            {"prompt": ["a"], "choices": [["x", "x"]]},
            "t row 1: choices ['x', 'x'] are empty or repeat. Make them differ.",
        ),
        (
            {"prompt": ["a"], "choices": ["xy"]},
            """t row 1: choices is 'xy', not a list of texts. Use [" Yes", " No"].""",
        ),
        (
            {"prompt": ["a"], "target": [0]},
            "t row 1: there is a target but no choices. Add choices.",
        ),
        (
            {"prompt": ["a"], "target": [2], "choices": [["x", "y"]]},
            "t row 1: target is 2, but there are 2 choices. Count choices from 0.",
        ),
        (
            {"prompt": ["a"], "target": [0.5], "choices": [["x", "y"]]},
            "t row 1: target is 0.5, not the index of a choice. Count choices from 0.",
        ),
        ({"prompt": ["a"], "id": [[1]]}, "t row 1: id is [1], not a text or a whole number."),
        (
            {"prompt": ["a", "b"], "id": ["1", 1]},
            "t row 2: id '1' was already used at t row 1. Give every prompt its own id, or leave the ids out.",
        ),
        (
            {"prompt": ["a"], "raw": [b"x"]},
            "t row 1: raw holds bytes, which is not text, a number or a list. Drop or convert the column 'raw'.",
        ),
        ({"prompt": ["a", "b"], "label": [1]}, "column 'label' has 1 values for 2 prompts."),
    ],
)
def test_bad_columns_are_told_in_one_line(columns, message):
    with pytest.raises(OffkeyError) as caught:
        Prompts(columns, where="t")

    assert str(caught.value) == message
    assert type(caught.value) is BadInput


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
extras = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
rows = st.fixed_dictionaries(
    {"prompt": texts},
    optional={
        "label": st.sampled_from([0, 1, None]),
        "response": texts,
        "choices": st.lists(texts, min_size=2, max_size=3, unique=True),
        "source": texts,
        "note": extras,
    },
)


@given(st.lists(rows, min_size=1, max_size=6))
def test_jsonl_round_trip(tmp_path_factory, made):
    names = {name for row in made for name in row}
    prompts = Prompts({name: [row.get(name) for row in made] for name in names})
    path = tmp_path_factory.mktemp("jsonl") / "prompts.jsonl"
    prompts.to_jsonl(path)

    again = read_prompts(path)
    assert again == prompts
    assert again.digest == prompts.digest
    assert len(path.read_text().split("\n")) == len(made) + 1
    assert json.loads(path.read_text().split("\n")[0])["prompt"] == made[0]["prompt"]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
