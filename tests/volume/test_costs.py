"""Costs of models: by the definition, restored bit by bit, refused where they mean nothing."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from offkey.data import Batch
from offkey.errors import (
    BadInput,
    BadValue,
    InvalidAnchor,
    Mismatch,
    MissingMask,
    NoMatchingParameters,
    NonFiniteCost,
    PrecisionTooLow,
    PriorMismatch,
    RadiusNotFound,
    UnknownName,
)
from offkey.models import Model, kl, log_probabilities
from offkey.testing.random_models import batch_of, padded_batch, random_model, random_module
from offkey.volume import (
    AnchorNotMinimum,
    CrossingSearch,
    Dense,
    Diagonal,
    DuplicateExamples,
    FunctionCost,
    GaussianMeasure,
    KLCost,
    Kronecker,
    LebesgueMeasure,
    LossCost,
    Tilted,
    estimate_volume,
    fisher_dense,
    fisher_diagonal,
)
from tests.volume import cases

pytestmark = pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
ROWS = ((7, 11, 3, 9, 2), (4, 8, 15, 16, 23, 42, 6))
NAME = "model.layers.1.mlp.down_proj.weight"


def noise(model, names, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.module.named_parameters())
    return {n: size * torch.randn(weights[n].shape, generator=generator) for n in names}


def state(model):
    return {name: weight.detach().clone() for name, weight in model.module.named_parameters()}


def same(model, before):
    return all(torch.equal(w, before[n]) for n, w in model.module.named_parameters())


def logits_alone(model, row):
    with torch.no_grad():
        return model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()


def test_divergence_is_its_definition():
    torch.manual_seed(0)
    z, gap = torch.randn(5, 40, dtype=torch.float64), torch.randn(5, 40, dtype=torch.float64)
    p, q = z.softmax(-1), (z + gap).softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1)

    torch.testing.assert_close(kl(log_probabilities(z), z + gap), expected)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5, 1e2, 300.0])
def test_divergence_in_float32_is_accurate_at_every_size(size):
    torch.manual_seed(0)
    z, gap = torch.randn(5, 400), size * torch.randn(5, 400)
    moved = z + gap
    exact = kl(log_probabilities(z.double()), moved.double())

    torch.testing.assert_close(
        kl(log_probabilities(z), moved).double(), exact, rtol=max(2e-4, 1e-6 / size), atol=0
    )
    assert float(kl(log_probabilities(z), z).abs().max()) < 1e-12


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_divergence_of_a_thin_spread_over_many_tokens(spread):
    z = spread * torch.randn(2, 49_152, generator=torch.Generator().manual_seed(0)) + 30
    moved = z + 1e-3 * torch.randn(2, 49_152, generator=torch.Generator().manual_seed(1))
    exact = kl(log_probabilities(z.double()), moved.double())

    torch.testing.assert_close(kl(log_probabilities(z), moved).double(), exact, rtol=1e-3, atol=0)
    assert float(kl(log_probabilities(z), z).abs().max()) < 1e-12


def test_divergence_with_a_token_that_cannot_be():
    z = torch.tensor([[0.0, 1.0, -torch.inf]])
    moved = torch.tensor([[0.5, 1.0, -torch.inf]])
    p, q = z.softmax(-1)[0, :2], moved.softmax(-1)[0, :2]

    assert float(kl(log_probabilities(z), moved)) == pytest.approx(
        float((p * (p / q).log()).sum()), rel=1e-5
    )


@pytest.mark.parametrize("tokens", ["all", "last"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_kl_of_texts_is_the_mean_over_real_tokens(family, tokens):
    model = random_model(family)
    names = [name for name, _ in model.module.named_parameters()]
    delta = noise(model, names, 0.02)
    before = [logits_alone(model, row) for row in ROWS]
    with model.perturbed(delta):
        after = [logits_alone(model, row) for row in ROWS]
    told = []
    for a, b in zip(before, after, strict=True):
        p = a.log_softmax(-1)
        per_token = (p.exp() * (p - b.log_softmax(-1))).sum(-1)
        told.append(per_token if tokens == "all" else per_token[-1:])
    each = [float(x.mean()) for x in told]

    batches = [batch_of(ROWS[:1], width=9), batch_of(ROWS[1:])]
    whole = KLCost(model, batches, tokens=tokens)
    apart = KLCost(model, [batch_of(ROWS, width=11)], tokens=tokens, reduce="per_example")
    assert whole(delta)[0] == pytest.approx(float(torch.cat(told).mean()), rel=1e-4)
    assert apart(delta) == pytest.approx(each, rel=1e-4)
    assert apart.ids == batch_of(ROWS).ids
    assert (whole.evaluations, whole.forwards) == (1, 4)


def test_loss_of_texts_is_the_rise_of_the_next_token_loss():
    model = random_model("llama")
    delta = noise(model, [NAME], 0.1)

    def loss():
        told = [
            nn.functional.cross_entropy(
                logits_alone(model, row)[:-1], torch.tensor(row[1:]), reduction="none"
            )
            for row in ROWS
        ]
        return float(torch.cat(told).mean())

    before = loss()
    with model.perturbed(delta):
        after = loss()

    assert LossCost(model, [batch_of(ROWS)])(delta)[0] == pytest.approx(after - before, rel=1e-3)


def test_the_hessian_of_a_linear_softmax_is_what_the_cost_bends_by():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    model, batch = cases.linear_model(x)
    delta = noise(model, ["weight"], 1e-4)
    delta = {"weight": delta["weight"].double()}
    flat = delta["weight"].reshape(-1)
    bent = float(flat @ cases.softmax_hessian(model, x) @ flat)
    cost = KLCost(model, [batch])

    assert cost(delta)[0] == pytest.approx(bent / 2, rel=1e-3)
    assert cost.curvature(delta) == pytest.approx(bent, rel=1e-9)


def test_one_derivative_starts_a_search():
    model = random_model("llama")
    cost = KLCost(model, [padded_batch()])
    found = estimate_volume(
        cost, 1e-3, GaussianMeasure(0.2), n=4, search=CrossingSearch(start="jvp")
    )
    slow = estimate_volume(cost, 1e-3, GaussianMeasure(0.2), n=4, search=CrossingSearch(rtol=1e-4))

    assert found.summary()["evaluations_per_ray"] <= 2
    np.testing.assert_allclose(found.rays["radius"], slow.rays["radius"], rtol=1e-3)


def test_weights_come_back_bit_by_bit_also_after_an_error():
    model = random_model("llama")
    before = state(model)
    cost = KLCost(model, [padded_batch()])
    estimate_volume(cost, 0.01, GaussianMeasure(0.2), n=3)
    assert same(model, before)

    calls = []
    plain = model.forward

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError
        return plain(*args, **kwargs)

    model.forward = failing
    with pytest.raises(ZeroDivisionError):
        estimate_volume(cost, 0.01, GaussianMeasure(0.2), n=3)
    assert len(calls) == 4
    assert same(model, before)


def test_only_what_matches_moves():
    model = random_model("llama")
    moved = []
    cost = KLCost(model, [padded_batch()])
    inner = cost.evaluate
    cost.evaluate = lambda delta, among=None: (moved.append(set(delta)), inner(delta))[1]
    found = estimate_volume(cost, 0.01, GaussianMeasure(0.2), n=2, params="*.layers.1.mlp.*")

    assert moved[-1] == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    assert found.meta["dimensions"] == 3 * 32 * 48
    both = estimate_volume(cost, 0.01, GaussianMeasure(0.2), n=2, params=[NAME, "lm_head.*"])
    assert both.meta["params"] == [NAME, "lm_head.weight"]


def test_a_layers_volume_against_a_slow_reference():
    """The definition with explicit vectors: Riemann sums along rays found by bisection."""
    model = random_model("llama")
    cost = KLCost(model, [padded_batch()], tokens="last")
    eps, sigma = 1e-3, 0.3
    found = estimate_volume(
        cost,
        eps,
        GaussianMeasure(sigma),
        n=3,
        params="model.norm.weight",
        search=CrossingSearch(rtol=1e-5),
    )
    theta = dict(model.module.named_parameters())["model.norm.weight"].detach().double()
    dimensions = len(theta)
    from offkey.volume import log_sphere_area
    from offkey.volume.rays import Noise

    for number in range(3):
        z = Noise(0, number).normals("model.norm.weight", 0, dimensions).double()
        v = z / z.norm()
        low, high = 0.0, 50.0
        for _ in range(40):
            middle = (low + high) / 2
            above = cost({"model.norm.weight": (middle * v).float()})[0] >= eps
            low, high = (low, middle) if above else (middle, high)
        r = (torch.arange(200_000).double() + 0.5) * low / 200_000
        density = -(theta + r[:, None] * v).square().sum(1) / (2 * sigma**2)
        density -= dimensions / 2 * np.log(2 * np.pi * sigma**2)
        mass = torch.logsumexp((dimensions - 1) * r.log() + density, 0) + np.log(low / 200_000)
        assert found.rays["radius"][number] == pytest.approx(low, rel=1e-4)
        assert found.log_weights[number] == pytest.approx(
            float(mass) + log_sphere_area(dimensions), abs=dimensions * 1e-4
        )


def test_coarse_weights_are_refused_and_fine_ones_not():
    coarse = random_model("llama", dtype=torch.bfloat16)
    with pytest.raises(PrecisionTooLow, match="units in the last place of torch.bfloat16"):
        estimate_volume(KLCost(coarse, [padded_batch()]), 1e-4, GaussianMeasure(0.2), n=2)
    estimate_volume(
        KLCost(random_model("llama"), [padded_batch()]), 1e-4, GaussianMeasure(0.2), n=2
    )


def test_an_anchor_that_is_no_minimum_is_told():
    model = random_model("llama")
    with pytest.warns(AnchorNotMinimum, match="falls to -"):
        estimate_volume(LossCost(model, [padded_batch()]), 0.05, GaussianMeasure(0.2), n=6)


def test_what_cannot_be_is_refused():
    anchor = torch.zeros(3).double()
    plain = FunctionCost(lambda x: (x**2).sum(), anchor)
    with pytest.raises(InvalidAnchor, match=r"the cost of no perturbation is 1, not 0"):
        estimate_volume(FunctionCost(lambda x: 1 + x.sum(), anchor), 0.1, GaussianMeasure(1.0))
    with pytest.raises(NonFiniteCost, match="at the anchor is nan"):
        estimate_volume(FunctionCost(lambda x: x.sum() / 0 * 0, anchor), 0.1, GaussianMeasure(1.0))
    with pytest.raises(NonFiniteCost, match="no ray crosses"):
        estimate_volume(
            FunctionCost(lambda x: torch.nan if x.any() else 0.0, anchor),
            0.1,
            GaussianMeasure(1.0),
            n=2,
        )
    with pytest.raises(RadiusNotFound, match="budget"):
        estimate_volume(
            FunctionCost(lambda x: 3.0 * (x.norm() > 1), anchor),
            0.1,
            GaussianMeasure(1.0),
            n=2,
            search=CrossingSearch(max_evals=3),
        )
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(BadValue, match="eps: .* is not a positive number"):
            estimate_volume(plain, eps, GaussianMeasure(1.0))
    with pytest.raises(BadValue, match="0 rays"):
        estimate_volume(plain, 0.1, GaussianMeasure(1.0), n=0)
    for sigma in (None, 0.0, float("inf")):
        with pytest.raises(PriorMismatch, match=f"sigma is {sigma}"):
            GaussianMeasure(sigma)
    with pytest.raises(BadValue, match="flat measure"):
        estimate_volume(plain, 0.1, LebesgueMeasure(), proposal=Tilted())
    with pytest.raises(BadValue, match="without curvature"):
        estimate_volume(plain, 0.1, LebesgueMeasure(), proposal=Diagonal(anchor))
    assert issubclass(PriorMismatch, Mismatch)


def test_proposals_that_do_not_fit_are_refused():
    plain = FunctionCost(lambda x: (x["w"] ** 2).sum(), {"w": torch.zeros(2, 3).double()})
    wrong = [
        (Diagonal(torch.ones(5)), "5 curvatures for 6"),
        (Diagonal({"v": torch.ones(6)}), "parameter w: 0 curvatures for 6"),
        (Diagonal(-torch.ones(6)), "negative"),
        (Dense(torch.eye(4)), "a matrix of 4 for 6"),
        (Kronecker({"w": (torch.eye(3), torch.eye(3))}), r"factors of \(3, 3\)"),
        (Kronecker({}), "neither factors nor a diagonal"),
    ]
    for proposal, message in wrong:
        with pytest.raises(BadValue, match=message):
            estimate_volume(plain, 0.1, GaussianMeasure(1.0), proposal=proposal)
    with pytest.raises(BadValue, match="square matrix"):
        Dense(torch.ones(2, 3))


def test_models_and_data_that_do_not_fit_are_refused():
    model = random_model("llama")
    batch = batch_of(ROWS)
    with pytest.raises(NoMatchingParameters, match="no parameter matches 'model.layer.1"):
        estimate_volume(
            KLCost(model, [batch]), 0.1, GaussianMeasure(1.0), params="model.layer.1.*"
        )
    unmasked = Batch(batch.inputs, batch.ids)
    with pytest.raises(MissingMask, match="padding is not known"):
        estimate_volume(KLCost(model, [unmasked]), 0.1, GaussianMeasure(1.0))
    with pytest.raises(BadInput, match="no batches"):
        KLCost(model, [])
    with pytest.raises(BadValue, match="radii"):
        estimate_volume(KLCost(model, [batch], reduce="per_example"), 0.1, GaussianMeasure(1.0))
    with pytest.raises(BadValue, match="used before block 1"):
        estimate_volume(KLCost(model, [batch], start=1), 0.1, GaussianMeasure(1.0))
    with pytest.raises(BadValue, match="tokens"):
        KLCost(model, [batch], tokens="first")
    with pytest.raises(BadValue, match="reduce"):
        KLCost(model, [batch], reduce="sum")
    with pytest.raises(UnknownName):
        KLCost(model, [batch])({"nowhere": torch.zeros(1)})
    x = torch.randn(4, 3)
    linear, rows = cases.linear_model(x, dtype=torch.float32)
    with pytest.raises(BadInput, match="no target"):
        LossCost(linear, [rows])({})
    broken = Model(random_module("llama"), name="broken")
    with torch.no_grad():
        broken.module.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteCost, match="prompt 7-11-3-9-2"):
        KLCost(broken, [batch])({})


def test_examples_that_count_twice_are_told():
    model = random_model("llama")
    twice = [batch_of(ROWS), batch_of(ROWS[:1], width=12)]
    with pytest.warns(DuplicateExamples, match="7-11-3-9-2 and 7-11-3-9-2 are the same"):
        KLCost(model, twice)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KLCost(model, [batch_of(ROWS)])


def test_fisher_information_is_the_hessian_of_the_divergence():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    model, batch = cases.linear_model(x)
    cost = KLCost(model, [batch])
    exact = cases.softmax_hessian(model, x)

    torch.testing.assert_close(fisher_dense(cost), exact)
    drawn = fisher_diagonal(cost, draws=300)["weight"]
    assert drawn.shape == model.module.weight.shape
    torch.testing.assert_close(drawn.reshape(-1), exact.diag(), rtol=0.3, atol=2e-3)
    assert not model.module.weight.grad


def test_fisher_diagonal_of_texts_sums_over_tokens():
    model = random_model("llama")
    name = "model.norm.weight"
    cost = KLCost(model, [batch_of(ROWS, width=9)])
    with pytest.raises(BadValue, match="too large"):
        fisher_dense(cost)
    drawn = fisher_diagonal(cost, name, draws=400)[name]

    torch.testing.assert_close(
        drawn.double(), fisher_dense(cost, name).diag(), rtol=0.4, atol=1e-3
    )
