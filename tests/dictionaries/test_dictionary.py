"""Encoding and decoding, against the definitions entry by entry."""

import json
from dataclasses import replace

import pytest
import torch

from offkey.dictionaries import Dictionary
from offkey.errors import BadValue, Mismatch
from offkey.storage import flatten, unflatten


def dictionary(activation, *, width=6, latents=15, centred=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        drawn(width, latents),
        drawn(latents),
        drawn(latents, width),
        drawn(width),
        activation,
        k=4 if activation == "topk" else None,
        threshold=drawn(latents) if activation == "jumprelu" else None,
        centred=centred,
    )


def slow_latents(d, row):
    z = []
    for i in range(d.latents):
        total = float(d.encoder_bias[i])
        for j in range(d.width):
            shift = float(d.decoder_bias[j]) if d.centred else 0.0
            total += (float(row[j]) - shift) * float(d.encoder[j, i])
        z.append(total)
    if d.activation == "relu":
        return [max(0.0, v) for v in z]
    if d.activation == "jumprelu":
        return [v if v > max(0.0, float(t)) else 0.0 for v, t in zip(z, d.threshold, strict=True)]
    kept = sorted(range(len(z)), key=lambda i: -z[i])[: d.k]
    return [max(0.0, v) if i in kept else 0.0 for i, v in enumerate(z)]


def slow_decoded(d, f):
    return [
        float(d.decoder_bias[j]) + sum(f[i] * float(d.decoder[i, j]) for i in range(d.latents))
        for j in range(d.width)
    ]


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("centred", [True, False])
def test_it_is_its_definition(activation, centred):
    d = dictionary(activation, centred=centred)
    x = 2 * torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    expected = [slow_latents(d, row) for row in x]
    torch.testing.assert_close(d.encode(x), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    made = torch.tensor([slow_decoded(d, f) for f in expected])
    torch.testing.assert_close(d(x), made, rtol=1e-4, atol=1e-4)
    assert torch.equal(d.encode_sparse(x).to_dense(), d.encode(x))
    torch.testing.assert_close(d.decode(d.encode_sparse(x)), d(x))


def test_topk_has_k_active_where_enough_are_positive():
    d = dictionary("topk", latents=200)
    f = d.encode(torch.randn(50, 6))
    assert ((d.hidden(torch.zeros(1, 6)) > 0).sum() >= d.k).all()
    assert ((f > 0).sum(1) == 4).all()
    kept = f.sort(dim=1, descending=True).values[:, 3]
    assert kept.min() > 0


def test_axes_before_the_last_pass_through():
    d = dictionary("topk")
    x = torch.randn(2, 3, 6)
    assert d.encode(x).shape == (2, 3, 15)
    torch.testing.assert_close(d(x), d(x.view(6, 6)).view(2, 3, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_computes_in_its_own_dtype(dtype):
    d = dictionary("jumprelu").to(dtype=dtype)
    x = torch.randn(4, 6)
    assert d.encode(x).dtype == d(x).dtype == d.threshold.dtype == dtype


def test_another_width_is_refused():
    with pytest.raises(Mismatch, match="width 7 for a dictionary of width 6"):
        dictionary("relu").encode(torch.zeros(2, 7))


def test_values_that_do_not_fit_are_refused():
    good = dictionary("topk")
    parts = (good.encoder, good.encoder_bias, good.decoder, good.decoder_bias)
    with pytest.raises(BadValue, match="k is 16"):
        Dictionary(*parts, "topk", k=16)
    with pytest.raises(BadValue, match="k is None"):
        Dictionary(*parts, "topk")
    with pytest.raises(BadValue, match="threshold is missing"):
        Dictionary(*parts, "jumprelu")
    with pytest.raises(BadValue, match="decoder is of shape"):
        Dictionary(good.encoder, good.encoder_bias, good.encoder, good.decoder_bias)


def test_it_comes_back_from_its_state_as_it_was():
    made = replace(dictionary("jumprelu"), about={"context_size": 128}, site="resid_post.1")
    settings, tensors = flatten(made.state())
    again = Dictionary.from_state(unflatten(json.loads(json.dumps(settings)), tensors))
    x = torch.randn(5, made.width, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again(x), made(x))
    assert (again.about, again.site, again.activation) == (made.about, made.site, made.activation)
