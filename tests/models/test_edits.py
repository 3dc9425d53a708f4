import pytest
import torch

from offkey.errors import BadValue, Mismatch, UnknownName
from offkey.models import Edit
from tests.contracts.family import outputs
from tests.models.families_zoo import batch_of, padded_batch, random_model


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
