"""Activation models: empirical, propagated, joint; what they explain; how inputs score."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData, UnmappedModel
from offkey.estimate import TrackedPairs
from offkey.estimate.activations import (
    ActivationModel,
    break_even,
    broken_relation,
    distances,
    divergence_bits,
    mask_of,
    surprise_of_activations,
)
from offkey.estimate.activations.model import (
    conformal_threshold,
    pair_residuals,
    pairs_of,
    squared_residuals,
)
from offkey.estimate.activations.surprise import (
    fraction_explained,
    pair_gain,
    surprise_of_events_under,
    surprise_of_losses,
)
from offkey.estimate.gaussian import Normal, propagate
from tests.estimate.activations.planted import (
    FLIPPED,
    NORMAL,
    PAIRS,
    PLANTED,
    auroc,
    covariance,
    random_covariance,
    rows,
)


def planted(count=2000, seed=0):
    return {"h": rows(count, covariance(PLANTED), seed=seed)}


def test_the_surprise_of_activations_is_their_density():
    x = planted(300)["h"] + 3
    model = ActivationModel.empirical({"h": x}, {"h": {(0, 1), (2, 5)}})
    normal = model.closed["h"]
    density = torch.distributions.MultivariateNormal(normal.mean, normal.full)
    bits = -float(density.log_prob(x).sum()) / math.log(2)
    result = surprise_of_activations(model, {"h": x})

    assert result.outcome == pytest.approx(bits, rel=1e-10)
    assert result.argument == pytest.approx(
        math.log2(29) + math.log2(28 * 27 / 2) + 2 * math.log2(300) / 2
    )
    other = planted(100, seed=5)["h"]
    elsewhere = surprise_of_activations(model, {"h": other})
    bits = -float(density.log_prob(other).sum()) / math.log(2)
    assert elsewhere.outcome == pytest.approx(bits, rel=1e-10)


def test_disjoint_pairs_explain_what_each_does_alone():
    x = planted()
    model = ActivationModel.empirical(x, {"h": PAIRS})
    result = surprise_of_activations(model, x)
    r = torch.corrcoef(x["h"].T)
    alone = sum(float(pair_gain(r[i, j], 2000)) for i, j in PAIRS)

    assert result.explained == pytest.approx(alone, rel=1e-9)
    assert result.net == pytest.approx(alone - math.log2(math.comb(28, 4)) - 2 * math.log2(2000))
    assert result.empty_argument == pytest.approx(math.log2(29))
    assert 0.98 < fraction_explained(model, x) < 1
    assert fraction_explained(model.full, x) == pytest.approx(1)
    assert fraction_explained(model.empty, x) == pytest.approx(0, abs=1e-12)


def test_explaining_is_the_divergence_that_is_left():
    x = {"a": rows(500, random_covariance(5, seed=1), seed=2), "b": planted(500)["h"]}
    pairs = {"a": {(0, 1), (1, 2)}, "b": {(0, 1)}}
    model = ActivationModel.empirical(x, pairs)
    whole = surprise_of_activations(model.full, x)
    result = surprise_of_activations(model, x)
    left = sum(
        divergence_bits(model.layers[name].full, model.closed[name].full) for name in model.layers
    )
    assert result.outcome - whole.outcome == pytest.approx(500 * left, rel=1e-8)


def test_break_even_counts():
    assert [break_even(rho, 35) for rho in (0.6, 0.3, 0.2)] == [37, 192, 464]
    assert break_even(-0.6, 35) == 37
    for rho, width in ((0.05, 10), (0.9, 3), (0.99, 2), (0.4, 576)):
        n, pairs = break_even(rho, width), width * (width - 1) / 2
        pays = [
            -k / 2 * math.log2(1 - rho**2) > math.log2(pairs) + math.log2(k) / 2
            for k in range(1, n + 1)
        ]
        assert pays == [False] * (n - 1) + [True]
    with pytest.raises(BadValue, match="correlation 0"):
        break_even(0.0, 5)
    with pytest.raises(BadValue, match="no pair"):
        break_even(0.5, 1)


def test_surprise_of_events_and_losses():
    x = planted()
    model = ActivationModel.empirical(x, {"h": PAIRS})

    def both_high(model):
        s = model.closed["h"].full
        return 0.25 + math.asin(float(s[0, 1] / (s[0, 0] * s[1, 1]).sqrt())) / (2 * math.pi)

    seen = int(((x["h"][:, 0] > 0) & (x["h"][:, 1] > 0)).sum())
    result = surprise_of_events_under(model, both_high, seen, 2000 - seen)
    assert result.empty_outcome == pytest.approx(
        -seen * math.log2(0.25) - (2000 - seen) * math.log2(0.75)
    )
    assert result.explained > 20

    losses = x["h"][:, 0] + x["h"][:, 1]

    def total(model):
        normal = model.closed["h"]
        pick = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]]).double()
        return Normal(pick @ normal.mean, pick @ normal.full @ pick.T)

    result = surprise_of_losses(model, total, losses)
    predicted = total(model)
    bits = -torch.distributions.Normal(predicted.mean, predicted.variance.sqrt()).log_prob(
        losses
    ).sum() / math.log(2)
    assert result.outcome == pytest.approx(float(bits), rel=1e-10)
    assert result.explained > 100
    with pytest.raises(BadValue, match="not one number"):
        surprise_of_losses(model, lambda m: m.closed["h"], losses)


def test_relations_between_layers_count_in_a_joint_model():
    s = covariance((0.0, 0.0, 0.0, 0.0)) + 0.8 * torch.diag(torch.ones(4).double(), 4)
    s = torch.maximum(s, s.T)
    x = rows(1000, s, seed=4)
    layers = {"a": x[:, :4], "b": x[:, 4:]}
    apart = ActivationModel.empirical(layers).full
    joint = ActivationModel.joint(layers, {(0, 4), (1, 5)})

    assert surprise_of_activations(apart, layers).net < 0
    assert list(joint.layers) == ["a+b"]
    assert surprise_of_activations(joint, {"a+b": x}).net > 1000
    with pytest.raises(BadValue, match="same prompts"):
        ActivationModel.joint({"a": x, "b": x[:3]})


def network(width=6):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Linear(width, width), nn.ReLU()),
        nn.Sequential(nn.Linear(width, width), nn.ReLU()),
    ).double()


def test_a_propagated_model_takes_its_values_from_the_weights():
    net, start = network(), Normal.standard(6)
    chain = [(i, i + 1) for i in range(5)]
    whole = pairs_of(torch.ones(6, 6, dtype=torch.bool))
    model = ActivationModel.of_network(net, start, {"0": chain}).with_pairs(
        {"0": whole, "1": chain}
    )
    x = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0)).double()
    first = net[0](x).detach()

    # the first layer is exact: its input is Gaussian
    torch.testing.assert_close(model.layers["0"].mean, first.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(model.layers["0"].full, torch.cov(first.T), rtol=0, atol=0.01)
    second = net(x).detach()
    torch.testing.assert_close(model.layers["1"].mean, second.mean(0), rtol=0, atol=0.05)
    assert model.samples is None
    assert model.argument.value_bits == 0
    assert model.argument.bits == pytest.approx(2 * math.log2(16) + math.log2(math.comb(15, 5)))
    # what is tracked at a layer changes the next one
    empty = model.empty
    assert not torch.allclose(empty.layers["1"].full, model.layers["1"].full)
    apart = Normal(empty.layers["0"].mean, torch.diag(empty.layers["0"].variance))
    by_hand = list(propagate(net[1], apart).values())[-1]
    torch.testing.assert_close(empty.layers["1"].full, by_hand.full)
    with pytest.raises(UnmappedModel, match="no rule for Bilinear"):
        ActivationModel.of_network(nn.Sequential(nn.Bilinear(6, 6, 6)), start)


def test_a_model_and_an_argument_must_belong_together():
    x = planted(50)
    model = ActivationModel.empirical(x, subject="one")
    with pytest.raises(Mismatch, match="about another, and this is one"):
        model.with_argument(TrackedPairs("another", {}, {"h": 28}))
    with pytest.raises(Mismatch, match="about layers g, and the model has h"):
        ActivationModel(model.layers, TrackedPairs("one", {}, {"g": 28}))
    with pytest.raises(Mismatch, match="layer h: 3 candidate pairs where 8 dimensions have 28"):
        ActivationModel(model.layers, TrackedPairs("one", {}, {"h": 3}))
    with pytest.raises(Mismatch, match="layer 'g', which the model has not"):
        ActivationModel.empirical(x, {"g": {(0, 1)}})
    with pytest.raises(BadInput, match="outside the 8 dimensions"):
        ActivationModel.empirical(x, {"h": {(0, 8)}})
    with pytest.raises(BadInput, match="not positive semi-definite"):
        ActivationModel(
            {"h": Normal(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))},
            TrackedPairs("", {}, {"h": 1}),
        )
    with pytest.raises(Mismatch, match="rows of layers g"):
        surprise_of_activations(model, {"g": x["h"]})
    with pytest.raises(Mismatch, match="layer h: rows of width 3"):
        surprise_of_activations(model, {"h": x["h"][:, :3]})
    with pytest.raises(Mismatch, match="rows of layers g"):
        distances(model, {"g": x["h"]})
    with pytest.raises(BadValue, match=r"layers with \[20, 50\] rows"):
        ActivationModel.empirical({"h": x["h"], "g": x["h"][:20]})


def test_residuals_have_mean_0_and_variance_1_under_the_model():
    s = random_covariance(6, seed=2)
    pairs = [(0, 1), (0, 3), (4, 5)]
    model = ActivationModel.empirical({"h": rows(400, s, seed=1)}, {"h": pairs})
    normal = model.closed["h"]
    x = normal.sample(200_000, torch.Generator().manual_seed(0))
    w = pair_residuals(normal, pairs, x)

    error = w.std(0) / math.sqrt(len(x))
    assert bool((w.mean(0).abs() < 5 * error).all())
    spread = (w.square() - 1).std(0) / math.sqrt(len(x))
    assert bool(((w.square().mean(0) - 1).abs() < 5 * spread).all())
    result = squared_residuals(normal, pairs, x[:50])
    torch.testing.assert_close(result, w[:50].square().sum(1))
    assert broken_relation(normal, [], x[:3]).tolist() == [0, 0, 0]
    with pytest.raises(Mismatch, match="for 6 dimensions"):
        pair_residuals(normal, pairs, x[:, :2])


def test_flipped_correlations_are_found_by_relations_only():
    trusted = rows(4000, covariance(NORMAL), seed=0)
    usual, odd = rows(4000, covariance(NORMAL), seed=1), rows(4000, covariance(FLIPPED), seed=2)
    model = ActivationModel.empirical({"h": trusted}, {"h": PAIRS})
    normal, pairs = model.closed["h"], sorted(PAIRS)

    def by(score):
        return auroc(score(usual), score(odd))

    assert by(lambda x: broken_relation(normal, pairs, x)) == pytest.approx(0.996, abs=0.02)
    assert by(lambda x: distances(model, {"h": x})[:, 0]) == pytest.approx(0.977, abs=0.02)
    assert by(lambda x: distances(model.empty, {"h": x})[:, 0]) == pytest.approx(0.5, abs=0.02)


def test_false_alarms_keep_their_promise():
    generator = torch.Generator().manual_seed(0)
    alpha, flagged, runs, held = 0.1, 0, 400, 59
    model = ActivationModel.empirical({"h": rows(500, covariance(NORMAL), seed=3)}, {"h": PAIRS})
    normal = model.closed["h"]
    for _ in range(runs):
        scores = broken_relation(normal, sorted(PAIRS), normal.sample(held + 1, generator))
        flagged += bool(scores[-1] > conformal_threshold(scores[:-1].numpy(), alpha))

    assert flagged / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert flagged > 0


def test_the_threshold_is_the_rank_that_the_promise_needs():
    assert conformal_threshold(np.arange(1.0, 20), 0.1) == 18
    assert conformal_threshold(np.arange(1.0, 20), 0.05) == 19
    with pytest.raises(NotEnoughData, match="19 calibration prompts"):
        conformal_threshold(np.arange(18.0), 0.05)


def test_masks_and_pairs_are_one():
    mask = mask_of({(2, 0), (1, 2)}, 4)
    assert pairs_of(mask) == {(0, 2), (1, 2)}
    assert torch.equal(mask, mask.T)
