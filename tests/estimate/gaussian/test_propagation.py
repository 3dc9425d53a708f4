"""Whole networks: first layers exactly, deep ones to the accuracy known, and what is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.estimate.gaussian import (
    Normal,
    PropagationSettings,
    Residual,
    Transition,
    propagate,
    register,
)
from offkey.models import Model
from offkey.testing.random_models import random_module
from tests.estimate.gaussian.planted import assert_sampled, random_normal


def he_network(width, depth, seed=0):
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        layer = nn.Linear(width, width, bias=False)
        nn.init.normal_(layer.weight, std=(2 / width) ** 0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU("tanh"), nn.LeakyReLU(0.1)],
)
def test_first_layer_of_any_network_is_exact(activation):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 5), activation).double()
    normal = random_normal(6)
    states = propagate(network, normal)
    assert list(states) == ["input", "0", "1"]
    assert_sampled(normal, network, states["1"])


def test_wide_network_of_three_layers():
    width, depth = 128, 3
    network = he_network(width, depth)
    normal = Normal.standard(width)
    with torch.no_grad():
        rows = normal.sample(100_000, torch.Generator().manual_seed(0))
        truth = sum(network(part).sum(0) for part in rows.split(10_000)) / len(rows)
    errors = {}
    for covariance in ("full", "diagonal"):
        last = propagate(network, normal, PropagationSettings(covariance=covariance))["5"]
        errors[covariance] = float((last.mean - truth).norm() / truth.norm())
    assert errors["full"] < 0.02
    assert errors["full"] < errors["diagonal"] / 2


def test_nested_sequences_residuals_and_norms():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    network = nn.Sequential(
        nn.Linear(8, 16),
        Residual(branch),
        nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(16)),
        nn.RMSNorm(16),
        nn.Linear(16, 4),
    ).double()
    network[2][1].running_mean.normal_()
    network[2][1].running_var.uniform_(0.5, 2)
    normal = random_normal(8)
    states = propagate(Model(network, name="net"), normal)
    assert list(states)[:4] == ["input", "0", "1.branch.0", "1.branch.1"]
    assert list(states)[-1] == "4"
    with torch.no_grad():
        y = network(normal.sample(200_000, torch.Generator().manual_seed(0)))
    last = states["4"]
    assert float((last.mean - y.mean(0)).norm() / y.std(0).norm()) < 0.03
    assert float((last.full - y.T.cov()).norm() / y.T.cov().norm()) < 0.1
    slim = propagate(network, normal, PropagationSettings(covariance="diagonal"))
    assert all(state.is_diagonal for state in slim.values())
    assert float((slim["4"].mean - y.mean(0)).norm() / y.std(0).norm()) < 0.3


class Strange(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


def test_layer_without_a_rule_is_named_and_can_be_drawn_through():
    network = nn.Sequential(nn.Linear(4, 4), Strange(), nn.Linear(4, 2)).double()
    normal = random_normal(4)
    with pytest.raises(UnmappedModel, match=r"layer 1: .*Strange.*sampled=\{'1'\}"):
        propagate(network, normal)
    for asked in (True, {"1"}):
        states = propagate(network, normal, PropagationSettings(sampled=asked, draws=50_000))
        with torch.no_grad():
            y = network(normal.sample(50_000, torch.Generator().manual_seed(5)))
        torch.testing.assert_close(states["2"].mean, y.mean(0), atol=0.02, rtol=0)
        torch.testing.assert_close(states["2"].full, y.T.cov(), atol=0.02, rtol=0)
    with pytest.raises(UnmappedModel, match="layer 1"):
        propagate(network, normal, PropagationSettings(sampled={"0"}))


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_rule_can_be_registered():
    with pytest.raises(UnmappedModel, match="layer input"):
        propagate(Doubling(), Normal.standard(2))
    register(
        Doubling,
        lambda module, normal, walk, name: Transition(
            Normal(2 * normal.mean, 4 * normal.covariance), lambda cross: 2 * cross
        ),
    )
    assert float(propagate(Doubling(), Normal.standard(2))["output"].full[0, 0]) == 4.0


def test_masks_by_name_or_function_and_closures():
    network = he_network(6, 2)
    normal = random_normal(6)
    block = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool()
    named = propagate(network, normal, PropagationSettings(mask={"1": block}))
    assert float(named["1"].full[:3, 3:].abs().amax()) == 0
    assert float(named["0"].full[:3, 3:].abs().amax()) > 0
    everywhere = propagate(network, normal, PropagationSettings(mask=lambda name, width: block))
    assert float(everywhere["input"].full[:3, 3:].abs().amax()) == 0
    none = propagate(
        network, normal, PropagationSettings(mask=lambda name, width: torch.eye(width).bool())
    )
    slim = propagate(network, normal, PropagationSettings(covariance="diagonal"))
    for name in slim:
        torch.testing.assert_close(none[name].variance, slim[name].variance)
        torch.testing.assert_close(none[name].mean, slim[name].mean)
    seen = []

    def closure(covariance, mask):
        seen.append((covariance.clone(), mask.clone()))
        return covariance * mask + 0.5 * torch.diag(covariance.diagonal())

    closed = propagate(network, normal, PropagationSettings(mask={"1": block}, closure=closure))
    assert len(seen) == 1
    assert bool(seen[0][1].diagonal().all())
    torch.testing.assert_close(closed["1"].variance, 1.5 * named["1"].variance)


def test_bad_masks_states_and_settings():
    network, normal = he_network(3, 1), random_normal(3)
    lopsided = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    with pytest.raises(BadInput, match="mask of layer 0: .*symmetric"):
        propagate(network, normal, PropagationSettings(mask={"0": lopsided}))
    with pytest.raises(BadInput, match="mask of layer 0"):
        propagate(network, normal, PropagationSettings(mask={"0": torch.eye(2).bool()}))
    with pytest.raises(BadValue, match="covariance"):
        PropagationSettings(covariance="sparse")
    with pytest.raises(BadValue, match="draws"):
        PropagationSettings(draws=1)
    full = torch.full((3, 3), 0.9) + 0.1 * torch.eye(3)
    mask = ~torch.zeros(3, 3).bool()
    mask[0, 2] = mask[2, 0] = False
    broken = Normal(torch.zeros(3), full).masked(mask)
    with pytest.raises(BadInput, match="semi-definite"):
        propagate(network, broken, PropagationSettings(sampled={"0"}))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox", "gemma2", "qwen2"])
def test_mlps_and_norms_of_language_models(family):
    model = Model(copy.deepcopy(random_module(family)).double(), name=family)
    block = model.wiring.blocks[0]
    normal = random_normal(model.width, mean=0.5)
    layers = nn.Sequential(block.mlp_norm, block.mlp)
    made = list(propagate(layers, normal).values())[-1]
    with torch.no_grad():
        y = layers(normal.sample(100_000, torch.Generator().manual_seed(0)))
    assert float((made.mean - y.mean(0)).norm()) < 0.05 * float(y.var(0).sum().sqrt())
    assert float((made.full - y.T.cov()).norm() / y.T.cov().norm()) < 0.25


def test_adapters_count():
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "down_proj"])
    tuned = get_peft_model(copy.deepcopy(random_module("llama")), config)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.2)
    model = Model(tuned, name="tuned")
    normal = random_normal(model.width)
    mlp = model.wiring.blocks[0].mlp
    with torch.no_grad():
        y = mlp(normal.sample(50_000, torch.Generator().manual_seed(0)).float()).double()
    made = propagate(mlp, normal)["output"]
    assert float((made.mean - y.mean(0)).norm()) < 0.02 * float(y.var(0).sum().sqrt())
    assert float((made.full - y.T.cov()).norm() / y.T.cov().norm()) < 0.05
    with pytest.raises(UnmappedModel, match="through_blocks"):
        propagate(model, normal)
