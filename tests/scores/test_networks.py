import numpy as np
import pytest
import torch

from offkey.errors import BadValue, NonFinite, NotEnoughData
from offkey.scores import get_score
from tests.scores.rows import auroc, finished, gaussian_rows, same


def weights(score):
    """The layers of the network, cut from the stored vector."""
    flat, width, start = score.parameters_.double().numpy(), score.axes_.shape[1], 0
    hidden, layers = 2 * width, []
    for inner, outer in [
        (width, hidden),
        (hidden, 2 * score.latent),
        (score.latent, hidden),
        (hidden, width),
    ]:
        layers.append(
            (
                flat[start : start + inner * outer].reshape(outer, inner),
                flat[start + inner * outer : start + inner * outer + outer],
            )
        )
        start += inner * outer + outer
    assert start == len(flat)

    return layers


def slow_parts(score, rows):
    """Squared error and divergence of each row, by the equations."""
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = weights(score)
    mean, axes = score.mean_.numpy(), score.axes_.numpy()
    unit = float(score.spread_[0])
    errors, divergences = [], []
    for x in rows.numpy():
        y = axes.T @ (x - mean) / unit
        code = w2 @ np.maximum(w1 @ y + b1, 0) + b2
        m, v = code[: score.latent], np.exp(code[score.latent :])
        rebuilt = mean + axes @ (unit * (w4 @ np.maximum(w3 @ m + b3, 0) + b4))
        errors.append(np.sum((x - rebuilt) ** 2))
        divergences.append(sum(m**2 + v - 1 - np.log(v)) / 2)
    return np.array(errors), np.array(divergences)


@pytest.mark.parametrize("components", [3, 64])
def test_is_the_definition(components):
    trusted, queries = gaussian_rows(80, 6, seed=1), gaussian_rows(12, 6, seed=2) * 2
    settings = {"components": components, "latent": 2, "steps": 10, "beta": 0.5}
    score = finished("vae", trusted, **settings)
    errors, divergences = slow_parts(score, queries)
    same(score(queries), errors / (2 * float(score.noise_)) + divergences / 2, rtol=1e-8)
    plain = finished("vae", trusted, **settings, kind="reconstruction")
    same(plain(queries), errors / (2 * float(score.noise_)), rtol=1e-8)


def test_the_divergence_is_that_of_torch():
    trusted = gaussian_rows(80, 6, seed=1)
    score = finished("vae", trusted, latent=3, steps=5)
    mean, log_variance = score._network.encode(score._coordinates(trusted))
    code = torch.distributions.Normal(mean, (log_variance / 2).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(code, unit).sum(1)
    gap = score(trusted) - finished("vae", trusted, latent=3, steps=5, kind="reconstruction")(
        trusted
    )
    same(gap, expected.numpy(), rtol=1e-8)


def plane(count, *, seed, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(9)))[0]
    flat = 3 * torch.randn(count, 2, generator=generator) @ axes.T

    return flat + noise * torch.randn(count, 8, generator=generator), axes


def test_learns_a_plane_and_sees_what_leaves_it():
    trusted, axes = plane(400, seed=1)
    score = finished("vae", trusted, latent=2, steps=300)
    normal = plane(100, seed=2)[0]
    away = torch.linalg.qr(torch.cat([axes, torch.eye(8)[:, :1]], 1))[0][:, 2]
    assert auroc(score(normal), score(normal + 3 * away)) > 0.98
    # Of the variance of a plane, 9 in 2 of 8 directions, it must have explained most.
    assert float(score.noise_) < 0.2 * float(trusted.var(0).mean())
    assert float(score.noise_) > 0.5 * 0.1**2


def test_training_lowers_the_held_out_error():
    trusted = plane(200, seed=1)[0]
    early, late = (finished("vae", trusted, latent=2, steps=n) for n in (1, 150))
    assert float(late.noise_) < 0.3 * float(early.noise_)


def test_a_training_that_diverges_names_the_step():
    with pytest.raises(NonFinite, match=r"vae step \d+: the loss is (nan|inf)") as caught:
        finished("vae", gaussian_rows(60, 6, seed=1), rate=1e30)
    assert "rate" in caught.value.mend


def test_too_few_rows_and_wrong_settings_are_refused():
    with pytest.raises(NotEnoughData, match="9 trusted rows where at least 10"):
        finished("vae", gaussian_rows(9, 3, seed=1))
    assert finished("vae", gaussian_rows(10, 3, seed=1), steps=2) is not None
    with pytest.raises(BadValue, match="vae kind"):
        get_score("vae", kind="likelihood")
