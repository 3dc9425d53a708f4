"""The residual stream of tiny language models: against drawing through their real blocks."""

import pytest
import torch
from torch import nn

from offkey.errors import BadInput, BadValue, NotEnoughData, UnmappedModel
from offkey.estimate.gaussian import (
    Normal,
    PropagationSettings,
    logits_at,
    residual_stream,
    through_blocks,
)
from offkey.models import Edit, Model
from offkey.testing.random_models import batch_of, random_model
from tests.estimate.gaussian.planted import random_normal


def batch(rows=8):
    """Prompts of six tokens: eight beginnings, that come back with other last tokens."""
    result = [[(7 * row + 3 * place) % 60 for place in range(5)] for row in range(8)]
    return batch_of([[*result[row % 8], row // 8] for row in range(rows)], choices=False)


def drawn_through(model, normal, batch, before, after, draws):
    """Row by row of the definition: each draw replaces the last token of a real context."""
    rows = normal.sample(draws, torch.Generator().manual_seed(99))
    made = []
    for part in rows.split(len(batch)):
        edit = Edit(before, "replace", part, positions="last", ids=batch.ids)
        made.append(model.read(batch, after, edit=[edit])[after].double())
    return torch.cat(made)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_first_block_against_drawing_through_it(family):
    model = random_model(family)
    contexts = batch(64)
    normal = random_normal(model.width, mean=0.5)
    states = through_blocks(model, normal, batch(), [0], PropagationSettings(draws=4096))
    assert list(states) == ["resid_mid.0", "resid_post.0"]
    draws = 4096
    for site, limit in (("resid_mid.0", 0.03), ("resid_post.0", 0.12)):
        y = drawn_through(model, normal, contexts, "resid_pre.0", site, draws)
        spread = y.var(0).sum().sqrt()
        assert float((states[site].mean - y.mean(0)).norm() / spread) < 0.05
        sampling = y.T.cov().norm() * 0.12
        gap = (states[site].full - y.T.cov()).norm()
        assert float(gap) < limit * float(y.T.cov().norm()) + float(sampling)


def test_known_part_keeps_its_covariance():
    """Where attention adds nothing, no sampling noise is left."""
    model = random_model("llama")
    with torch.no_grad():
        model.wiring.blocks[1].o_proj.weight.zero_()
    normal = random_normal(model.width)
    states = through_blocks(model, normal, batch(), [1], PropagationSettings(draws=128))
    torch.testing.assert_close(states["resid_mid.1"].full, normal.full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states["resid_mid.1"].mean, normal.mean, atol=1e-5, rtol=1e-5)


def test_blocks_chain_and_parallel_blocks_are_sampled_whole():
    model = random_model("gpt_neox")
    normal = residual_stream(model, batch())
    slim = PropagationSettings(covariance="diagonal", draws=64)
    states = through_blocks(model, normal.diagonal(), batch(), [0, 1], slim)
    assert all(state.is_diagonal for state in states.values())
    assert list(states)[-1] == "resid_post.1"
    model = random_model("llama")
    normal = random_normal(model.width)
    mixed = PropagationSettings(sampled={"resid_post.0"}, draws=512)
    states = through_blocks(model, normal, batch(), [0, 1], mixed)
    assert list(states) == ["resid_mid.0", "resid_post.0", "resid_mid.1", "resid_post.1"]


def test_logits_of_some_tokens():
    model = random_model("llama")
    normal = random_normal(model.width, mean=0.5)
    result = logits_at(model, normal, [3, 5, 7])
    x = normal.sample(100_000, torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        y = model.wiring.unembedding(model.wiring.final_norm(x))[:, [3, 5, 7]].double()
    assert float((result.mean - y.mean(0)).abs().amax() / y.std()) < 0.02
    assert float((result.full - y.T.cov()).norm() / y.T.cov().norm()) < 0.1


def test_what_does_not_fit_is_refused():
    model = random_model("llama")
    normal, contexts = random_normal(model.width), batch()
    with pytest.raises(BadInput, match="width 3"):
        through_blocks(model, Normal.standard(3), contexts, [0])
    with pytest.raises(BadValue, match="consecutive"):
        through_blocks(model, normal, contexts, [0, 2])
    with pytest.raises(NotEnoughData, match="draws"):
        through_blocks(model, normal, contexts, [0], PropagationSettings(draws=8))
    with pytest.raises(UnmappedModel, match="named sites"):
        through_blocks(Model(nn.Linear(2, 2), name="plain"), Normal.standard(2), contexts, [0])
    with pytest.raises(UnmappedModel, match="logits"):
        logits_at(Model(nn.Linear(2, 2), name="plain"), Normal.standard(2), [0])
