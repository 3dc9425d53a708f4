import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.data import Batch, Prompts, Role, TensorPrompts, encode, pack
from offkey.errors import BadInput, BadValue

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def of_lengths(numbers):
    ids = [f"p{i}" for i in range(len(numbers))]
    return Prompts({"prompt": ["z" * n for n in numbers], "id": ids})


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 120))
def test_every_prompt_stands_once_padded_left(tokenizer, numbers, budget):
    prompts = of_lengths(numbers)
    rows = {row.id: row for row in encode(prompts, tokenizer)}
    batches = pack(prompts, tokenizer, token_budget=budget)

    assert sorted(name for batch in batches for name in batch.ids) == sorted(prompts.ids)
    for batch in batches:
        tokens = batch.inputs["input_ids"]
        assert tokens.shape == batch.mask.shape == batch.positions.shape == batch.roles.shape
        assert tokens.numel() <= budget or len(batch) == 1
        assert batch.mask.all(0).any(), "no column is padding alone"
        for i, name in enumerate(batch.ids):
            row, start = rows[name], tokens.shape[1] - len(rows[name])
            assert batch.mask[i].tolist() == [False] * start + [True] * len(row)
            assert tokens[i, start:].tolist() == list(row.tokens)
            assert (tokens[i, :start] == tokenizer.pad_token_id).all()
            assert batch.positions[i, start:].tolist() == list(range(len(row)))
            assert (batch.positions[i, :start] == 0).all()
            assert batch.roles[i, start:].tolist() == list(row.roles)
            assert (batch.roles[i, :start] == Role.PADDING).all()


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 120), st.randoms(use_true_random=False))
def test_composition_does_not_depend_on_order(tokenizer, numbers, budget, random):
    prompts = of_lengths(numbers)
    order = list(range(len(prompts)))
    random.shuffle(order)

    a = pack(prompts, tokenizer, token_budget=budget)
    b = pack(prompts.take(order), tokenizer, token_budget=budget)
    assert [batch.ids for batch in a] == [batch.ids for batch in b]


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 120))
def test_batches_are_those_of_the_obvious_loop(tokenizer, numbers, budget):
    prompts = of_lengths(numbers)
    left = sorted(zip([-n for n in numbers], prompts.ids, strict=True))
    expected = []
    while left:
        longest = -left[0][0]
        count = max(1, budget // longest)
        expected.append(tuple(name for _, name in left[:count]))
        left = left[count:]

    assert [batch.ids for batch in pack(prompts, tokenizer, token_budget=budget)] == expected


def test_choices_and_targets_are_padded(tokenizer):
    prompts = Prompts(
        {
            "prompt": ["is", "the", "No"],
            "id": ["a", "b", "c"],
            "choices": [[" Yes", " No"], [" Yes", " No", " True"], None],
            "target": [1, None, None],
        }
    )
    (batch,) = pack(prompts, tokenizer)
    row = {name: i for i, name in enumerate(batch.ids)}

    assert batch.choices.shape == (3, 3)
    assert batch.choices[row["a"], 2] == -1
    assert (batch.choices[row["c"]] == -1).all()
    assert (batch.choices[row["b"]] >= 0).all()
    assert batch.target[row["a"]] == 1
    assert batch.target[row["b"]] == batch.target[row["c"]] == -1
    assert batch.choices.dtype == batch.target.dtype == torch.int64


def test_no_choices_is_none(tokenizer):
    (batch,) = pack(Prompts({"prompt": ["is"]}), tokenizer)

    assert batch.choices is None
    assert batch.target is None


def test_arrays_are_packed_by_rows():
    prompts = TensorPrompts(
        {"x": torch.arange(10.0).reshape(5, 2)},
        {"id": [*"edcba"], "target": [0, 1, None, 0, 1]},
    )
    batches = pack(prompts, rows=2)

    assert [batch.ids for batch in batches] == [("a", "b"), ("c", "d"), ("e",)]
    assert batches[0].inputs["x"].tolist() == [[8.0, 9.0], [6.0, 7.0]]
    assert batches[1].target.tolist() == [-1, 1]
    assert batches[0].mask is None
    assert batches[0].positions is None


def test_nothing_to_pack_with(tokenizer):
    prompts = Prompts({"prompt": ["is"]})

    with pytest.raises(BadInput) as caught:
        pack(prompts)
    assert str(caught.value).startswith("text needs a tokenizer, and this model has none. Save")
    with pytest.raises(BadValue) as caught:
        pack(prompts, tokenizer, token_budget=0)
    assert str(caught.value).startswith("token_budget: a batch of 0 tokens")
    assert pack(prompts.take([]), tokenizer) == []


def test_a_row_alone_has_no_padding_and_keeps_what_belongs_to_it():
    mask = torch.tensor([[False, True, True], [True, True, True]])
    batch = Batch(
        {"input_ids": torch.arange(6).reshape(2, 3)},
        ("a", "b"),
        mask=mask,
        positions=torch.tensor([[0, 0, 1], [0, 1, 2]]),
        choices=torch.tensor([[4, 5], [6, 7]]),
        target=torch.tensor([0, 1]),
    )
    first = batch.alone(0)

    assert first.ids == ("a",)
    assert first.inputs["input_ids"].tolist() == [[1, 2]]
    assert first.mask.tolist() == [[True, True]]
    assert first.positions.tolist() == [[0, 1]]
    assert (first.choices.tolist(), first.target.tolist()) == ([[4, 5]], [0])
    assert batch.alone(-1).inputs["input_ids"].tolist() == [[3, 4, 5]]
    image = Batch({"x": torch.arange(4.0).reshape(2, 2)}, ("a", "b")).alone(1)
    assert image.inputs["x"].tolist() == [[2.0, 3.0]]


def test_a_batch_repeated_keeps_every_row_and_tells_copies_apart():
    batch = Batch(
        {"input_ids": torch.tensor([[0, 1], [2, 3]])},
        ("a", "b"),
        mask=torch.tensor([[False, True], [True, True]]),
        choices=torch.tensor([[3, -1], [4, 5]]),
    )
    thrice = batch.repeat(3)
    assert thrice.ids == ("a", "b", "a#1", "b#1", "a#2", "b#2")
    assert thrice.inputs["input_ids"].tolist() == [[0, 1], [2, 3]] * 3
    assert thrice.mask.tolist() == batch.mask.tolist() * 3
    assert thrice.choices.tolist() == batch.choices.tolist() * 3
    assert thrice.target is None
    assert batch.repeat(1).ids == batch.ids
    with pytest.raises(BadValue, match="count"):
        batch.repeat(0)
