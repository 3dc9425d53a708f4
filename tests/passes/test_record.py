"""The one pass: same rows however it is cut, stopped, shared or short of memory."""

import threading
import time

import pytest
import torch
from torch import nn

from offkey.data import TensorPrompts, pack
from offkey.errors import BadInput, BadValue, Damaged, Mismatch, NonFinite
from offkey.models import Model
from offkey.passes import Plan, RowRecorder, Rows, World, readings
from tests.passes.conftest import prompts_of

COUNT, SIZE = 50, 8
SHARDS = 7


def plan_of(model, names="resid_post.*", **settings):
    return Plan(reads=model.sites_at(names), **settings)


def every_site(reading):
    return {str(site): value.flatten(1).float() for site, value in reading.values.items()}


def recorded(model, folder, *, prompts=None, extract=every_site, **settings):
    where = {"world": World(), "config": {}}
    where |= {name: settings.pop(name) for name in list(settings) if name in where}
    settings = {"shard_size": SIZE, "token_budget": 2048, **settings}
    recorder = RowRecorder(model, plan_of(model), extract, **settings)
    return recorder.to_folder(prompts or prompts_of(COUNT), folder, quiet=True, **where)


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    return recorded(llama, tmp_path_factory.mktemp("whole"))


def test_rows_are_those_of_prompts_read_one_by_one(llama, whole):
    prompts, plan = prompts_of(COUNT), plan_of(llama)

    for row in range(COUNT):
        [batch] = pack(prompts.take([row]), llama.tokenizer)
        reading = llama.read(batch, plan.reads)
        for site in plan.reads:
            alone = reading[site][0]
            error = (whole.column(str(site))[row] - alone).norm() / alone.norm()
            assert error <= 1e-5, (row, site)


def test_rows_stand_in_the_order_of_the_prompts(llama, whole, tmp_path):
    back = recorded(llama, tmp_path, prompts=prompts_of(COUNT).take(reversed(range(COUNT))))

    assert whole.ids == tuple(f"p{i}" for i in range(COUNT))
    assert back.ids == whole.ids[::-1]
    assert len(whole) == COUNT
    difference = back.column("resid_post.1").flip(0) - whole.column("resid_post.1")
    assert difference.abs().max() <= 1e-5 * whole.column("resid_post.1").abs().max()


def test_packing_moves_a_value_by_rounding_only(llama, tmp_path):
    small = recorded(llama, tmp_path / "64", token_budget=64)
    large = recorded(llama, tmp_path / "4096", token_budget=4096)

    for site in ("resid_post.0", "resid_post.1"):
        a, b = small.column(site), large.column(site)
        assert not torch.equal(a, torch.zeros_like(a))
        assert ((a - b).norm(dim=1) / b.norm(dim=1)).max() <= 1e-5


@pytest.mark.parametrize("stopped_at", [0, 1, 6, 12])
def test_a_stopped_pass_goes_on_to_the_same_bytes(llama, whole, tmp_path, stopped_at):
    seen = []

    def stops(reading):
        if len(seen) == stopped_at:
            raise KeyboardInterrupt
        seen.append(reading)
        return every_site(reading)

    small = {"token_budget": 64}
    expected = recorded(llama, tmp_path / "whole", **small)
    with pytest.raises(KeyboardInterrupt):
        recorded(llama, tmp_path / "stopped", extract=stops, **small)
    done = sorted((tmp_path / "stopped").glob("shard-*"))
    kept = {path: path.stat().st_mtime_ns for path in done}
    again = recorded(llama, tmp_path / "stopped", **small)

    assert again.store.digest(SHARDS) == expected.store.digest(SHARDS)
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    assert (stopped_at < 12) or done
    for number in range(SHARDS):
        ours, theirs = again.store.file(number), expected.store.file(number)
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("size", [2, 3])
def test_several_workers_leave_the_bytes_of_one(llama, whole, tmp_path, size):
    for rank in reversed(range(size)):
        rows = recorded(llama, tmp_path, world=World(rank, size))

    assert rows.store.digest(SHARDS) == whole.store.digest(SHARDS)
    rows.store.verify(SHARDS)


def test_the_first_worker_waits_for_the_others(llama, whole, tmp_path):
    ended = []

    def first():
        recorded(llama, tmp_path, world=World(0, 2))
        ended.append(time.perf_counter())

    recorded(llama, tmp_path / "warm", world=World(1, 2))
    thread = threading.Thread(target=first)
    thread.start()
    thread.join(0.6)
    assert not ended
    for number in range(1, SHARDS, 2):
        source = whole.store.read(number)
        assert source.meta == {"token_budget": 2048}
    recorded(llama, tmp_path, world=World(1, 2))
    thread.join(10)

    assert ended


def test_a_folder_of_another_pass_is_refused(llama, whole, tmp_path):
    recorded(llama, tmp_path)

    with pytest.raises(Mismatch, match="token_budget = 2048, not 64"):
        recorded(llama, tmp_path, token_budget=64)
    with pytest.raises(Mismatch, match="prompts"):
        recorded(llama, tmp_path, prompts=prompts_of(COUNT, seed=1))
    with pytest.raises(Mismatch, match=r"wanted = nothing, not 3"):
        recorded(llama, tmp_path, config={"wanted": 3})


def test_a_truncated_shard_is_found_before_any_work(llama, tmp_path):
    rows = recorded(llama, tmp_path)
    path = rows.store.file(3)
    path.write_bytes(path.read_bytes()[:-7])

    def never(reading):
        raise AssertionError("the model was read")

    with pytest.raises(Damaged, match="shard-000003.*truncated"):
        recorded(llama, tmp_path, extract=never)


class Narrow(nn.Module):
    """A model that is out of memory above a number of rows."""

    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.most, self.seen = most, []
        self.layer = nn.Linear(5, 7)
        self.requires_grad_(False)

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layer(x)


def array_prompts(count=40):
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    return TensorPrompts({"x": x}, {"id": [f"a{i}" for i in range(count)]})


def _narrow(most, folder):
    module = Narrow(most)
    model = Model(module, name="narrow")
    plan = Plan(reads=(model.site("module:layer"),))
    recorder = RowRecorder(model, plan, every_site, shard_size=20, token_budget=256)
    rows = recorder.to_folder(array_prompts(), folder, {}, world=World(), quiet=True)
    return rows, module


def test_out_of_memory_halves_the_budget_and_says_so(tmp_path):
    rows, module = _narrow(5, tmp_path / "narrow")
    wide, _ = _narrow(100, tmp_path / "wide")

    assert [rows.store.read(n).meta["token_budget"] for n in range(2)] == [32, 32]
    assert [wide.store.read(n).meta["token_budget"] for n in range(2)] == [256, 256]
    assert max(module.seen) == 20
    assert torch.allclose(rows.column("module:layer"), wide.column("module:layer"), rtol=1e-5)
    x = array_prompts().arrays["x"]
    assert torch.allclose(rows.column("module:layer"), Narrow(9).layer(x), rtol=1e-5, atol=1e-6)


def test_out_of_memory_at_one_row_is_raised(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        _narrow(0, tmp_path)

    assert not list(tmp_path.glob("shard-*"))


def test_out_of_memory_of_a_language_model(llama, whole, tmp_path):
    """Fewer tokens at once, the same rows, and the budget that fitted in every shard."""

    def scarce(reading):
        if reading.batch.inputs["input_ids"].numel() > 100:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return every_site(reading)

    rows = recorded(llama, tmp_path, extract=scarce)

    assert {rows.store.read(n).meta["token_budget"] for n in range(6)} <= {64, 128}
    a, b = rows.column("resid_post.1"), whole.column("resid_post.1")
    assert ((a - b).norm(dim=1) / b.norm(dim=1)).max() <= 1e-5


def test_other_errors_are_not_taken_for_lack_of_memory(llama, tmp_path):
    calls = []

    def fails(reading):
        calls.append(reading)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        recorded(llama, tmp_path, extract=fails)

    assert len(calls) == 1


def test_a_plan_of_nothing_does_not_run_the_model(llama, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the model was run")

    monkeypatch.setattr(llama.module, "forward", never)

    ids = [reading.batch.ids for reading in readings(llama, prompts_of(5), Plan())]
    assert sorted(sum(ids, ())) == [f"p{i}" for i in range(5)]


def test_rows_of_unlike_length_are_refused(llama, tmp_path):
    def ragged(reading):
        return {"x": torch.zeros(len(reading.batch), reading.batch.mask.shape[1])}

    with pytest.raises(BadInput, match="feature x: rows of"):
        recorded(llama, tmp_path, extract=ragged, token_budget=64)


def test_not_finite_values_name_site_and_prompt(llama, tmp_path):
    weight = llama.module.model.layers[1].mlp.down_proj.weight.data
    kept = weight[0, 0].item()
    weight[0, 0] = torch.inf
    try:
        with pytest.raises(NonFinite, match=r"site resid_post\.1, prompt p\d+: NaN or infinity"):
            recorded(llama, tmp_path)
    finally:
        weight[0, 0] = kept


def test_settings_that_cannot_be(llama, whole, tmp_path):
    with pytest.raises(BadValue, match="shard_size, token_budget"):
        recorded(llama, tmp_path, shard_size=0)
    with pytest.raises(BadValue, match="rank 2 of 2"):
        World(2, 2)
    with pytest.raises(BadValue, match="rows resid_post.7"):
        whole.column("resid_post.7")


def test_the_world_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert World.from_environment() == World(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert World.from_environment() == World(1, 4)
    assert not World.from_environment().is_main
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(BadValue, match="RANK, WORLD_SIZE: not a number"):
        World.from_environment()


def test_plans_that_agree_share_a_pass_and_others_do_not(llama):
    last, mean = plan_of(llama), plan_of(llama, positions="mean")
    final = plan_of(llama, "final")
    both = Plan.union([last, final, Plan(logits=True), Plan()])

    assert both.reads == tuple(sorted({*last.reads, *final.reads}))
    assert both.logits
    assert both.positions == "last"
    assert Plan.union([Plan(logits=True), mean]).positions == "mean"
    with pytest.raises(Mismatch):
        Plan.union([last, mean])


def test_prompts_that_lack_what_a_plan_needs_are_refused_before_anything(llama, tmp_path):
    plan = plan_of(llama, needs=frozenset({"target", "choices"}))
    answers = {"choices": [["Yes", "No"]] * 4, "target": [0, 1, None, 0]}
    some = prompts_of(4).with_columns(**answers)
    with pytest.raises(BadInput, match="prompt p2 has no 'target'"):
        RowRecorder(llama, plan, every_site).to_folder(some, tmp_path / "rows", {}, quiet=True)
    with pytest.raises(BadInput, match="prompt p0 has no 'choices'"):
        next(readings(llama, prompts_of(4), plan))
    assert not (tmp_path / "rows").exists()

    plan.check(some.take([0, 1, 3]))
    Plan(needs=frozenset({"pool"})).check(prompts_of(4))


def test_shards_in_memory_are_recorded_one_by_one_and_equal_those_on_disk(llama, whole):
    batches = []

    def counted(reading):
        batches.append(reading.batch.ids)
        return every_site(reading)

    recorder = RowRecorder(llama, plan_of(llama), counted, SIZE, 2048)
    parts = recorder.parts(prompts_of(COUNT))
    first = recorder.shard(next(parts))
    assert sorted(sum(batches, ())) == sorted(first.ids) == sorted(f"p{i}" for i in range(SIZE))
    assert first.token_budget == 2048

    held = Rows.in_memory([first, *(recorder.shard(part) for part in parts)], SIZE)
    assert held.ids == whole.ids
    for ours, theirs in zip(held.shards(), whole.shards(), strict=True):
        assert set(ours.values) == set(theirs.values)
        assert all(torch.equal(ours.values[name], theirs.values[name]) for name in ours.values)


def test_rows_of_bfloat16_are_kept_in_half_the_space(llama):
    def halves(reading):
        value = every_site(reading)["resid_post.1"]
        return {"coarse": value.bfloat16().float(), "fine": value}

    shard = RowRecorder(llama, plan_of(llama), halves).shard(prompts_of(20))
    assert (shard.values["coarse"].dtype, shard.values["fine"].dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    assert torch.equal(shard["coarse"], shard["fine"].bfloat16().float())
