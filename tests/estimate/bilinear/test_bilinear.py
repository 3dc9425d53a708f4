"""Bilinear layers against the third-order tensor, planted spectra and invariances."""

import pytest
import torch

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.bilinear import (
    Bilinear,
    Spectrum,
    effective_rank,
    in_basis,
    in_latents,
    interactions,
)
from offkey.estimate.bilinear.interactions import latent_reader
from offkey.estimate.gaussian import Normal, propagate
from offkey.estimate.sparse import SparseDictionary
from offkey.training import TrainingSettings, train_module

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def layer_of(d=5, h=7, o=3, bias=True, seed=0):
    return Bilinear(d, h, o, bias=bias, seed=seed).double()


@pytest.mark.parametrize("bias", [False, True])
def test_interactions_equal_the_contracted_third_order_tensor(bias):
    layer, u = layer_of(bias=bias), draw(4, 3)
    tensor = torch.einsum("oh,hi,hj->oij", layer.down, layer.left, layer.right).detach()
    slow = torch.einsum("ko,oij->kij", u, tensor)
    torch.testing.assert_close(interactions(layer, u), (slow + slow.mT) / 2, **EXACT)


@pytest.mark.parametrize("bias", [False, True])
def test_all_eigenvectors_give_back_the_outputs(bias):
    layer, x, u = layer_of(bias=bias), draw(20, 5, seed=1), draw(4, 3)
    spectrum = Spectrum.of(interactions(layer, u))
    torch.testing.assert_close(spectrum(layer.extended(x)), layer(x).detach() @ u.T, **EXACT)
    sizes = spectrum.values.abs()
    assert bool((sizes[:, :-1] >= sizes[:, 1:]).all())


def test_and_is_a_half_along_both_diagonals():
    layer = Bilinear.of(torch.eye(2)[:1], torch.eye(2)[1:], torch.ones(1, 1))
    spectrum = Spectrum.of(interactions(layer))
    order = spectrum.values[0].argsort(descending=True)
    torch.testing.assert_close(spectrum.values[0][order], torch.tensor([0.5, -0.5]).double())
    vectors = spectrum.vectors[0][order].abs()
    torch.testing.assert_close(vectors, torch.full((2, 2), 0.5**0.5, dtype=torch.float64), **EXACT)
    assert float(spectrum.vectors[0][order][1].prod()) < 0
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).double()
    torch.testing.assert_close(spectrum(bits)[:, 0], bits.prod(1), **EXACT)


def test_exclusive_or_is_one_eigenvector():
    left = torch.tensor([[1.0, -1.0]])
    spectrum = Spectrum.of(interactions(Bilinear.of(left, left, torch.ones(1, 1))))
    torch.testing.assert_close(spectrum.values[0], torch.tensor([2.0, 0.0]).double(), **EXACT)
    first = spectrum.vectors[0, 0] * spectrum.vectors[0, 0, 0].sign()
    torch.testing.assert_close(first, torch.tensor([1, -1]).double() / 2**0.5, **EXACT)
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).double()
    torch.testing.assert_close(spectrum.truncated(1)(bits)[:, 0], bits.sum(1) % 2, **EXACT)


def planted():
    vectors = torch.linalg.qr(draw(6, 6))[0][:, :3]
    values = torch.tensor([5.0, -2.0, 1.0]).double()
    layer = Bilinear.of(values[:, None] * vectors.T, vectors.T, torch.ones(1, 3).double())
    return layer, values, vectors


def test_planted_spectrum():
    layer, values, vectors = planted()
    spectrum = Spectrum.of(interactions(layer), 3)
    torch.testing.assert_close(spectrum.values[0], values, rtol=1e-10, atol=1e-10)
    overlaps = (spectrum.vectors[0] @ vectors).abs()
    torch.testing.assert_close(overlaps, torch.eye(3).double(), **EXACT)


def antisymmetric(width):
    half = draw(width, width, seed=5)
    return half - half.T


@pytest.mark.parametrize("change", ["swapped", "rescaled", "antisymmetric"])
def test_what_changes_no_output_changes_no_interaction(change):
    left, right, down = draw(7, 5), draw(7, 5, seed=1), torch.ones(1, 7).double()
    before = interactions(Bilinear.of(left, right, down))
    if change == "swapped":
        left, right = right, left
    elif change == "rescaled":
        factor = draw(7, 1, seed=2)
        left, right = factor * left, right / factor
    else:
        right = right + antisymmetric(7) @ left
    torch.testing.assert_close(interactions(Bilinear.of(left, right, down)), before, **EXACT)


def test_a_basis_of_inputs():
    layer, basis, t = layer_of(bias=False), draw(5, 8, seed=3), draw(10, 8, seed=4)
    matrices = interactions(layer)
    changed = in_basis(matrices, basis)
    slow = torch.einsum("ni,kij,nj->nk", t, changed, t)
    torch.testing.assert_close(slow, layer(t @ basis.T).detach(), **EXACT)
    spectrum = Spectrum.of(matrices)
    torch.testing.assert_close(
        spectrum.embedded(basis)[1, 2], basis.T @ spectrum.vectors[1, 2], **EXACT
    )


def test_identity_dictionary_reproduces_the_neuron_basis():
    matrices = interactions(layer_of(bias=False))
    torch.testing.assert_close(
        in_latents(matrices, SparseDictionary.identity(5)), matrices, **EXACT
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_latents_give_the_outputs_of_what_they_rebuild(bias, offset):
    layer = layer_of(bias=bias)
    dictionary = SparseDictionary(
        draw(5, 9), draw(9, seed=1), draw(9, 5, seed=2), offset * draw(5, seed=3)
    )
    codes = dictionary.encode(draw(20, 5, seed=4))
    matrices = in_latents(interactions(layer), dictionary)
    if bias or offset:
        codes = torch.cat([torch.ones(20, 1).double(), codes], 1)
    slow = torch.einsum("ni,kij,nj->nk", codes, matrices, codes)
    rebuilt = dictionary.decode(codes[:, -9:])
    torch.testing.assert_close(slow, layer(rebuilt).detach(), **EXACT)


def test_readers_of_output_latents():
    dictionary = SparseDictionary(draw(3, 4), draw(4), draw(4, 3, seed=1), draw(3))
    which = torch.tensor([2, 0])
    assert torch.equal(latent_reader(dictionary, which), dictionary.encoder.T[which])
    assert torch.equal(latent_reader(dictionary, which, "decoder"), dictionary.decoder[which])
    with pytest.raises(BadValue, match="latents 0 to 4 of 4"):
        latent_reader(dictionary, torch.tensor([0, 4]))


@pytest.mark.parametrize("bias", [False, True])
def test_a_gaussian_goes_through_by_the_interactions(bias):
    layer, half = layer_of(bias=bias), draw(5, 5, seed=6)
    normal = Normal(draw(5, seed=7), half @ half.T)
    mean, covariance = normal.mean, normal.full
    if bias:
        mean = torch.cat([torch.ones(1).double(), mean])
        covariance = torch.block_diag(torch.zeros(1, 1).double(), covariance)
    state = propagate(torch.nn.Sequential(layer), normal)["0"]
    for k, q in enumerate(interactions(layer)):
        torch.testing.assert_close(state.mean[k], (q @ covariance).trace() + mean @ q @ mean)
        for j, r in enumerate(interactions(layer)):
            slow = 2 * (q @ covariance @ r @ covariance).trace()
            slow += 4 * mean @ q @ covariance @ r @ mean
            torch.testing.assert_close(state.full[k, j], slow)


def test_effective_rank():
    values = torch.tensor([[3.0, -3.0, 3.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(effective_rank(values), torch.tensor([3.0, 1.0, 0.0]))


def test_trained_by_the_common_loop():
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).float().repeat(10, 1)
    layer = Bilinear(2, 4, 1, bias=True, seed=3)
    target = x.sum(1, keepdim=True) % 2
    settings = TrainingSettings(steps=300, batch=40, rate=0.02)
    train_module(layer, x, target, settings, loss=torch.nn.functional.mse_loss)
    result = Spectrum.of(interactions(layer))(layer.extended(x.double()))
    torch.testing.assert_close(result, target.double(), rtol=0.02, atol=0.02)


def test_bad_input_is_named():
    layer = layer_of()
    with pytest.raises(Mismatch, match="rows of width 4 for a layer of 5 inputs"):
        layer(draw(2, 4))
    with pytest.raises(Mismatch, match="for 3 outputs"):
        interactions(layer, draw(1, 4))
    with pytest.raises(Mismatch, match="Give"):
        Bilinear.of(draw(2, 3), draw(2, 4), draw(1, 2))
    with pytest.raises(BadInput, match="left: a weight is not finite"):
        Bilinear.of(draw(2, 3) / 0, draw(2, 3), draw(1, 2))
    with pytest.raises(Mismatch, match="a dictionary of width 4"):
        in_latents(interactions(layer), SparseDictionary.identity(4))
    with pytest.raises(Mismatch, match="basis of shape"):
        in_basis(interactions(layer), draw(5, 3))
    with pytest.raises(BadInput, match="not symmetric"):
        Spectrum.of(draw(1, 3, 3))
    with pytest.raises(BadValue, match="rank 9 of 6"):
        Spectrum.of(interactions(layer), 9)
    with pytest.raises(BadValue, match="below 1"):
        Bilinear(0, 1, 1)
