"""A pass holds one shard at a time: ten times the prompts take the memory of one."""

import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from offkey.passes import Plan, RowRecorder, World
from tests.passes.conftest import prompts_of

pytestmark = pytest.mark.forks

WIDTH = 8192


def _peak(count: int, llama: Any, folder: Path, pipe: Any) -> None:
    prompts = prompts_of(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def wide(reading: Any) -> dict[str, torch.Tensor]:
        [value] = reading.values.values()
        return {"x": value[:, :1].float() + torch.arange(WIDTH)}

    plan = Plan(reads=llama.sites_at("resid_post.1"))
    recorder = RowRecorder(llama, plan, wide, shard_size=64)
    rows = recorder.to_folder(prompts, folder, {}, world=World(), quiet=True)
    total = sum(shard["x"].sum() for shard in rows.shards())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((float(total), after - before))


def test_ten_times_the_prompts_take_no_more_memory(llama, tmp_path):
    fork = multiprocessing.get_context("fork")
    kib = {}
    for count in (128, 1280):
        ours, theirs = fork.Pipe()
        child = fork.Process(target=_peak, args=(count, llama, tmp_path / str(count), theirs))
        child.start()
        assert ours.poll(60)
        total, kib[count] = ours.recv()
        child.join()
        assert total != 0

    rows_kept = (1280 - 128) * WIDTH * 4 // 1024
    assert kib[1280] - kib[128] < rows_kept / 4, kib
