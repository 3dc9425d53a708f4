import pytest
import torch
from torch import nn

from offkey.errors import BadValue, UnknownName
from offkey.models import Edit, Model
from offkey.testing.family import close
from offkey.testing.random_models import outputs, padded_batch, random_model

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model():
    return random_model("llama")


def state(model):
    return {name: weight.detach().clone() for name, weight in model.module.named_parameters()}


def same(model, before):
    return all(
        torch.equal(weight, before[name]) for name, weight in model.module.named_parameters()
    )


def test_weights_move_and_come_back(model):
    batch, before = padded_batch(), state(model)
    delta = torch.randn(32, 48, generator=torch.Generator().manual_seed(0)) / 3
    act = model.read(batch, "mlp_act.1")["mlp_act.1"]
    with model.perturbed({NAME: delta}):
        moved = model.read(batch, "mlp_out.1")["mlp_out.1"]
    close(moved, act @ (before[NAME] + delta).T)
    assert same(model, before)


def test_weights_come_back_after_an_error(model):
    before = state(model)
    with pytest.raises(ZeroDivisionError), model.perturbed({NAME: torch.ones(32, 48)}):
        raise ZeroDivisionError
    assert same(model, before)


def test_nested_with_edits(model):
    batch, before = padded_batch(), state(model)
    plain = outputs(model, batch).logits
    delta = {NAME: torch.full((32, 48), 1e-3)}
    with model.perturbed(delta), model.perturbed(delta), model.edited([Edit("z.0", "scale", 0.0)]):
        moved = outputs(model, batch).logits
    assert not torch.allclose(moved, plain)
    assert same(model, before)
    assert torch.equal(outputs(model, batch).logits, plain)


def test_what_does_not_fit_changes_nothing(model):
    before = state(model)
    good = torch.ones(32, 48)
    with pytest.raises(UnknownName, match="did you mean|Did you mean"):
        model.perturbed({NAME: good, "model.layer.1.mlp.down_proj.weight": good}).__enter__()
    with pytest.raises(BadValue, match=r"\(48, 32\) for \(32, 48\)"):
        model.perturbed({NAME: good.T}).__enter__()
    assert same(model, before)


def test_plain_modules():
    linear = nn.Linear(2, 2)
    keep = linear.weight.detach().clone()
    with Model(linear, name="linear").perturbed({"weight": torch.ones(2, 2)}):
        assert torch.equal(linear.weight, keep + 1)
    assert torch.equal(linear.weight, keep)
