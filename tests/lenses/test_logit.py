"""The logit lens against the model's own logits, by hand, and what it refuses."""

import pytest
import torch

from offkey.errors import UnmappedModel
from offkey.lenses import (
    check_readable,
    lens_choice_logits,
    lens_logits,
    promoted_tokens,
    residual_sites,
    top_tokens,
    why_unreadable,
)
from offkey.models import Model
from offkey.testing.feature import ROWS
from offkey.testing.random_models import FAMILIES, batch_of, random_module
from tests.models import tiny


@pytest.fixture(scope="module")
def model():
    return Model(random_module("llama"), tokenizer=tiny.tokenizer(), name="llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_block_it_gives_the_models_logits(family):
    model = Model(random_module(family), name=family)
    last = f"resid_post.{model.n_blocks - 1}"
    reading = model.read(batch_of(ROWS), last, logits=True)
    torch.testing.assert_close(
        lens_logits(model, reading[last]), reading.logits, rtol=1e-4, atol=1e-4
    )


def test_logits_of_choices_are_those_of_the_whole_vocabulary(model):
    reading = model.read(batch_of(ROWS), "resid_post.0, resid_post.1")
    choices = torch.tensor([[3, 5, 9], [7, -1, 2], [4, 8, -1], [1, 2, 3]])
    found = lens_choice_logits(model, reading.values.values(), choices)
    for layer, value in enumerate(reading.values.values()):
        whole = lens_logits(model, value)
        for row, tokens in enumerate(choices.tolist()):
            for place, token in enumerate(tokens):
                expected = whole[row, token].item() if token >= 0 else -torch.inf
                assert found[layer, row, place].item() == pytest.approx(expected, rel=1e-5)


def test_the_tokens_of_a_direction_are_those_its_logits_rank_first(model):
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    best = top_tokens(model, directions, 3)
    for row, tokens in zip(directions, best, strict=True):
        with torch.no_grad():
            normed = model.module.model.norm(row)
            p = (model.module.lm_head.weight @ normed).softmax(0)
        order = p.argsort(descending=True)[:3].tolist()
        assert [token for token, _ in tokens] == [model.tokenizer.decode([n]) for n in order]
        assert [share for _, share in tokens] == pytest.approx(p[order].tolist(), rel=1e-4)
    assert promoted_tokens(model, directions, 3) == [tuple(t for t, _ in row) for row in best]


def test_sites_are_read_at_the_residual_of_their_block(model):
    asked = ("mlp_out.2", "resid_pre.1", "embed", "attn_out.2")
    assert [str(site) for site in residual_sites(model, asked)] == ["resid_post.2", "resid_pre.1"]


def test_models_that_it_cannot_read():
    plain = Model(torch.nn.Linear(2, 2), name="plain")
    assert "no unembedding" in why_unreadable(plain)
    assert promoted_tokens(plain, torch.ones(2, 2), 1) == [(), ()]
    assert "no tokenizer" in why_unreadable(Model(random_module("llama"), name="mute"))
    with pytest.raises(UnmappedModel, match="feature lens: .* this model has none"):
        check_readable(plain)
