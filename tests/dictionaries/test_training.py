"""Gradients against slow references, a planted dictionary, and runs that go on."""

import math

import pytest
import torch

from offkey.dictionaries import DictionaryRecipe, train_dictionary
from offkey.dictionaries.trainees import (
    JumpReLUTrainee,
    TopKTrainee,
    gate,
    geometric_median,
    topk_reconstruction,
)
from offkey.errors import BadValue, Mismatch, NonFinite, NotEnoughData
from offkey.passes import TensorBlocks

PLANTED = 24


def directions():
    drawn = torch.randn(PLANTED, 16, generator=torch.Generator().manual_seed(1))
    return drawn / drawn.norm(dim=1, keepdim=True)


def planted(count, seed=0):
    """Rows of three of 24 directions each, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, PLANTED, generator=generator).argsort(1)[:, :3]
    sizes = 1 + torch.rand(count, 3, generator=generator)
    f = torch.zeros(count, PLANTED).scatter_(1, places, sizes)
    return 7 * f @ directions() + 30


def recipe(**changes):
    return DictionaryRecipe(
        **{
            "latents": 32,
            "active": 3,
            "rows": 120_000,
            "batch": 256,
            "rate": 4e-3,
            "dead_after": 4000,
            "buffer": 16,
            **changes,
        }
    )


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_a_planted_dictionary_is_found(kind):
    made, run = train_dictionary(TensorBlocks(planted(12_000), 1024), recipe(kind=kind))
    x = planted(2000, seed=9)
    explained = 1 - (x - made(x)).square().sum() / (x - x.mean(0)).square().sum()
    closest = (directions() @ made.decoder.T).amax(1)
    assert closest.mean() > 0.95
    assert explained > 0.85
    active = (made.encode(x) > 0).sum(1).float().mean()
    assert active == 3 if kind == "topk" else 2 < active < 4.5
    torch.testing.assert_close(made.decoder.norm(dim=1), torch.ones(32))
    assert run.steps == 469
    assert run.rows[-1]["loss"] < run.rows[20]["loss"]


def dense_topk(x, encoder, encoder_bias, decoder, decoder_bias, k):
    z = (x - decoder_bias) @ encoder.T + encoder_bias
    values, places = z.topk(k, dim=1)
    f = torch.zeros_like(z).scatter(1, places, values.relu())
    return f @ decoder + decoder_bias


def test_the_sparse_backward_pass_is_the_dense_one():
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 5), (30, 5), (30,), (30, 5), (5,))
    given = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    weights = [value.requires_grad_() for value in given[1:]]
    target = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    results = []
    for make in (
        lambda: topk_reconstruction(given[0], *weights, 4)[0],
        lambda: dense_topk(given[0], *weights, 4),
    ):
        made = make()
        loss = ((made - target) ** 2).mean()
        results.append((made.detach(), torch.autograd.grad(loss, weights)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected)


def ramp(z, theta, bandwidth):
    """The smooth step whose slope the pseudo-derivatives are."""
    return ((z - theta) / bandwidth + 0.5).clamp(0, 1)


def test_pseudo_derivatives_are_slopes_of_the_smoothed_functions():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    theta = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    latent = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    row = torch.randn(400, generator=generator, dtype=torch.float64)
    width, h = 0.15, 1e-7

    def smoothed(t):
        jumps = theta.detach() * ramp(z, t, width)
        return (latent * jumps).sum() + (row * ramp(z, t, width).sum(1)).sum()

    f, count = gate(z, theta, width)
    (found,) = torch.autograd.grad((latent * f).sum() + (row * count).sum(), theta)
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = h
        t = theta.detach()
        slope = (smoothed(t + shift) - smoothed(t - shift)) / (2 * h)
        assert math.isclose(float(found[i]), float(slope), rel_tol=1e-5)


def test_the_gate_passes_values_and_gradients_above_the_threshold_alone():
    z = torch.tensor([[-1.0, 0.2, 0.9], [0.7, 0.6, 0.1]], requires_grad=True)
    f, count = gate(z, torch.full((3,), 0.5), 0.1)
    assert f.tolist() == z.detach().where(z > 0.5, 0).tolist()
    assert count.tolist() == [1, 2]
    (f.sum() + 5 * count.sum()).backward()
    assert z.grad.tolist() == [[0, 0, 1], [1, 1, 0]]


def test_the_loss_of_jumprelu_is_its_definition():
    trainee = JumpReLUTrainee(recipe(kind="jumprelu"), planted(512), torch.Generator())
    with torch.no_grad():
        trainee.decoder_bias += 0.3
        trainee.encoder_bias -= 0.1
    made = trainee.to_dictionary()
    rows = planted(64, seed=3)
    x = trainee.scaled(rows)
    f = made.encode(rows)
    error = (x - trainee.scaled(made.decode(f))).square().mean()
    off = (f > 0).sum(1).float().mean() / 3 - 1
    torch.testing.assert_close(trainee.loss(x, 1.0).detach(), error + off**2, rtol=1e-4, atol=0)
    torch.testing.assert_close(trainee.loss(x, 0.0).detach(), error, rtol=1e-4, atol=0)


def test_auxk_moves_dead_latents_and_nothing_else():
    rows = planted(512)
    trainee = TopKTrainee(recipe(), rows, torch.Generator().manual_seed(0))
    dead = torch.tensor([2, 11, 30])
    with torch.no_grad():
        trainee.encoder_bias[dead] = -5.0
        trainee.encoder[dead] = torch.randn(3, 16) * 3
        trainee.silent[dead] = 4000
    plain = TopKTrainee(recipe(auxiliary=0), rows, torch.Generator().manual_seed(0))
    plain.load_state_dict(trainee.state_dict())
    x = trainee.scaled(rows)
    found, without = trainee.loss(x, 1.0), plain.loss(x, 1.0)

    missed = (x - plain.reconstruct(x)).detach()
    z = x @ trainee.encoder.T + trainee.encoder_bias
    expected = 0.0
    for row, left in zip(z, missed, strict=True):
        best = sorted(dead.tolist(), key=lambda i: -float(row[i].detach()))[:8]
        again = sum(max(0.0, float(row[i].detach())) * trainee.decoder[i].detach() for i in best)
        expected += float((left - again).square().mean()) / len(x)
    assert math.isclose(float((found - without).detach()), 3 / 8 / 32 * expected, rel_tol=1e-3)
    found.backward()
    without.backward()
    moved = (trainee.decoder.grad - plain.decoder.grad).norm(dim=1)
    assert (moved[dead] > 1e-6).all()
    moved[dead] = 0
    assert moved.max() < 1e-7


def test_the_gradient_of_the_decoder_does_not_lengthen_it():
    trainee = JumpReLUTrainee(recipe(kind="jumprelu"), planted(512), torch.Generator())
    trainee.loss(trainee.scaled(planted(256, seed=2)), 1.0).backward()
    along = (trainee.decoder.grad * trainee.decoder).sum(1)
    assert along.abs().max() < 1e-6 < trainee.decoder.grad.abs().max()


def test_rows_are_scaled_to_the_root_of_the_width():
    rows = planted(800)
    trainee = TopKTrainee(recipe(), rows, torch.Generator().manual_seed(0))
    assert math.isclose(float(trainee.scaled(rows).norm(dim=1).mean()), 4.0, rel_tol=1e-5)


def test_the_geometric_median_ignores_a_far_row():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + 5
    far = torch.cat([rows, torch.full((1, 3), 1e6)])
    assert (geometric_median(far) - 5).norm() < 0.3 < 1e3 < far.mean(0).norm()

    def cost(point):
        return float((rows.double() - point).norm(dim=1).sum())

    found = geometric_median(rows).double()
    for shift in torch.eye(3, dtype=torch.float64) * 1e-2:
        assert cost(found) <= min(cost(found + shift), cost(found - shift))


def test_rows_that_are_too_long_are_left_out():
    rows = planted(2048)
    rows[5] *= 1000
    made, _ = train_dictionary(TensorBlocks(rows, 512), recipe(rows=2048))
    assert made.about["longest_row"] < rows[5].norm() / 10


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(kind, tmp_path):
    blocks = TensorBlocks(planted(3000), 512)
    how = recipe(kind=kind, rows=256 * 60, buffer=4, dead_after=800)
    whole, _ = train_dictionary(blocks, how)

    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 37:
            raise Stopped

    with pytest.raises(Stopped):
        train_dictionary(blocks, how, folder=tmp_path, save_every=10, tell=stop)
    again, run = train_dictionary(blocks, how, folder=tmp_path, save_every=10)
    assert run.steps == 60
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert again.about == whole.about


def test_another_recipe_does_not_go_on(tmp_path):
    blocks = TensorBlocks(planted(600), 300)
    train_dictionary(blocks, recipe(rows=1024), folder=tmp_path)
    with pytest.raises(Mismatch):
        train_dictionary(blocks, recipe(rows=1024, rate=1.0), folder=tmp_path)


def test_bad_runs_are_refused():
    with pytest.raises(NotEnoughData, match="100 rows, a batch has 256"):
        train_dictionary(TensorBlocks(planted(100)), recipe())
    broken = recipe(rows=512, kind="jumprelu", sparsity=float("nan"))
    with pytest.raises(NonFinite, match="step 0"):
        train_dictionary(TensorBlocks(planted(600)), broken)
    with pytest.raises(BadValue, match="40 of 32 latents"):
        recipe(active=40)
    with pytest.raises(BadValue, match="Use 'topk' or 'jumprelu'"):
        recipe(kind="relu")
