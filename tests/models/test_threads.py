"""Passes of several threads, and passes inside passes, do not meet."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from offkey.errors import ModelBusy
from offkey.models import Edit, Model, TopLogProb
from offkey.testing.family import hook_count
from offkey.testing.random_models import batch_of, outputs, padded_batch, random_model

READS = 200
SITES = ["resid_post.*", "attn_out.1", "mlp_act.0", "z.2", "head_out.1"]
NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(params=["eager", "sdpa"])
def model(request):
    return random_model("llama", kernel=request.param)


def rows(thread: int) -> list:
    """One-prompt batches of a thread's own."""
    return [
        batch_of([[1 + (7 * n + 13 * thread + 3 * t) % 60 for t in range(3 + n % 5)]])
        for n in range(READS)
    ]


def same(a, b) -> bool:
    return all(torch.equal(a[site], b[site]) for site in b.values)


def together(*jobs):
    """Runs jobs at the same time, each in a thread of its own."""
    barrier = threading.Barrier(len(jobs))

    def started(job):
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(started, job) for job in jobs]]


@pytest.mark.parametrize("more", [[], ["q.*", "k.0", "v.1"]], ids=["residual", "heads"])
@pytest.mark.parametrize("count", [2, 3])
def test_each_thread_reads_its_own_values(model, count, more):
    sites = [*SITES, *more]
    batches = [rows(thread) for thread in range(count)]
    expected = [[model.read(batch, sites) for batch in mine] for mine in batches]
    jobs = [lambda mine=mine: [model.read(batch, sites) for batch in mine] for mine in batches]
    for made, right in zip(together(*jobs), expected, strict=True):
        assert all(same(a, b) for a, b in zip(made, right, strict=True))
    assert hook_count(model.module) == 0
    assert "offkey" not in model.module.config._attn_implementation


def test_a_thread_does_not_see_the_edits_of_another(model):
    edit = Edit("resid_post.0", "scale", -2.0)
    attended = Edit("v.1", "scale", 0.0)
    mine, theirs = rows(0), rows(1)
    edited = [model.read(b, "resid_post.2", edit=[edit, attended]) for b in mine]
    plain = [model.read(b, "resid_post.2") for b in theirs]
    bare = [outputs(model, b).logits for b in theirs]

    def by_edits():
        return [model.read(b, "resid_post.2", edit=[edit, attended]) for b in mine]

    def in_a_context():
        with model.edited([edit, attended]):
            return [model.read(b, "resid_post.2") for b in mine]

    def without():
        return [model.read(b, "resid_post.2") for b in theirs]

    def by_hand():
        return [outputs(model, b).logits for b in theirs]

    made = together(by_edits, in_a_context, without, by_hand)
    for readings, right in zip(made[:3], (edited, edited, plain), strict=True):
        assert all(same(a, b) for a, b in zip(readings, right, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made[3], bare, strict=True))
    assert not any(same(a, b) for a, b in zip(edited, without(), strict=True))


def test_gradients_of_several_threads(model):
    batches = [rows(thread)[:60] for thread in range(2)]

    def grads(mine):
        sites = ["resid_post.0", "z.1"]
        return [model.read(b, (), gradients=sites, metric=TopLogProb()).grads for b in mine]

    expected = [grads(mine) for mine in batches]
    made = together(*[lambda mine=mine: grads(mine) for mine in batches])
    for mine, right in zip(made, expected, strict=True):
        for a, b in zip(mine, right, strict=True):
            assert all(torch.equal(a[site], b[site]) for site in b)


def test_an_edit_s_function_may_run_the_model(model):
    """It is run without the edits and readings around it."""
    batch, other = padded_batch(), batch_of([[9, 8, 7]])
    plain = model.read(other, ["resid_post.1", "q.1"])
    seen = []

    def replaced(x, given):
        seen.append(model.read(other, ["resid_post.1", "q.1"]))
        seen.append(outputs(model, other).logits)
        return x * 2

    edit = Edit("resid_post.1", replaced)
    reading = model.read(batch, ["resid_post.1", "resid_post.2", "q.2"], edit=[edit])
    right = model.read(
        batch, ["resid_post.1", "resid_post.2", "q.2"], edit=[Edit("resid_post.1", "scale", 2.0)]
    )
    assert same(reading, right)
    assert same(seen[0], plain)
    assert torch.equal(seen[1], outputs(model, other).logits)
    with model.edited([edit]):
        made = model.read(batch, "resid_post.2")["resid_post.2"]
        assert torch.equal(made, right["resid_post.2"])
    assert same(seen[-2], plain)


def test_a_context_belongs_to_the_thread_that_opened_it(model):
    batch = padded_batch()
    plain = outputs(model, batch).logits
    with model.edited([Edit("resid_post.0", "scale", 3.0)]):
        assert model.is_edited
        (elsewhere,) = together(lambda: (model.is_edited, outputs(model, batch).logits))
        assert elsewhere[0] is False
        assert torch.equal(elsewhere[1], plain)
        assert not torch.equal(outputs(model, batch).logits, plain)


def test_weights_are_not_moved_while_another_thread_has_a_pass_open(model):
    batch, delta = padded_batch(), {NAME: torch.ones(32, 48)}
    before = {name: weight.clone() for name, weight in model.module.named_parameters()}
    opened, closed = threading.Event(), threading.Event()

    def keep_open():
        with model.passing(batch) as p:
            opened.set()
            closed.wait(10)
            return p.run("resid_post.2")

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(keep_open)
        opened.wait(10)
        with pytest.raises(ModelBusy, match="while another thread runs it"):
            model.perturbed(delta).__enter__()
        closed.set()
        right = held.result()
    assert same(right, model.read(batch, "resid_post.2"))
    for name, weight in model.module.named_parameters():
        assert torch.equal(weight, before[name])


def test_no_other_thread_runs_a_model_with_moved_weights(model):
    batch, delta = padded_batch(), {NAME: torch.ones(32, 48)}
    twin = Model(model.module, name="of the same module")
    with model.perturbed(delta), model.perturbed(delta):
        moved = model.read(batch, "resid_post.2")
        for run in (
            lambda: model.read(batch, "resid_post.2"),
            lambda: twin.forward(batch),
            lambda: model.generate(batch, max_new_tokens=2),
            lambda: model.perturbed(delta).__enter__(),
        ):
            with pytest.raises(ModelBusy):
                together(run)
    assert not same(moved, model.read(batch, "resid_post.2"))
    assert same(*together(lambda: model.read(batch, "embed"), lambda: model.read(batch, "embed")))


def test_two_models_of_one_module(model):
    """Each with its own edits, one inside the other, and a decoder of its own."""
    batch = padded_batch()
    twin = Model(model.module, name="twin")
    decoder = Model(model.module.model, name="decoder")
    right = model.read(batch, "resid_post.2")
    with model.edited([Edit("resid_post.0", "scale", 2.0)]):
        once = twin.read(batch, ["resid_post.0", "resid_post.2"])
    by_edit = model.read(
        batch, ["resid_post.0", "resid_post.2"], edit=[Edit("resid_post.0", "scale", 2.0)]
    )
    assert same(once, by_edit)
    assert same(decoder.read(batch, "resid_post.2"), right)
    jobs = [lambda m=m: [m.read(b, "resid_post.2") for b in rows(0)] for m in (model, decoder)]
    first, second = together(*jobs)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
