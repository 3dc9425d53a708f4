"""Independent features and dictionaries over Gaussians, against sampling and enumeration."""

import itertools
import math

import pytest
import torch

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData
from offkey.estimate.gaussian import Normal
from offkey.estimate.sparse import (
    IndependentFeatures,
    SparseDictionary,
    basis_surprise,
    count_log10,
    count_log10_gaussian,
    expected_loss,
    fit_dictionary,
    fit_to_normals,
    sparse_surprise,
)
from offkey.training import TrainingSettings

DRAWS = 200_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def features(slab="normal", noise=0.04):
    return IndependentFeatures(
        torch.tensor([0.3, 0.05, 0.6, 0.01]),
        torch.tensor([2.0, 5.0, 0.7, 9.0]),
        torch.tensor([0.5, 1.0, 0.2, 4.0]),
        draw(4, 3),
        draw(3, seed=1),
        noise,
        slab,
    )


@pytest.mark.parametrize("slab", ["normal", "lognormal"])
def test_moments_equal_those_of_samples(slab):
    made = features(slab)
    latents, rows = made.sample(DRAWS, generator(2))
    normal = made.moments()
    for values, mean, covariance in (
        (rows, normal.mean, normal.full),
        (latents, made.rates * made.means, torch.diag(made.latent_variances)),
    ):
        gaps = values - mean
        errors = values.std(0) / DRAWS**0.5
        assert bool((gaps.mean(0).abs() < 5 * errors).all())
        products = gaps[:, :, None] * gaps[:, None, :]
        errors = products.std(0) / DRAWS**0.5
        assert bool(((products.mean(0) - covariance).abs() < 5 * errors + 1e-12).all())


def test_twenty_rare_features_at_once():
    made = IndependentFeatures(
        torch.full((20,), 0.01), torch.ones(20), torch.zeros(20), torch.eye(20)
    )
    assert made.log10_joint(range(20)) == pytest.approx(-40, abs=1e-3)
    assert count_log10([0.01] * 20, 20) == pytest.approx(-40, abs=1e-3)
    assert count_log10_gaussian([0.01] * 20, 20) == pytest.approx(-432.0, abs=0.05)


def test_count_equals_enumeration():
    rates = [0.3, 0.05, 0.6, 0.01]
    for least in range(5):
        total = sum(
            math.prod(p if on else 1 - p for p, on in zip(rates, outcome, strict=True))
            for outcome in itertools.product((0, 1), repeat=4)
            if sum(outcome) >= least
        )
        assert count_log10(rates, least) == pytest.approx(math.log10(total), abs=1e-12)
    assert count_log10(rates, 5) == -math.inf


@pytest.mark.parametrize("slab", ["normal", "lognormal"])
def test_fit_recovers_what_was_planted(slab):
    made = features(slab)
    latents, rows = made.sample(DRAWS, generator(3))
    result = IndependentFeatures.fit(
        latents, made.decoder, rows=rows, offset=made.offset, slab=slab
    )
    torch.testing.assert_close(result.rates, made.rates, rtol=0.1, atol=0)
    torch.testing.assert_close(result.means, made.means, rtol=0.02, atol=0)
    torch.testing.assert_close(result.variances, made.variances, rtol=0.25, atol=0)
    assert result.noise == pytest.approx(0.04, rel=0.02)


def test_a_feature_that_was_never_seen_is_rare_and_not_impossible():
    latents = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    result = IndependentFeatures.fit(latents, torch.eye(2))
    torch.testing.assert_close(result.rates, torch.tensor([2.5 / 4, 0.5 / 4]).double())
    assert math.isfinite(float(result.surprise(torch.tensor([[0.0, 1.5]]))))


@pytest.mark.parametrize("slab", ["normal", "lognormal"])
def test_surprise_is_a_normalised_density(slab):
    made = IndependentFeatures(
        torch.tensor([0.2]), torch.tensor([2.0]), torch.tensor([0.5]), torch.eye(1), slab=slab
    )
    grid = torch.linspace(-8 if slab == "normal" else 1e-4, 30, 400_001).double()[:, None]
    on = torch.trapezoid((-made.surprise(grid) * math.log(2)).exp(), grid[:, 0])
    off = 2 ** -float(made.surprise(torch.zeros(1, 1)))
    assert off == pytest.approx(0.8, abs=1e-7)
    assert float(on) == pytest.approx(0.2, abs=1e-4)


def test_conditioning_sets_rates():
    made = features()
    known = made.given(on=[3], off=[0])
    assert known.rates.tolist() == pytest.approx([0, 0.05, 0.6, 1])
    weight = float(made.rates[3])
    whole = made.moments()
    mean = weight * made.given(on=[3]).moments().mean
    mean += (1 - weight) * made.given(off=[3]).moments().mean
    torch.testing.assert_close(mean, whole.mean)


def dictionary(d=4, m=6, seed=0):
    return SparseDictionary(
        draw(d, m, seed=seed),
        0.3 * draw(m, seed=seed + 1),
        0.4 * draw(m, d, seed=seed + 2),
        0.2 * draw(d, seed=seed + 3),
    )


def normal_of(d=4, seed=7):
    half = draw(d, d, seed=seed)
    return Normal(draw(d, seed=seed + 1), half @ half.T / d + 0.1 * torch.eye(d))


def test_dictionary_equals_its_definition():
    sae, x = dictionary(), draw(5, 4, seed=9)
    for row, (code, rebuilt) in enumerate(
        zip(sae.encode(x), sae.decode(sae.encode(x)), strict=True)
    ):
        z = sae.encoder.T @ (x[row] - sae.decoder_bias) + sae.encoder_bias
        assert torch.allclose(code, z.clamp(min=0))
        assert torch.allclose(rebuilt, sae.decoder.T @ code + sae.decoder_bias)
    big = sae.scaled(3.0)
    torch.testing.assert_close(big.decode(big.encode(3 * x)), 3 * sae.decode(sae.encode(x)))


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_closed_form_loss_equals_sampling(penalty):
    sae, normal = dictionary(), normal_of()
    rows = normal.sample(DRAWS, generator(5))
    codes = sae.encode(rows)
    each = (rows - sae.decode(codes)).square().sum(1) + penalty * codes @ sae.decoder.norm(dim=1)
    gap = float(expected_loss(sae, normal, penalty)) - float(each.mean())
    assert abs(gap) < 5 * float(each.std()) / DRAWS**0.5
    assert float(sae.loss(rows, penalty)) == pytest.approx(float(each.mean()), rel=1e-9)


def test_closed_form_loss_equals_quadrature_in_one_dimension():
    sae = SparseDictionary(
        torch.tensor([[1.3, -0.7]]).double(),
        torch.tensor([0.2, -0.4]).double(),
        torch.tensor([[0.8], [-0.5]]).double(),
        torch.tensor([0.1]).double(),
    )
    mean, deviation = 0.3, 1.2
    x = torch.linspace(mean - 12 * deviation, mean + 12 * deviation, 2_000_001).double()[:, None]
    density = torch.exp(-0.5 * ((x[:, 0] - mean) / deviation) ** 2)
    density /= deviation * math.sqrt(2 * math.pi)
    error = (x - sae.decode(sae.encode(x))).square().sum(1)
    slow = float(torch.trapezoid(density * error, x[:, 0]))
    normal = Normal(torch.tensor([mean]), torch.tensor([[deviation**2]]).double())
    assert float(expected_loss(sae, normal)) == pytest.approx(slow, rel=1e-6)


def test_closed_form_gradient_equals_differences():
    sae, normal = dictionary(3, 4), normal_of(3)
    parts = [sae.encoder, sae.encoder_bias, sae.decoder, sae.decoder_bias]
    assert torch.autograd.gradcheck(
        lambda *weights: expected_loss(SparseDictionary(*weights), normal, 0.2),
        [part.clone().requires_grad_() for part in parts],
    )


def test_diagonal_gaussians_are_the_full_ones_without_covariances():
    sae, normal = dictionary(), normal_of().diagonal()
    whole = Normal(normal.mean, normal.full)
    assert float(expected_loss(sae, normal)) == pytest.approx(float(expected_loss(sae, whole)))


def test_training_on_the_closed_form_lowers_the_sampled_loss():
    normal = normal_of()
    fitted = fit_to_normals(
        [(1.0, normal)], 8, TrainingSettings(steps=150, rate=0.02), penalty=0.0
    )
    rows = normal.sample(20_000, generator(6))
    left = float(fitted.loss(rows))
    assert left == pytest.approx(float(expected_loss(fitted, normal)), rel=0.05)
    assert left < 0.02 * float((rows - normal.mean).square().sum(1).mean())


def test_fit_to_rows_finds_planted_directions():
    directions = torch.linalg.qr(draw(8, 8))[0]
    made = IndependentFeatures(
        torch.full((8,), 0.1),
        torch.full((8,), 3.0),
        torch.full((8,), 0.3),
        directions,
        10 * torch.ones(8),
        1e-4,
        "lognormal",
    )
    _, rows = made.sample(4000, generator(1))
    fitted = fit_dictionary(
        rows, 16, TrainingSettings(steps=600, batch=200, rate=0.01), penalty=0.3
    )
    unit = fitted.decoder / fitted.decoder.norm(dim=1, keepdim=True)
    assert bool(((directions @ unit.T).amax(1) > 0.95).all())
    assert float(fitted.loss(rows)) < 0.1 * float((rows - rows.mean(0)).square().sum(1).mean())


def test_bad_input_is_named():
    sae = dictionary()
    with pytest.raises(Mismatch, match="rows of width 3 for a dictionary of width 4"):
        sae.encode(draw(2, 3))
    with pytest.raises(Mismatch, match="dictionary of width 4 for a Gaussian of width 2"):
        expected_loss(sae, Normal.standard(2))
    with pytest.raises(Mismatch, match="SparseDictionary"):
        SparseDictionary(draw(4, 6), draw(5), draw(6, 4), draw(4))
    with pytest.raises(BadInput, match="encoder_bias: a weight is not finite"):
        SparseDictionary(draw(4, 6), draw(6) / 0, draw(6, 4), draw(4))
    with pytest.raises(BadInput, match="rate is not between"):
        IndependentFeatures(torch.tensor([1.2]), torch.ones(1), torch.ones(1), torch.eye(1))
    with pytest.raises(BadInput, match="mean is not positive"):
        IndependentFeatures(
            torch.ones(1), -torch.ones(1), torch.ones(1), torch.eye(1), slab="lognormal"
        )
    with pytest.raises(NotEnoughData, match="no latent was on"):
        IndependentFeatures.fit(torch.zeros(5, 2), torch.eye(2))
    with pytest.raises(Mismatch, match="for 3 directions"):
        IndependentFeatures.fit(torch.zeros(5, 2), torch.eye(3))
    with pytest.raises(BadInput, match="all rows are alike"):
        fit_dictionary(torch.ones(50, 3), 4, TrainingSettings(steps=1))
    with pytest.raises(BadValue, match="no parts"):
        fit_to_normals([], 4, TrainingSettings(steps=1))
    with pytest.raises(BadValue, match="latents 1 to 4 of 4"):
        features().log10_joint([1, 4])
    with pytest.raises(BadValue, match="does not vary"):
        count_log10_gaussian([0.0, 1.0], 1)


def test_row_surprise_is_latents_and_rest_by_definition():
    sae = dictionary()
    made = IndependentFeatures(
        torch.full((6,), 0.4), torch.ones(6), torch.ones(6), sae.decoder, sae.decoder_bias, 0.3
    )
    rows = draw(5, 4, seed=11)
    codes = sae.encode(rows)
    rest = torch.distributions.Normal(sae.decode(codes), torch.tensor(0.3).double().sqrt())
    slow = made.surprise(codes) - rest.log_prob(rows).sum(1) / math.log(2)
    torch.testing.assert_close(sparse_surprise(sae, made, rows), slow)


def test_surprise_of_a_basis_by_definition():
    normal, rows = normal_of(), draw(7, 4, seed=12)
    empty = normal.diagonal()
    result = basis_surprise((normal, 10), (empty, 4), rows, 64)
    for value, given in ((result.outcome, normal), (result.empty_outcome, empty)):
        each = torch.distributions.MultivariateNormal(given.mean, given.full).log_prob(rows)
        assert value == pytest.approx(-float(each.sum()) / math.log(2), rel=1e-9)
    assert (result.argument, result.empty_argument) == (30, 12)


def test_the_true_dictionary_explains_more_than_it_costs():
    decoder = draw(5, 16, seed=13)
    made = IndependentFeatures(
        torch.full((5,), 0.2), torch.full((5,), 3.0), torch.ones(5), decoder, noise=0.01
    )
    _, fit = made.sample(500, generator(1))
    _, held = made.sample(500, generator(2))
    neurons = Normal(fit.mean(0), fit.var(0))
    assert basis_surprise((made.moments(), 6), (neurons, 16), held, 500).net > 0
    assert basis_surprise((neurons, 16), (neurons, 16), held, 500).net == 0


def test_scores_of_another_dictionary_are_refused():
    with pytest.raises(Mismatch, match="for a dictionary of"):
        sparse_surprise(dictionary(), features(), draw(2, 4))
    bare = IndependentFeatures(torch.ones(6) / 2, torch.ones(6), torch.ones(6), draw(6, 4))
    with pytest.raises(BadValue, match="no noise"):
        sparse_surprise(dictionary(), bare, draw(2, 4))
    with pytest.raises(Mismatch, match="rows of width 3"):
        basis_surprise((normal_of(), 1), (normal_of(), 1), draw(2, 3), 10)
