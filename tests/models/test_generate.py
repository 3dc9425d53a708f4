import pytest
import torch

from offkey.errors import BadValue
from offkey.models import Edit
from offkey.testing.edit import append, flip
from offkey.testing.family import hook_count
from offkey.testing.random_models import FAMILIES, batch_of, padded_batch, random_model


class Letters:
    """A tokenizer whose tokens are letters."""

    eos_token_id = None

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return ["".join(chr(64 + token) for token in row) for row in rows]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_whole_passes(name):
    """Past the sliding window of those that have one."""
    model, batch = random_model(name), padded_batch()
    grown = batch
    for _ in range(6):
        logits = model.read(grown, (), logits=True).logits
        grown = append(grown, logits.argmax(-1))
    made = model.generate(batch, max_new_tokens=6)
    assert [list(row) for row in made.tokens] == grown.inputs["input_ids"][:, 8:].tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_tokens_are_those_of_transformers(name):
    model, batch = random_model(name), padded_batch()
    expected = model.module.generate(
        batch.inputs["input_ids"],
        attention_mask=batch.mask.long(),
        max_new_tokens=5,
        do_sample=False,
    )[:, 8:]
    assert [list(row) for row in model.generate(batch, max_new_tokens=5).tokens] == (
        expected.tolist()
    )


def test_samples_depend_on_seed_and_prompt_alone():
    model, batch = random_model("llama"), padded_batch()

    def sampled(batch, seed):
        made = model.generate(batch, max_new_tokens=5, temperature=1.5, seed=seed)
        return dict(zip(batch.ids, made.tokens, strict=True))

    first = sampled(batch, 0)
    assert sampled(batch, 0) == first
    assert sampled(flip(batch), 0) == first
    alone = batch_of([[4, 8, 15, 16, 23, 42, 6]])
    assert sampled(alone, 0)[alone.ids[0]] == first[alone.ids[0]]
    assert sampled(batch, 1) != first


def test_samples_follow_the_distribution():
    model = random_model("llama")
    rows = batch_of([[5, 6]])
    chances = model.read(rows, (), logits=True).logits[0].div(0.5).softmax(-1)
    drawn = [
        model.generate(rows, max_new_tokens=1, temperature=0.5, seed=seed).tokens[0][0]
        for seed in range(200)
    ]
    share = torch.bincount(torch.tensor(drawn), minlength=61) / 200
    slack = 4 * (chances * (1 - chances) / 200).sqrt() + 1e-2
    assert bool(((share - chances).abs() < slack).all())


def test_rows_end_at_the_end_of_text():
    model, batch = random_model("llama"), padded_batch()
    free = model.generate(batch, max_new_tokens=6).tokens
    model.tokenizer = Letters()
    model.tokenizer.eos_token_id = free[0][2]
    made = model.generate(batch, max_new_tokens=6)
    for row, whole in zip(made.tokens, free, strict=True):
        stop = whole.index(free[0][2]) + 1 if free[0][2] in whole else 6
        assert row == whole[:stop]
    assert made.texts[0] == "".join(chr(64 + token) for token in made.tokens[0])


def test_nothing_is_left_after_generation():
    model, batch = random_model("llama"), padded_batch()
    before = model.generate(batch, max_new_tokens=3).tokens
    edit = Edit("resid_post.0", "scale", -3.0, positions="new")
    edited = model.generate(batch, max_new_tokens=3, edit=[edit]).tokens
    assert edited != before
    assert [row[0] for row in edited] == [row[0] for row in before]
    assert hook_count(model.module) == 0
    assert model.generate(batch, max_new_tokens=3).tokens == before
    with model.edited([edit]):
        assert model.generate(batch, max_new_tokens=3).tokens == edited


def test_settings_that_do_not_fit():
    model, batch = random_model("llama"), padded_batch()
    last = Edit("embed", "scale", 1.0, positions="last")
    tokenwise = Edit("embed", "replace", torch.zeros(1, 8, 32))
    with pytest.raises(BadValue, match="do not exist in generation"):
        model.generate(batch, max_new_tokens=1, edit=[last])
    with pytest.raises(BadValue, match="a value for each token"):
        model.generate(batch, max_new_tokens=1, edit=[tokenwise])
    with pytest.raises(BadValue, match="max_new_tokens"):
        model.generate(batch, max_new_tokens=0)
