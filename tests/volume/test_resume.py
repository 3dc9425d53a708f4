"""A run that is stopped goes on to the same numbers."""

import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from offkey.errors import Mismatch
from offkey.testing.random_models import padded_batch, random_model
from offkey.volume import FunctionCost, GaussianMeasure, KLCost, Tilted, Uniform, estimate_volume
from tests.volume.cases import tensor

pytestmark = pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
THETA = tensor(np.linspace(-1, 1, 8))


def cost(stop_after=None, *, batched=True, how=None):
    calls = []

    def function(x):
        calls.append(1)
        if stop_after is not None and len(calls) > stop_after:
            how()
        return ((x - THETA) ** 2).sum(-1) + ((x - THETA) ** 4).sum(-1)

    made = FunctionCost(function, THETA, batched=batched)
    made.calls = calls
    return made


def interrupt():
    raise KeyboardInterrupt


def run(given, out=None, n=12, **more):
    return estimate_volume(given, 0.2, GaussianMeasure(1.0), n=n, out=out, **more)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("stop_after", [1, 5, 15])
@pytest.mark.parametrize("proposal", [Uniform(), Tilted()])
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path, batched, stop_after, proposal):
    n = 600 if batched else 12
    whole = run(cost(batched=batched), n=n, proposal=proposal)
    with pytest.raises(KeyboardInterrupt):
        run(
            cost(stop_after, batched=batched, how=interrupt),
            tmp_path / "run",
            n=n,
            proposal=proposal,
        )
    again = run(cost(batched=batched), tmp_path / "run", n=n, proposal=proposal)

    for name in whole.rays:
        np.testing.assert_array_equal(again.rays[name], whole.rays[name])
    assert again.log_prob == whole.log_prob
    assert again.summary() == whole.summary()


def test_what_is_done_is_not_done_again(tmp_path):
    run(cost(batched=False), tmp_path)
    idle = cost(batched=False)
    run(idle, tmp_path)

    assert idle.calls == []


@pytest.mark.forks
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    whole = run(cost(batched=False))
    child = os.fork()
    if child == 0:
        run(cost(13, batched=False, how=lambda: os.kill(os.getpid(), signal.SIGKILL)), tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = run(cost(batched=False), tmp_path)

    np.testing.assert_array_equal(again.log_weights, whole.log_weights)


def test_the_folder_says_what_was_found(tmp_path):
    found = run(cost(), tmp_path)
    rows = pq.read_table(tmp_path / "rays.parquet").to_pylist()

    assert [row["log_weight"] for row in rows] == found.log_weights.tolist()
    assert {row["status"] for row in rows} == {"ok"}
    assert '"log_volume_nats"' in (tmp_path / "volume.json").read_text()
    assert '"status": "success"' in (tmp_path / "run.json").read_text()


def test_another_run_is_refused(tmp_path):
    run(cost(), tmp_path)
    with pytest.raises(Mismatch, match="eps"):
        estimate_volume(cost(), 0.3, GaussianMeasure(1.0), n=12, out=tmp_path)
    with pytest.raises(Mismatch, match="sigma"):
        estimate_volume(cost(), 0.2, GaussianMeasure(2.0), n=12, out=tmp_path)
    other = FunctionCost(lambda x: (x**2).sum(-1), torch.zeros(8).double(), batched=True)
    with pytest.raises(Mismatch, match="anchor"):
        run(other, tmp_path)


def test_a_models_run_resumes(tmp_path):
    model = random_model("llama")
    whole = estimate_volume(KLCost(model, [padded_batch()]), 0.01, GaussianMeasure(0.2), n=4)
    stopping = KLCost(model, [padded_batch()])
    inner = stopping.evaluate
    stopping.evaluate = lambda d, _=None: interrupt() if stopping.evaluations > 6 else inner(d)
    with pytest.raises(KeyboardInterrupt):
        estimate_volume(stopping, 0.01, GaussianMeasure(0.2), n=4, out=tmp_path)
    again = estimate_volume(
        KLCost(model, [padded_batch()]), 0.01, GaussianMeasure(0.2), n=4, out=tmp_path
    )

    np.testing.assert_array_equal(again.log_weights, whole.log_weights)
    assert len(list((tmp_path / "rays").glob("shard-*"))) == 4
