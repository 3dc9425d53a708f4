"""The pass: one batch, run again and again, resumed, and differentiated on one graph."""

import pytest
import torch
from transformers import DynamicCache

from offkey.errors import BadInput, BadValue, NonFinite
from offkey.models import ChoiceLogitDifference, Edit, TopLogProb
from offkey.testing.family import close, hook_count
from offkey.testing.random_models import (
    DETECTED,
    EXPERTS,
    FAMILIES,
    batch_of,
    even_batch,
    padded_batch,
    random_model,
)

EVERY = [*FAMILIES, *DETECTED, *EXPERTS]


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def same(a, b) -> bool:
    return all(torch.equal(a[site], b[site]) for site in b.values)


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_run_is_bitwise_the_whole_one(name):
    model, batch = random_model(name), padded_batch()
    for block in range(1, model.n_blocks):
        sites = [f"resid_pre.{block}", "resid_post.later", "attn_out.later", "z.later", "logits"]
        sites = [site for site in model.sites_at(sites) if (site.block or block) >= block]
        whole = model.read(batch, sites, positions="all", logits=True)
        with model.passing(batch) as p:
            first = p.run(sites, positions="all", logits=True, from_block=block)
            again = p.run(sites, positions="all", logits=True, from_block=block)
            kept = p.residuals[block]
        for reading in (first, again):
            assert same(reading, whole)
            assert torch.equal(reading.logits, whole.logits)
        given = model.read(batch, f"resid_post.{block - 1}", positions="all")
        residual = given[f"resid_post.{block - 1}"]
        assert torch.equal(kept, residual)
        with model.passing(batch) as p:
            made = p.run(sites, positions="all", from_block=block, residual=residual)
        assert same(made, whole)
    assert hook_count(model.module) == 0
    assert all("forward" not in vars(block.module) for block in model.wiring.blocks)


@pytest.mark.parametrize("name", EVERY)
def test_some_rows_are_resumed_alone(name):
    """Bitwise as those rows alone, padded as they were."""
    model, batch = random_model(name), padded_batch()
    keep = torch.tensor([True, False, True])
    some = batch.select(keep)
    for block in range(1, model.n_blocks):
        resumed = model.resumed_forward(block)
        with torch.no_grad():
            whole = resumed.first(7, batch, logits_to_keep=1).logits
            assert torch.equal(whole, model.forward(batch, logits_to_keep=1).logits)
            assert torch.equal(resumed.again(7, batch, logits_to_keep=1).logits, whole)
            made = resumed.again(7, some, keep, logits_to_keep=1).logits
        path = f"resid_post.{block - 1}"
        residual = model.read(batch, path, positions="all")[path][keep]
        with model.passing(some) as p:
            right = p.run(logits=True, from_block=block, residual=residual).logits
        assert torch.equal(made[:, -1], right)
        close(made[:, -1], whole[keep, -1], loosen=4)


def test_what_was_run_before_is_not_run_again(model):
    batch = padded_batch()
    model.resumed_at(1, torch.zeros(3, 8, 32))  # sees once what a block returns
    runs = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, n=number: runs.append(n))
        for number, block in enumerate(model.wiring.blocks)
    ]
    with model.passing(batch) as p:
        p.run("resid_post.2", from_block=2)
        assert runs == [0, 1, 2]
        p.run("resid_post.2", from_block=2)
        assert runs == [0, 1, 2, 2]
    for handle in handles:
        handle.remove()


def test_edits_on_both_sides_of_a_residual(model):
    """Those before it have had their effect, those from it on have it each time."""
    batch = padded_batch()
    edits = [
        Edit(site, "scale", 1.5)
        for site in ("embed", "resid_post.0", "resid_post.1", "resid_pre.2", "mlp_out.2")
    ]
    whole = model.read(batch, "resid_post.2", edit=edits, logits=True)
    with model.passing(batch, edits) as p:
        for _ in range(3):
            made = p.run("resid_post.2", logits=True, from_block=2)
            assert same(made, whole)
            assert torch.equal(made.logits, whole.logits)
    with model.edited(edits), model.passing(batch) as p:
        for _ in range(2):
            assert same(p.run("resid_post.2", from_block=2), whole)


def test_gradients_of_weights_flow_through_a_resumed_run(model):
    batch = padded_batch()
    weight = model.wiring.blocks[2].down_proj.weight
    resumed = model.resumed_forward(2)
    grads = []
    with torch.no_grad():
        resumed.first(0, batch)
    for run in (lambda: resumed.again(0, batch), lambda: model.forward(batch)):
        loss = run().logits[:, -1].log_softmax(-1)[:, 3].sum()
        grads += torch.autograd.grad(loss, [weight])
    assert torch.equal(grads[0], grads[1])
    names = [name for name, _ in model.module.named_parameters()]
    late = resumed.later_parameters(names)
    assert set(late) == {
        name for name in names if ".2." in name or name in ("model.norm.weight", "lm_head.weight")
    }


def test_runs_that_cannot_be_resumed(model):
    batch = padded_batch()
    with model.passing(batch) as p:
        for block in (0, 3, -1):
            with pytest.raises(BadValue, match="cannot be the first to run"):
                p.run("resid_post.2", from_block=block)
        with pytest.raises(BadValue, match="resid_post.0: the run starts at block 2"):
            p.run("resid_post.0", from_block=2)
        with pytest.raises(BadValue, match="embed: the run starts at block 1"):
            p.run("embed", from_block=1)
        with pytest.raises(BadValue, match="Give from_block too"):
            p.run("resid_post.2", residual=torch.zeros(3, 8, 32))
    with pytest.raises(BadValue, match="cannot be the first to run"):
        model.resumed_forward(3)


@pytest.mark.parametrize("name", FAMILIES)
def test_several_gradients_on_one_graph_are_those_of_separate_reads(name):
    model, batch = random_model(name), padded_batch()
    sites = model.sites_at(["resid_post.*", "z.1", "q.2", "attn_in.1", "mlp_out.1"])
    with model.passing(batch, graph=True) as p:
        reading = p.run(sites)
        by_metric = {m: p.gradients(m, sites) for m in (TopLogProb(), ChoiceLogitDifference())}
        again = p.gradients(TopLogProb(), "resid_post.0")
        tensors, logits = dict(p.tensors), p.logits
    for metric, grads in by_metric.items():
        right = model.read(batch, sites, gradients=sites, metric=metric, positions="all")
        for site in sites:
            assert torch.equal(grads[site], right.grads[site]), site
            assert torch.equal(tensors[site].detach(), right[site])
            assert torch.equal(reading[site], right[site][:, -1])
    site = model.site("resid_post.0")
    assert torch.equal(again[site], by_metric[TopLogProb()][site])
    assert logits.requires_grad


def test_gradients_between_sites(model):
    """Of a probe's reading at one site, back to an earlier one."""
    batch = padded_batch()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(32, generator=generator)
    cotangent = torch.zeros(3, 8, 32)
    cotangent[:, -1] = direction
    with model.passing(batch, graph=True) as p:
        p.run(["resid_post.0", "resid_post.1"])
        late = p.tensors[model.site("resid_post.1")]
        grads = p.gradients(late, "resid_post.0", cotangent)[model.site("resid_post.0")]
        by_product = p.gradients((late[:, -1] * direction).sum(1), "resid_post.0")
    assert torch.equal(by_product[model.site("resid_post.0")], grads)
    # The block moves the last token's residual as its derivative says.
    step = 1e-2 * torch.randn(32, generator=generator)
    ends = [
        model.read(
            batch, "resid_post.1", edit=[Edit("resid_post.0", "add", sign * step, positions=(-2,))]
        )["resid_post.1"]
        for sign in (1, -1)
    ]
    close((ends[0] - ends[1]) @ direction / 2, grads[:, -2] @ step, loosen=2000)


def test_gradients_at_each_head_are_those_of_their_sum(model):
    batch = padded_batch()
    sites = model.sites_at(["head_out.1", "attn_out.1", "resid_post.0"])
    with model.passing(batch, graph=True) as p:
        p.run(sites)
        grads = p.gradients(TopLogProb(), sites)
    heads = grads[model.site("head_out.1")]
    assert heads.shape == (3, 8, 4, 32)
    for head in range(4):
        close(heads[:, :, head], grads[model.site("attn_out.1")])
    right = model.read(batch, (), gradients="resid_post.0", metric=TopLogProb(), positions="all")
    close(grads[model.site("resid_post.0")], right.grads[model.site("resid_post.0")])


def test_a_pass_that_keeps_no_graph(model):
    batch = padded_batch()
    with model.passing(batch) as p:
        p.run("resid_post.0")
        with pytest.raises(BadValue, match="graph=True"):
            p.gradients(TopLogProb(), "resid_post.0")
    with model.passing(batch, graph=True) as p:
        p.run("resid_post.0")
        with pytest.raises(BadValue, match="resid_post.1: it was not read"):
            p.gradients(TopLogProb(), "resid_post.1")
        with pytest.raises(NonFinite, match="gradient at resid_post.0, prompt 4-8"):
            p.gradients(p.logits.sum(1) * torch.tensor([1, torch.nan, 1]), "resid_post.0")


def test_a_resumed_graph(model):
    batch, metric = padded_batch(), TopLogProb()
    right = model.read(batch, (), gradients="resid_post.2", metric=metric, positions="all")
    with model.passing(batch, graph=True) as p:
        for _ in range(2):
            p.run("resid_post.2", from_block=2)
            made = p.gradients(metric, "resid_post.2")
            assert torch.equal(made[model.site("resid_post.2")], next(iter(right.grads.values())))


def test_positions_by_number_and_by_row(model):
    batch = padded_batch()
    full = model.read(batch, "resid_post.1", positions="all")["resid_post.1"]

    def read(positions):
        return model.read(batch, "resid_post.1", positions=positions, logits=True)

    first = read((0, 2, -1))["resid_post.1"]
    starts = [3, 1, 0]
    for row, start in enumerate(starts):
        assert torch.equal(first[row], full[row, [start, start + 2, -1]])
    chosen = {"elsewhere": (0,), **dict(zip(batch.ids, [(4, -2), (0, 1), (7, -8)], strict=True))}
    reading = read(chosen)
    columns = [[7, 6], [1, 2], [7, 0]]
    for row, places in enumerate(columns):
        assert torch.equal(reading["resid_post.1"][row], full[row, places])
    logits = model.read(batch, (), positions="all", logits=True).logits
    for row, places in enumerate(columns):
        close(reading.logits[row], logits[row, places])
    with pytest.raises(BadInput, match="prompt 10-20-.*: 0 positions are given"):
        read(dict(list(chosen.items())[:3]))
    with pytest.raises(BadInput, match="prompt 7-11-3-9-2: 1 positions"):
        read({**chosen, batch.ids[0]: (1,)})


@pytest.mark.parametrize("name", EVERY)
def test_the_last_token_again_and_again(name):
    """Past the sliding window of those that have one."""
    model, batch = random_model(name), padded_batch()
    prefix = model.cached_prefix(batch)
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    edits = [[], [Edit("resid_post.0", "add", v)], [Edit("z.1", "scale", 0.0, heads=(1,))], []]
    for each in edits:
        here = [Edit(e.site, e.op, e.value, "last", heads=e.heads) for e in each]
        right = model.read(batch, ["resid_post.2", "attn_out.1"], edit=here, logits=True)
        reading = prefix.run(["resid_post.2", "attn_out.1"], each)
        close(reading.logits, right.logits, loosen=10)
        close(reading["resid_post.2"], right["resid_post.2"], loosen=10)
        close(reading["attn_out.1"], right["attn_out.1"], loosen=10)
        assert torch.equal(prefix.logits(each), reading.logits)


def test_a_hook_is_called_in_the_caller_s_own_forward(model):
    batch = batch_of([[5, 6, 7]])
    seen = []
    with model.hooked({"resid_post.1": seen.append, "mlp_out.2": lambda x: 2 * x}):
        hidden = model.module.model(batch.inputs["input_ids"], use_cache=False).last_hidden_state
    assert seen[0].requires_grad
    with model.passing(batch, [Edit("mlp_out.2", "scale", 2.0)]) as p:
        right = p.run(["resid_post.1", "final"], positions="all")
    assert torch.equal(seen[0], right["resid_post.1"])
    assert torch.equal(hidden, right["final"])
    assert hook_count(model.module) == 0


def test_a_cache_may_be_given_to_a_plain_pass(model):
    batch = padded_batch()
    cache = DynamicCache(config=model.module.config)
    with torch.no_grad():
        model.forward(batch, logits_to_keep=1, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 8


def test_a_second_resumed_run_has_what_edits_read_before_the_block(model):
    batch = padded_batch()
    add = Edit("resid_post.1", lambda x, _, read: x + sum(read.values()), reads=("resid_pre.0",))
    whole = model.read(batch, "resid_post.1", edit=[add], positions="all")
    with model.passing(batch, [add]) as p:
        for _ in range(2):
            made = p.run("resid_post.1", positions="all", from_block=1)
            assert same(made, whole)


def test_a_change_in_place_is_made_once_in_each_resumed_run(model):
    batch = padded_batch()

    def double(x, *_):
        return x.mul_(2)

    whole = model.read(batch, "resid_post.1", edit=[Edit("resid_post.0", double)])
    with model.passing(batch, [Edit("resid_post.0", double)]) as p:
        for _ in range(2):
            assert same(p.run("resid_post.1", from_block=1), whole)
    with model.hooked({"resid_post.0": double}), model.passing(batch) as p:
        for _ in range(2):
            assert same(p.run("resid_post.1", from_block=1), whole)


def test_a_gradient_reaches_an_edit_before_the_block_in_each_resumed_run(model):
    batch, grads = padded_batch(), []
    value = torch.zeros(model.width, requires_grad=True)
    with model.passing(batch, [Edit("embed", "add", value)], graph=True) as p:
        for _ in range(2):
            p.run("resid_post.1", from_block=1)
            odds = ChoiceLogitDifference()(p.logits, p.batch).sum()
            grads.append(torch.autograd.grad(odds, value, retain_graph=True)[0])
    assert torch.equal(*grads)
    assert bool(grads[0].abs().sum() > 0)


def test_a_hook_between_attention_and_mlp_is_trained_through():
    """The slope of the loss along a direction, by differences."""
    model, batch = random_model("llama", dtype=torch.float64), even_batch()
    weight = torch.ones(model.width, requires_grad=True, dtype=torch.float64)

    def loss():
        with model.hooked({"resid_mid.0": lambda x: x * weight}):
            return model.forward(batch, logits_to_keep=1).logits[:, -1].sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(0)).double()
    step, losses = 1e-3, []
    with torch.no_grad():
        for size in (step, -step):
            weight += size * direction
            losses.append(float(loss()))
            weight -= size * direction
    slope = (losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx(float(gradient @ direction), rel=1e-3)


def test_a_prompt_of_one_token_has_no_prefix(model):
    with pytest.raises(BadInput, match="it has one token"):
        model.cached_prefix(batch_of([[5]]))
