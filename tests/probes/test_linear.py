"""Probes against a general minimiser, and what cross-fitting leaves out."""

from zlib import crc32

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold

from offkey.probes import CrossFittedProbe, Probe, fit_probe


def slow_probe(x, y, penalty):
    """The regression by a general minimiser, on rows standardised one column at a time."""
    columns = []
    for column in x.T:
        columns.append((column - np.mean(column)) / np.std(column))
    z = np.stack(columns, 1)
    sign = 2 * y - 1

    def loss(theta):
        margins = sign * (z @ theta[:-1] + theta[-1])
        return np.mean(np.logaddexp(0, -margins)) + penalty / 2 * np.sum(theta[:-1] ** 2)

    return z, minimize(loss, np.zeros(x.shape[1] + 1), tol=1e-10).x


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_a_probe_is_the_penalised_minimum(penalty):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4)) * [1, 10, 0.1, 1] + [0, 5, 0, 100]
    y = (x[:, 0] + 0.1 * x[:, 1] + rng.normal(size=80) > 0.5).astype(int)
    z, theta = slow_probe(x, y, penalty)
    found = fit_probe(x, y, (penalty,))(torch.from_numpy(x))
    np.testing.assert_allclose(found, z @ theta[:-1] + theta[-1], atol=2e-3)


def test_the_penalty_is_the_one_with_the_least_held_out_loss():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 20))
    y = (x[:, 0] + rng.normal(size=60) > 0).astype(int)
    penalties = (1e-3, 1e-1, 10.0)
    losses = {}
    for penalty in penalties:
        losses[penalty] = 0.0
        for train, test in StratifiedKFold(3).split(x, y):
            _, theta = slow_probe(x[train], y[train], penalty)
            z = (x[test] - x[train].mean(0)) / x[train].std(0)
            margins = (2 * y[test] - 1) * (z @ theta[:-1] + theta[-1])
            losses[penalty] += np.logaddexp(0, -margins).sum()
    assert fit_probe(x, y, penalties).penalty == min(losses, key=losses.get)
    assert len({round(loss) for loss in losses.values()}) == 3


def test_what_stands_still_says_nothing():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 3))
    y = (x[:, 0] > 0).astype(int)
    still = np.concatenate([x, np.full((40, 1), 1e4) + 1e-3 * rng.normal(size=(40, 1))], 1)
    probe = fit_probe(still, y, (0.1,))
    assert probe.weight[3] == 0
    torch.testing.assert_close(probe.weight[:3], fit_probe(x, y, (0.1,)).weight)


def test_an_answer_that_occurs_once_is_enough():
    x = np.random.default_rng(3).normal(size=(9, 2))
    assert fit_probe(x, np.eye(9, dtype=int)[0], (1e-3, 10.0)).penalty == 10.0


def test_each_id_is_read_by_the_probe_of_its_fold(tmp_path):
    probes = tuple(
        Probe(torch.tensor([float(fold), 1.0], dtype=torch.float64), 0.5, 1.0) for fold in range(3)
    )
    several = CrossFittedProbe(probes)
    ids = [f"p{n}" for n in range(12)]
    fold = torch.tensor([crc32(id.encode()) % 3 for id in ids]).double()
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))

    assert len(set(fold.tolist())) == 3
    torch.testing.assert_close(several(x, ids), fold * x[:, 0] + x[:, 1] + 0.5)
    assert several.weights(ids)[:, 0].tolist() == fold.tolist()
    again = CrossFittedProbe.from_state(several.state())
    assert torch.equal(again(x, ids), several(x, ids))
