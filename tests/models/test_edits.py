from dataclasses import replace

import pytest
import torch

from offkey.errors import BadValue, Mismatch, UnknownName
from offkey.models import ChoiceLogitDifference, Edit, TopLogProb
from offkey.testing.family import close
from offkey.testing.random_models import batch_of, outputs, padded_batch, random_model


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (Edit("resid_post.1", "add"), BadValue, "'add' has no value"),
        (Edit("resid_post.1", "stretch", 1.0), BadValue, "no such operation"),
        (Edit("resid_post.1", "add", torch.ones(7)), BadValue, "does not broadcast"),
        (Edit("resid_post.1", "add", torch.ones(1, 1, 1, 32)), BadValue, "does not broadcast"),
        (Edit("resid_post.1", "add", torch.ones(3, 32)), Mismatch, "which prompts they belong to"),
        (Edit("resid_post.1", "add", torch.ones(3, 32), ids=("a", "b")), Mismatch, "3 rows for 2"),
        (Edit("resid_post.1", "add", 1.0, heads=(0,)), BadValue, "has no heads"),
        (Edit("z.1", "add", 1.0, heads=(4,)), BadValue, "heads 0-3"),
        (Edit("k.1", "add", 1.0, heads=(2,)), BadValue, "heads 0-1"),
        (Edit("resid_post.1", "add", 1.0, positions="new"), BadValue, "only in generation"),
        (Edit("resid_post.1", "add", 1.0, positions="first"), BadValue, "are no positions"),
        (Edit("resid_post.1", lambda x, b: x[:, :1]), BadValue, "edit makes"),
        (Edit("resid_post.1", "project_out", torch.ones(4)), BadValue, "in width 32"),
        (Edit("resid_pots.1", "add", 1.0), UnknownName, "resid_post.1"),
    ],
)
def test_edits_that_do_not_fit(model, edit, error, message):
    with pytest.raises(error) as caught:
        model.read(padded_batch(), (), edit=[edit], logits=True)
    assert message in str(caught.value)


def test_a_model_called_by_hand_in_an_edited_context(model):
    batch = padded_batch()
    with model.edited([Edit("resid_post.1", "scale", 2.0)]):
        by_hand = outputs(model, batch).logits
        read = model.read(batch, (), positions="all", logits=True).logits
    assert torch.equal(by_hand[batch.mask], read[batch.mask])
    for edit in (Edit("embed", "add", 1.0, ids=("a",)), Edit("embed", lambda x, batch: x)):
        with model.edited([edit]), pytest.raises(Mismatch, match=r"Model\.read"):
            outputs(model, batch)


def test_one_value_for_named_prompts(model):
    batch = padded_batch()
    v = torch.arange(32.0)
    for value in (v, v[None]):
        edit = Edit("resid_post.1", "replace", value, ids=(batch.ids[1], batch.ids[0]))
        made = model.read(batch, "resid_post.1", edit=[edit])["resid_post.1"]
        assert torch.equal(made[:2], v.expand(2, 32))
        assert not torch.equal(made[2], v)


def test_values_for_each_token(model):
    batch = padded_batch()
    values = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    edit = Edit("resid_post.1", "replace", values, ids=batch.ids[::-1], positions=(-4, -1))
    made = model.read(batch, "resid_post.1", edit=[edit], positions=(-4, -1))["resid_post.1"]
    assert torch.equal(made, values.flip(0))


def test_values_for_all_tokens_are_counted_from_the_end(model):
    """So that a reading of a narrower batch can be put into a wider one."""
    narrow = batch_of([[7, 11, 3, 9, 2]])
    wide = padded_batch()
    source = model.read(narrow, "resid_post.1", positions="all")["resid_post.1"]
    edit = Edit("resid_post.1", "replace", 2 * source, ids=narrow.ids)
    made = model.read(wide, "resid_post.1", edit=[edit], positions="all")["resid_post.1"]
    assert torch.equal(made[0, -5:], 2 * source[0])

    short = Edit("resid_post.1", "replace", source, ids=wide.ids[2:])
    with pytest.raises(Mismatch, match="first tokens of prompt 10-20"):
        model.read(wide, (), edit=[short], logits=True)


def test_a_function_sees_the_batch(model):
    batch = padded_batch()

    def first_row_only(x, given):
        assert given.ids == batch.ids
        return torch.cat([x[:1] * 0, x[1:]])

    edit = Edit("resid_post.1", first_row_only, positions="last")
    made = model.read(batch, "resid_post.1", edit=[edit], positions="all")["resid_post.1"]
    plain = model.read(batch, "resid_post.1", positions="all")["resid_post.1"]
    plain[0, -1] = 0
    assert torch.equal(made, plain)


def test_scaling_in_half_precision_keeps_the_dtype():
    model = random_model("llama", dtype=torch.bfloat16)
    edit = Edit("resid_post.1", "add", torch.ones(32, dtype=torch.float64))
    value = model.read(padded_batch(), "resid_post.1", edit=[edit])["resid_post.1"]
    assert value.dtype == torch.bfloat16


def test_positions_by_number_and_by_row(model):
    """From a row's first real token, whatever it is padded with; rows by prompt id."""
    batch = padded_batch()
    before = model.read(batch, "resid_post.1", positions="all")["resid_post.1"]

    def made(positions, value=1.0, ids=None):
        edit = Edit("resid_post.1", "add", value, positions=positions, ids=ids)
        return model.read(batch, "resid_post.1", positions="all", edit=[edit])["resid_post.1"]

    expected = before.clone()
    for row, start in enumerate([3, 1, 0]):
        expected[row, [start, start + 4, 7]] += 1
    assert torch.equal(made((0, 4, -1)), expected)

    rows = {batch.ids[2]: (0, -2), "elsewhere": (1, 1), batch.ids[0]: (2, 4)}
    expected = before.clone()
    expected[2, [0, 6]] += 1
    expected[0, [5, 7]] += 1
    assert torch.equal(made(rows), expected)

    values = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    expected = before.clone()
    expected[2, [0, 6]] += values[0]
    expected[0, [5, 7]] += values[2]
    ids = (batch.ids[2], "elsewhere", batch.ids[0])
    assert torch.equal(made(rows, values, ids), expected)
    assert torch.equal(made((20, -20)), before)
    more = {**rows, batch.ids[1]: (0,)}
    expected = before.clone()
    for row, columns in enumerate([[5, 7], [1], [0, 6]]):
        expected[row, columns] += 1
    assert torch.equal(made(more), expected)
    with model.edited([Edit("embed", "add", 1.0, positions=(0,))]), pytest.raises(Mismatch):
        outputs(model, batch)


def test_rows_follow_their_prompts_into_other_batches(model):
    batch = padded_batch()
    rows = {batch.ids[1]: (0, 3), batch.ids[0]: (1, 2)}
    edit = Edit("resid_post.1", "scale", -1.0, positions=rows)
    together = model.read(batch, "final", edit=[edit])["final"]
    for row in range(3):
        alone = model.read(batch.alone(row), "final", edit=[edit])["final"]
        close(alone[0], together[row], loosen=10)


def test_gradients_reach_the_value_of_an_edit(model):
    """As differences of the metric say, for each operation."""
    batch, metric = padded_batch(), ChoiceLogitDifference()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(32, generator=generator)
    rows = torch.randn(3, 2, 32, generator=generator)
    edits = [
        Edit("resid_post.0", "add", v),
        Edit("attn_out.1", "replace", v, positions="last"),
        Edit("resid_mid.1", "scale", v),
        Edit("resid_post.1", "project_out", v),
        Edit("resid_pre.1", "add", rows, positions=(0, -1), ids=batch.ids),
        Edit("head_out.1", "add", v, heads=(1,)),
        Edit("z.1", "replace", torch.ones(8), heads=(1, 2)),
    ]
    for edit in edits:
        value = edit.value.clone().requires_grad_()
        with model.passing(batch, [replace(edit, value=value)], graph=True) as p:
            p.run()
            (grad,) = torch.autograd.grad(metric(p.logits, batch).sum(), value)
        step = 1e-2 * grad / grad.norm()
        ends = [
            model.read(batch, (), edit=[replace(edit, value=edit.value + s * step)], metric=metric)
            for s in (1, -1)
        ]
        slope = (ends[0].metric - ends[1].metric).sum() / 2e-2
        torch.testing.assert_close(slope, grad.norm(), rtol=2e-2, atol=1e-4)
        assert value.grad is None
    reading = model.read(batch, (), edit=edits[:1], metric=metric)
    assert not reading.metric.requires_grad


def test_a_value_and_sites_on_one_graph(model):
    """A value added to the residual has the gradient that the residual has, summed."""
    batch, metric = padded_batch(), TopLogProb()
    v = torch.zeros(32, requires_grad=True)
    edit = Edit("resid_post.1", "add", v, positions=(-1, -2))
    with model.passing(batch, [edit], graph=True) as p:
        p.run("resid_post.1")
        site = p.gradients(metric, "resid_post.1")[model.site("resid_post.1")]
        (value,) = torch.autograd.grad(metric(p.logits, batch).sum(), v)
    right = model.read(batch, (), gradients="resid_post.1", metric=metric, positions="all")
    assert torch.equal(site, right.grads[model.site("resid_post.1")])
    close(value, site[:, -2:].sum((0, 1)))


def test_edits_that_depend_on_what_was_read(model):
    """A condition on an earlier site, and a function of it."""
    batch = padded_batch()
    early = model.read(batch, ["resid_post.0", "resid_post.1"], positions="all")
    x, y = early["resid_post.0"], early["resid_post.1"]
    site, v = model.site("resid_post.0"), torch.arange(32.0)
    by_row = x[:, -1, 0] > x[:, -1, 0].median()
    by_token = x[..., 1] > 0

    edit = Edit(
        "resid_post.1",
        "add",
        v,
        reads=("resid_post.0",),
        condition=lambda read, given: read[site][:, -1, 0] > x[:, -1, 0].median(),
    )
    made = model.read(batch, "resid_post.1", edit=[edit], positions="all")["resid_post.1"]
    assert torch.equal(made[~by_row], y[~by_row])
    assert torch.equal(made[by_row][batch.mask[by_row]], (y + v)[by_row][batch.mask[by_row]])

    tokenwise = replace(edit, condition=lambda read, given: read[site][..., 1] > 0)
    made = model.read(batch, "resid_post.1", edit=[tokenwise], positions="all")["resid_post.1"]
    chosen = by_token & batch.mask
    assert torch.equal(made, torch.where(chosen[..., None], y + v, y))

    def swapped(given, of, read):
        assert of.ids == batch.ids
        return given - read[site]

    function = Edit("resid_post.1", swapped, reads=(site,), positions="last")
    doubled = Edit("resid_post.0", "scale", 2.0)
    made = model.read(batch, "resid_post.1", edit=[function])["resid_post.1"]
    assert torch.equal(made, (y - x)[:, -1])
    # What is read is what the edits before it in the list have left there.
    again = model.read(batch, ["resid_post.0", "resid_post.1"], edit=[doubled])
    both = model.read(batch, "resid_post.1", edit=[doubled, function])["resid_post.1"]
    assert torch.equal(both, again["resid_post.1"] - again["resid_post.0"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reads": ("resid_post.2",)}, BadValue, "resid_post.2 does not come before it"),
        ({"condition": lambda read, given: torch.ones(3)}, BadValue, "True or False for each row"),
        ({"condition": lambda read, given: torch.ones(2) > 0}, BadValue, "for each row"),
        ({"schedule": lambda n: 1.0}, BadValue, "only in generation"),
    ],
)
def test_conditions_that_do_not_fit(model, changes, error, message):
    edit = Edit("resid_post.1", "add", 1.0, **changes)
    edit = edit if "reads" not in changes else replace(edit, condition=lambda read, given: read)
    with pytest.raises(error, match=message):
        model.read(padded_batch(), (), edit=[edit], logits=True)


def test_many_edits_of_one_prompt_in_one_pass(model):
    """Each copy of the batch with an edit of its own gives what it gives by itself."""
    batch = padded_batch()
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    copies = batch.repeat(4)
    rows = [copies.ids[3 * n : 3 * n + 3] for n in range(4)]
    edits = [
        Edit("resid_post.0", "add", v, positions=(1,), ids=ids)
        for v, ids in zip(values, rows, strict=True)
    ]
    together = model.read(copies, "resid_post.2", edit=edits, logits=True)
    for n, value in enumerate(values):
        edit = Edit("resid_post.0", "add", value, positions=(1,))
        alone = model.read(batch, "resid_post.2", edit=[edit], logits=True)
        close(together["resid_post.2"][3 * n : 3 * n + 3], alone["resid_post.2"], loosen=10)
        close(together.logits[3 * n : 3 * n + 3], alone.logits, loosen=10)


def test_a_prompt_that_is_not_in_the_batch_is_not_edited_there(model):
    """Whatever it is packed with, a value for each token counts the positions that were given."""
    batch = padded_batch()
    zeros = torch.zeros(2, 2, model.width)
    first, second, third = batch.ids
    edit = Edit(
        "resid_post.0",
        "replace",
        zeros,
        positions={first: (0, 1), second: (0,)},
        ids=(first, second),
    )
    plain = model.read(batch, "resid_post.0", positions="all")["resid_post.0"]
    for rows in ((2,), (1, 2), (0, 1, 2)):
        keep = torch.tensor([number in rows for number in range(3)])
        some = batch.select(keep)
        made = model.read(some, "resid_post.0", positions="all", edit=[edit])["resid_post.0"]
        for row, name in enumerate(some.ids):
            start = int((~some.mask[row]).sum())
            changed = {first: [start, start + 1], second: [start], third: []}[name]
            expected = plain[batch.ids.index(name)].clone()
            expected[changed] = 0
            assert torch.allclose(made[row], expected, atol=1e-5)


def test_an_edit_that_reads_needs_a_pass(model):
    edit = Edit(
        "resid_post.1", "add", 1.0, reads=("resid_pre.0",), condition=lambda *_: torch.tensor(True)
    )
    with model.edited([edit]), pytest.raises(Mismatch, match="only in a pass"):
        model.module(input_ids=torch.tensor([[1, 2, 3]]))
