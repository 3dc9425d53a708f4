"""Generation step by step: what is read, who joins and leaves, edits by token."""

from dataclasses import replace

import pytest
import torch

from offkey.errors import BadValue
from offkey.models import Edit, Model
from offkey.testing.edit import append
from offkey.testing.family import close, hook_count
from offkey.testing.random_models import (
    DETECTED,
    FAMILIES,
    batch_of,
    padded_batch,
    random_model,
    random_module,
)

LATE = batch_of([[9, 8, 7, 6, 5, 4, 3, 2, 1, 11, 12, 13], [44, 45, 46]])
LATER = batch_of([[33]])


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def by_whole_passes(model, batch, count, edit=()):
    """Tokens, logits and residuals of each row, by uncached passes of each row alone."""
    rows = {}
    for number, name in enumerate(batch.ids):
        grown, readings = replace(batch.alone(number), choices=None, target=None), []
        for _ in range(count):
            reading = model.read(grown, ["resid_post.1", "z.2"], edit=edit, logits=True)
            readings.append(reading)
            grown = append(grown, reading.logits.argmax(-1))
        rows[name] = readings
    return rows


def check(step, expected):
    """Each row's step is that of the row alone."""
    for row, (name, number) in enumerate(zip(step.ids, step.numbers, strict=True)):
        right = expected[name][number]
        close(step.logits[row], right.logits[0], loosen=10)
        assert int(step.tokens[row]) == int(right.logits[0].argmax())
        for site in ("resid_post.1", "z.2"):
            close(step[site][row], right[site][0], loosen=10)


@pytest.mark.parametrize("name", [*FAMILIES, *DETECTED])
def test_rows_join_and_leave(name):
    """Past sliding windows; a row's steps do not depend on who runs beside it."""
    model, batch = random_model(name), padded_batch()
    expected = {}
    for each in (batch, LATE, LATER):
        expected |= by_whole_passes(model, each, 7)
    steps = model.steps(batch, reads=["resid_post.1", "z.2"], max_new_tokens=7)
    order = []
    for number, step in enumerate(steps):
        check(step, expected)
        order.append(step.ids)
        if number == 1:
            steps.join(LATE)
            steps.leave(batch.ids[1])
        if number == 2:
            steps.leave(batch.ids[2])
            steps.join(LATER)
        if number == 4:
            steps.leave(LATE.ids[0])
        assert hook_count(model.module) == 0
    first, second, third = batch.ids
    assert order[:3] == [batch.ids, batch.ids, (first, third, *LATE.ids)]
    assert order[3] == (first, *LATE.ids, *LATER.ids)
    assert order[5] == (first, LATE.ids[1], *LATER.ids)
    assert order[-1] == LATER.ids
    assert len(order) == 10
    lengths = {name: len(tokens) for name, tokens in steps.tokens.items()}
    assert lengths == {first: 7, second: 2, third: 3, LATE.ids[0]: 3, LATE.ids[1]: 7, "33": 7}
    for key, tokens in steps.tokens.items():
        right = [int(reading.logits.argmax()) for reading in expected[key]]
        assert tokens == right[: len(tokens)]


def test_the_cache_holds_no_more_than_the_rows_in_hand_need(model):
    long = batch_of([list(range(1, 40))])
    steps = model.steps(padded_batch(), max_new_tokens=20)
    next(steps)
    steps.join(long)
    next(steps)
    assert steps._rows.cache.get_seq_length() == 39
    steps.leave(*long.ids)
    next(steps)
    assert steps._rows.cache.get_seq_length() == 10


def test_generation_is_all_steps(model):
    batch = padded_batch()
    made = model.generate(batch, max_new_tokens=5, temperature=1.2, seed=3)
    steps = model.steps(batch, max_new_tokens=5, temperature=1.2, seed=3)
    taken = list(steps)
    assert [tuple(steps.tokens[name]) for name in batch.ids] == list(made.tokens)
    assert [bool(step.ended.all()) for step in taken] == [False] * 4 + [True]
    assert [step.numbers for step in taken] == [(n,) * 3 for n in range(5)]


def test_sampled_tokens_do_not_depend_on_who_joins(model):
    batch = padded_batch()
    alone = model.generate(LATE, max_new_tokens=5, temperature=1.2, seed=3).tokens
    steps = model.steps(batch, max_new_tokens=5, temperature=1.2, seed=3)
    next(steps)
    steps.join(LATE)
    list(steps)
    assert tuple(tuple(steps.tokens[name]) for name in LATE.ids) == alone


def test_rows_that_end_leave(model):
    batch = padded_batch()
    free = model.generate(batch, max_new_tokens=6).tokens
    end = free[0][2]

    class Ending:
        eos_token_id = end

    ending = Model(model.module, tokenizer=Ending(), name="ending")
    seen = []
    for step in ending.steps(batch, max_new_tokens=6):
        seen.append(step.ids)
        for name, token, over in zip(step.ids, step.tokens, step.ended, strict=True):
            assert bool(over) == (int(token) == end or len(seen) == 6), name
    for row, name in enumerate(batch.ids):
        stop = free[row].index(end) + 1 if end in free[row] else 6
        assert sum(name in ids for ids in seen) == stop


def test_a_caller_stops_when_it_has_seen_enough(model):
    steps = model.steps(padded_batch())
    for number, _ in enumerate(steps):
        if number == 3:
            break
    assert [len(tokens) for tokens in steps.tokens.values()] == [4, 4, 4]
    assert hook_count(model.module) == 0


def test_edits_by_token_while_rows_join(model):
    """New tokens, prompt tokens, and tokens by their number, each row by its own count."""
    batch = padded_batch()
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for positions in ("new", "prompt", "all", (1, 9), {"33": (0, 2), batch.ids[0]: (6,)}):
        edits = [Edit("resid_post.0", "add", 2 * v, positions=positions)]
        expected = {}
        for each in (batch, LATE, LATER):
            for number, name in enumerate(each.ids):
                alone = replace(each.alone(number), choices=None, target=None)
                prompt = alone.mask.shape[1]
                expected[name] = tokens_one_by_one(model, alone, prompt, v, positions, 5)
        steps = model.steps(batch, edits=edits, max_new_tokens=5)
        for number, _ in enumerate(steps):
            if number == 1:
                steps.join(LATE)
            if number == 2:
                steps.join(LATER)
        assert steps.tokens == expected, positions


def tokens_one_by_one(model, grown, prompt, v, positions, count):
    """Tokens by uncached passes, with the edit at the tokens that it means."""
    (name,) = grown.ids
    for _ in range(count):
        width = grown.mask.shape[1]
        meant = (
            {
                "new": range(prompt, width),
                "prompt": range(prompt),
                "all": range(width),
            }.get(positions)
            if isinstance(positions, str)
            else (positions if isinstance(positions, tuple) else positions.get(name, ()))
        )
        here = tuple(n for n in meant if n < width)
        edit = [Edit("resid_post.0", "add", 2 * v, positions=here)] if here else []
        logits = model.read(grown, (), edit=edit, logits=True).logits
        grown = append(grown, logits.argmax(-1))
    return grown.inputs["input_ids"][0, prompt:].tolist()


def test_a_schedule_by_token(model):
    """The change fades token by token, and is not made in the prompt."""
    batch = padded_batch()
    v = 2 * torch.randn(32, generator=torch.Generator().manual_seed(0))

    def share(number):
        return 0.0 if number < 0 else 1.0 / (1 + number)

    edit = Edit("resid_post.0", "add", v, schedule=share)
    steps = model.steps(batch, reads="resid_post.0", edits=[edit], max_new_tokens=4)
    plain = model.read(batch, "resid_post.0")["resid_post.0"]
    first = next(steps)
    assert torch.equal(first["resid_post.0"], plain)
    steps.join(LATER)
    grown = {name: replace(batch.alone(n), choices=None) for n, name in enumerate(batch.ids)}
    for number, step in enumerate(steps):
        for row, name in enumerate(step.ids):
            if name == "33":
                continue
            token = torch.tensor([steps.tokens[name][number]])
            grown[name] = append(grown[name], token)
            bare = model.read(grown[name], "resid_post.0")["resid_post.0"][0]
            close(step["resid_post.0"][row], bare + share(number) * v, loosen=10)


def test_a_condition_on_each_token(model):
    """Steering that is decided anew at each token, from an earlier site."""
    batch = padded_batch()
    site = model.site("embed")
    edit = Edit(
        "resid_post.1",
        "scale",
        -1.0,
        reads=("embed",),
        positions="new",
        condition=lambda read, given: read[site][..., 0] > 0,
    )
    steps = model.steps(
        batch,
        reads=["resid_pre.1", "mlp_out.1", "attn_out.1", "resid_post.1"],
        edits=[edit],
        max_new_tokens=5,
    )
    weight = model.wiring.embedding.weight
    turned = 0
    for number, step in enumerate(steps):
        total = step["resid_pre.1"] + step["attn_out.1"] + step["mlp_out.1"]
        for row, name in enumerate(step.ids):
            is_new = number > 0
            token = steps.tokens[name][number - 1] if is_new else 0
            sign = -1 if is_new and float(weight[token, 0].detach()) > 0 else 1
            turned += sign < 0
            close(step["resid_post.1"][row], sign * total[row], loosen=4)
    assert turned


def test_steps_that_cannot_be_taken(model):
    batch = padded_batch()
    steps = model.steps(batch, max_new_tokens=3)
    with pytest.raises(BadValue, match="prompt 7-11-3-9-2: it has taken part already"):
        steps.join(batch)
    with pytest.raises(BadValue, match="prompt nobody: it takes no part"):
        steps.leave("nobody")
    with pytest.raises(BadValue, match="max_new_tokens"):
        model.steps(batch, max_new_tokens=0)
    with pytest.raises(BadValue, match="only a mapped language model"):
        Model(random_module("llama").lm_head, name="plain").steps(batch)
    for wrong in ("last", (-1,)):
        with pytest.raises(BadValue, match="do not exist in generation"):
            next(model.steps(batch, edits=[Edit("embed", "scale", 1.0, positions=wrong)]))
    steps.leave(*batch.ids)
    assert list(steps) == []


def test_a_condition_on_a_new_token_leaves_cached_keys_as_they_were(model):
    """At keys, what passes also covers the tokens before; they were computed without the edit."""
    seen = []

    def only_alone(read, _):
        (x,) = read.values()
        return torch.full(x.shape[:2], x.shape[1] == 1)

    edits = [
        Edit("k.0", "replace", 0.0, reads=("resid_pre.0",), condition=only_alone),
        Edit("k.0", lambda x, _: seen.append((x != 0).flatten(2).any(-1)) or x),
    ]
    batch = batch_of([[5, 6, 7, 8]])
    for number, _ in enumerate(model.steps(batch, edits=edits, max_new_tokens=3)):
        expected = torch.ones(1, 4 + number, dtype=torch.bool)
        if number:
            expected[:, -1] = False
        assert torch.equal(seen[-1][:, -1:], expected[:, -1:])
        assert bool(seen[-1][:, :4].all())


def test_a_join_that_is_refused_leaves_nothing(model):
    steps = model.steps(batch_of([[5, 6, 7]]), max_new_tokens=2)
    (name,) = steps.ids if steps.ids else batch_of([[5, 6, 7]]).ids
    both = replace(batch_of([[1, 2], [3, 4]]), ids=("new", name))
    with pytest.raises(BadValue, match="taken part already"):
        steps.join(both)
    steps.join(replace(batch_of([[1, 2]]), ids=("new",)))
    assert {row for step in steps for row in step.ids} == {"new", name}
