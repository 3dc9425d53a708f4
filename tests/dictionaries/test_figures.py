"""Figures on a tiny model, against loops over single texts."""

import numpy as np
import pytest
import torch

from offkey.dictionaries import Dictionary, DictionaryRecipe, check_fits, measure, train_dictionary
from offkey.errors import BadInput, Mismatch
from offkey.passes import ActivationStream
from tests.dictionaries.reader import WINDOWS, slow_rows, slow_windows


def constant(vector):
    width = len(vector)
    nothing = torch.zeros(width, 4)
    return Dictionary(nothing, torch.zeros(4), nothing.T.contiguous(), vector, site="resid_post.0")


def identity(width):
    eye = torch.eye(width)
    both = torch.cat([eye, -eye], dim=1)
    return Dictionary(
        both, torch.zeros(2 * width), both.T.contiguous(), torch.zeros(width), site="resid_post.0"
    )


def test_a_perfect_dictionary_recovers_everything(model, texts):
    found = measure(identity(32), model, texts, windows=WINDOWS)
    assert found.recovered_mean.value == pytest.approx(1, abs=1e-4)
    assert found.recovered_zero.value == pytest.approx(1, abs=1e-4)
    assert found.explained_variance.value == pytest.approx(1, abs=1e-6)
    assert found.norm_ratio.value == pytest.approx(1, abs=1e-6)
    assert found.active.value == 32
    assert found.dead_share == 0


def test_the_mean_recovers_nothing_of_the_mean_and_zero_nothing_of_zero(model, texts):
    mean = measure(constant(slow_rows(model, texts).mean(0)), model, texts, windows=WINDOWS)
    assert mean.recovered_mean.value == pytest.approx(0, abs=1e-4)
    assert mean.explained_variance.value == pytest.approx(0, abs=1e-5)
    assert mean.dead_share == 1
    zero = measure(constant(torch.zeros(32)), model, texts, windows=WINDOWS)
    assert zero.recovered_zero.value == pytest.approx(0, abs=1e-6)
    assert zero.loss_zero.value == pytest.approx(zero.loss_spliced.value)


def test_figures_are_what_loops_give(model, texts):
    d = Dictionary(
        torch.randn(32, 20, generator=torch.Generator().manual_seed(0)),
        torch.full((20,), -6.0),
        torch.randn(20, 32, generator=torch.Generator().manual_seed(1)) / 9,
        torch.zeros(32),
        site="resid_post.0",
    )
    found = measure(d, model, texts, windows=WINDOWS)
    rows = slow_rows(model, texts).double()
    f = torch.stack([d.encode(row.float()) for row in rows])
    made = torch.stack([d(row.float()) for row in rows]).double()
    assert found.rows == len(rows)
    assert found.texts == 12
    assert found.active.value == pytest.approx(float((f > 0).sum() / len(rows)))
    assert found.dead_share == pytest.approx(float((f == 0).all(0).double().mean()))
    total = float((rows - rows.mean(0)).square().sum())
    assert found.explained_variance.value == pytest.approx(
        1 - float((rows - made).square().sum()) / total, rel=1e-4
    )
    losses = []
    for _, tokens, _, logits in slow_windows(model, texts):
        losses += torch.nn.functional.cross_entropy(
            logits[:-1], tokens[1:], reduction="none"
        ).tolist()
    assert found.loss.value == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.loss.low < found.loss.value < found.loss.high
    assert found.loss_spliced.value == pytest.approx(spliced_loss(model, texts, d), rel=1e-4)
    row = found.as_row()
    assert {"loss", "loss_low", "dead_share"} < set(row)
    assert all(isinstance(value, int | float) for value in row.values())


def spliced_loss(model, texts, d):
    """By hand: block 1 and the head after a reconstruction at every token but the first."""

    def hook(module, args, output):
        new = output.clone()
        new[:, 1:] = d(output[:, 1:])
        return new

    losses = []
    for _, tokens, _, _ in slow_windows(model, texts):
        handle = model.module.model.layers[0].register_forward_hook(hook)
        with torch.no_grad():
            logits = model.module(tokens[None]).logits[0]
        handle.remove()
        losses += torch.nn.functional.cross_entropy(
            logits[:-1], tokens[1:], reduction="none"
        ).tolist()
    return np.mean(losses)


def test_longer_activations_do_not_count(model, texts):
    lengths = slow_rows(model, texts).norm(dim=1)
    most = float(lengths.median())
    found = measure(identity(32), model, texts, windows=WINDOWS, longest=most)
    assert found.rows + found.too_long == len(lengths)
    assert found.rows == pytest.approx(len(lengths) / 2, abs=2)


def test_a_dictionary_trained_on_a_stream_knows_where_it_belongs(model, texts):
    stream = ActivationStream(model, texts, "resid_post.*", windows=WINDOWS)
    how = DictionaryRecipe(latents=40, active=4, rows=1024, batch=64, buffer=2)
    made, _ = train_dictionary(stream.at("resid_post.1"), how)
    assert (made.site, made.model) == ("resid_post.1", "org/tiny")
    assert made.about["model_fingerprint"] == model.fingerprint
    assert made.about["windows"] == WINDOWS.as_dict()
    assert check_fits(made, model) == model.site("resid_post.1")


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(Mismatch, match="width 8, and resid_post.0 of org/tiny has width 32"):
        check_fits(constant(torch.zeros(8)), model)
    with pytest.raises(Mismatch, match="trained at resid_post.0, not at resid_post.1"):
        check_fits(constant(torch.zeros(32)), model, "resid_post.1")
    nowhere = Dictionary(torch.zeros(32, 4), torch.zeros(4), torch.zeros(4, 32), torch.zeros(32))
    with pytest.raises(BadInput, match="does not say"):
        check_fits(nowhere, model)
