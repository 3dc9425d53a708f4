"""What holds of every edit on a mapped language model.

Each check takes a model and a batch padded on the left, of at least two prompts with at least
four tokens::

    @pytest.mark.parametrize("check", EDIT_CONTRACT)
    def test_edits_of_my_family(check):
        check(Model(my_module, name="mine"), my_batch)

They compare an edited pass with hooks written by hand, with weights changed by hand, and with
itself.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offkey.data import Batch
from offkey.models import Edit, Metric, Model, Site
from offkey.testing.family import ModelCheck, close, hook_count, real, visible
from offkey.testing.random_models import outputs

__all__ = ["EDIT_CONTRACT"]


class LogProbOfToken(Metric):
    """Log-probability of one token: smooth, which that of the top token is not."""

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.log_softmax(-1)[:, 3]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits_of(model: Model, batch: Batch, *edits: Edit) -> Tensor:
    return model.read(batch, (), edit=edits, positions="all", logits=True).logits


def editable(model: Model) -> list[Site]:
    """One block's sites of every kind, and those that a model has once."""
    return [site for site in visible(model) if site.block in (None, 1)]


def own_values_change_nothing(model: Model, batch: Batch) -> None:
    before = logits_of(model, batch)
    for site in editable(model):
        values = model.read(batch, site, positions="all")[site]
        last = values[:, -1].clone()
        edits = [Edit(site, "scale", 1.0), Edit(site, lambda x, batch: x * 1)]
        edits.append(Edit(site, "replace", values, ids=batch.ids))
        edits.append(Edit(site, "replace", last, ids=batch.ids, positions="last"))
        for edit in edits:
            assert torch.equal(logits_of(model, batch, edit), before), (site, edit.op)


def values_read_are_those_after_the_edit(model: Model, batch: Batch) -> None:
    for site in editable(model):
        before = model.read(batch, site, positions="all")[site]
        edit = Edit(site, "add", 0.5, positions=(-1, -3))
        after = model.read(batch, site, positions="all", edit=[edit])[site]
        expected = before.clone()
        expected[:, [-1, -3]] += 0.5
        assert torch.equal(real(after, batch), real(expected, batch)), site


def adding_to_the_residual_is_a_hook_by_hand(model: Model, batch: Batch) -> None:
    """Also beyond the block: what comes after sees the change."""
    v = noise(model.width)
    for number, block in enumerate(model.wiring.blocks):

        def by_hand(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] + v, *args[1:])

        handle = block.module.register_forward_pre_hook(by_hand)
        expected = outputs(model, batch).logits
        handle.remove()

        made = logits_of(model, batch, Edit(f"resid_pre.{number}", "add", v))
        close(real(made, batch), real(expected, batch))
        if number:
            made = logits_of(model, batch, Edit(f"resid_post.{number - 1}", "add", v))
            close(real(made, batch), real(expected, batch))
        else:
            close(
                real(logits_of(model, batch, Edit("embed", "add", v)), batch),
                real(expected, batch),
            )


def the_middle_residual_goes_both_ways(model: Model, batch: Batch) -> None:
    """Through the MLP and past it."""
    if model.wiring.parallel:
        return
    number, v = 1, noise(model.width)
    block = model.wiring.blocks[number]
    middle = model.read(batch, f"resid_mid.{number}", positions="all")[f"resid_mid.{number}"] + v
    with torch.no_grad():
        mlp_in = block.mlp_norm(middle) if block.mlp_norm else middle
        mlp = block.mlp(mlp_in)
        mlp = mlp if block.mlp_out is block.mlp else block.mlp_out(mlp)
    edit = Edit(f"resid_mid.{number}", "add", v)
    reading = model.read(
        batch, [f"resid_mid.{number}", f"resid_post.{number}"], positions="all", edit=[edit]
    )
    assert torch.equal(real(reading[f"resid_mid.{number}"], batch), real(middle, batch))
    close(real(reading[f"resid_post.{number}"], batch), real(middle + mlp, batch))


def ablating_a_head_is_zeroing_its_columns(model: Model, batch: Batch) -> None:
    block, head, d_head = model.wiring.blocks[1], 2, model.site("z.1").shape[1]
    columns = slice(head * d_head, (head + 1) * d_head)
    weight = block.o_proj.weight
    keep = weight.detach().clone()
    with torch.no_grad():
        is_conv = type(block.o_proj).__name__ == "Conv1D"
        (weight[columns] if is_conv else weight[:, columns]).zero_()
        expected = outputs(model, batch).logits
        weight.copy_(keep)

    made = logits_of(model, batch, Edit("z.1", "replace", 0.0, heads=(head,)))
    close(real(made, batch), real(expected, batch))
    assert not torch.allclose(made, outputs(model, batch).logits)


def parts_of_heads_are_edited_one_by_one(model: Model, batch: Batch) -> None:
    """What is added goes to the residual; what is taken away is the head's part."""
    site, v = "head_out.1", noise(model.n_heads, model.width)
    before = model.read(batch, [site, "attn_out.1"], positions="all")
    edits = [
        Edit(site, "add", v, heads=(0, 3), positions=(-1, -2)),
        Edit(site, "scale", 0.0, heads=(2,), positions="last"),
    ]
    made = model.read(batch, [site, "attn_out.1"], positions="all", edit=edits)
    parts = before[site].clone()
    parts[:, -2:, [0, 3]] += v[[0, 3]]
    parts[:, -1, 2] = 0
    close(real(made[site], batch), real(parts, batch))
    moved = before["attn_out.1"] + (parts - before[site]).sum(-2)
    close(real(made["attn_out.1"], batch), real(moved, batch), loosen=4)
    assert torch.equal(made["attn_out.1"][:, :-2], before["attn_out.1"][:, :-2])
    if model.wiring.blocks[1].attn_out is model.wiring.blocks[1].attention:
        z = Edit("z.1", "replace", 0.0, heads=(2,), positions="last")
        close(
            logits_of(model, batch, edits[1])[:, -1], logits_of(model, batch, z)[:, -1], loosen=4
        )


def inputs_of_sublayers_are_edited_alone(model: Model, batch: Batch) -> None:
    """Attention is given the edited tensor, the residual is not."""
    v = noise(model.width)
    reading = model.read(batch, ["attn_in.1", "resid_pre.1"], positions="all")
    values = (reading["attn_in.1"] + v).clone()
    edits = [Edit("attn_in.1", "add", v)]
    made = model.read(batch, ["attn_in.1", "resid_pre.1", "mlp_in.0"], positions="all", edit=edits)
    assert torch.equal(real(made["attn_in.1"], batch), real(values, batch))
    assert torch.equal(made["resid_pre.1"], reading["resid_pre.1"])
    put = Edit("attn_in.1", "replace", values, ids=batch.ids)
    assert torch.equal(logits_of(model, batch, put), logits_of(model, batch, *edits))
    assert not torch.equal(logits_of(model, batch, put), logits_of(model, batch))


def attention_follows_its_parts(model: Model, batch: Batch) -> None:
    """Edited q, k and v make the pattern and the heads that a softmax by hand makes."""
    if not model.family.interface or model.module.config._attn_implementation != "eager":
        return
    slots = {slot: model.read(batch, f"{slot}.1", positions="all")[f"{slot}.1"] for slot in "qkv"}
    plain = model.read(batch, "pattern.1", positions="all")["pattern.1"]
    attention = model.wiring.blocks[1].attention
    for slot in "qkv":
        edits = [Edit(f"{slot}.1", "scale", -0.5, heads=(1,), positions=(-2,))]
        changed = {name: x.clone() for name, x in slots.items()}
        changed[slot][:, -2, 1] *= -0.5
        k, v = (
            changed[name].repeat_interleave(model.n_heads // changed[name].shape[2], dim=2)
            for name in "kv"
        )
        raw = torch.einsum("bqhd,bkhd->bqhk", changed["q"], k) * attention.scaling
        if cap := getattr(attention, "attn_logit_softcapping", None):
            raw = cap * torch.tanh(raw / cap)
        pattern = raw.masked_fill(plain == 0, -torch.inf).softmax(-1)
        z = torch.einsum("bqhk,bkhd->bqhd", pattern, v)

        reading = model.read(batch, ["pattern.1", "z.1"], positions="all", edit=edits)
        close(real(reading["pattern.1"], batch), real(pattern, batch), loosen=4)
        close(real(reading["z.1"], batch), real(z, batch), loosen=4)

    uniform = plain.gt(0) / plain.gt(0).sum(-1, keepdim=True).clamp(min=1)
    edit = Edit("pattern.1", "replace", uniform, ids=batch.ids)
    v = slots["v"].repeat_interleave(model.n_heads // slots["v"].shape[2], dim=2)
    made = model.read(batch, "z.1", positions="all", edit=[edit])["z.1"]
    close(real(made, batch), real(torch.einsum("bqhk,bkhd->bqhd", uniform, v), batch))


def the_end_follows_the_final_norm(model: Model, batch: Batch) -> None:
    v = noise(model.width)
    with torch.no_grad():
        expected = model.wiring.unembedding(v)
        if cap := model.wiring.softcap:
            expected = cap * torch.tanh(expected / cap)
    made = logits_of(model, batch, Edit("final", "replace", v, positions="last"))
    close(made[:, -1], expected.expand(len(batch), -1))

    before = logits_of(model, batch)
    vocab = model.site("logits").shape[0]
    made = logits_of(model, batch, Edit("logits", "add", noise(vocab), positions=(-2,)))
    assert torch.equal(made[:, -1], before[:, -1])
    assert torch.equal(made[:, -2], before[:, -2] + noise(vocab))


def edits_are_done_in_order(model: Model, batch: Batch) -> None:
    v = noise(model.width)
    x = model.read(batch, "resid_post.1")["resid_post.1"]
    add, scale = Edit("resid_post.1", "add", v), Edit("resid_post.1", "scale", 2.0)
    assert torch.equal(
        model.read(batch, "resid_post.1", edit=[add, scale])["resid_post.1"], (x + v) * 2
    )
    assert torch.equal(
        model.read(batch, "resid_post.1", edit=[scale, add])["resid_post.1"], x * 2 + v
    )
    with model.edited([add]), model.edited([scale]):
        nested = model.read(batch, "resid_post.1")["resid_post.1"]
    assert torch.equal(nested, (x + v) * 2)


def directions_are_projected_out(model: Model, batch: Batch) -> None:
    directions = noise(2, model.width)
    edit = Edit("resid_post.1", "project_out", directions)
    x = model.read(batch, "resid_post.1")["resid_post.1"]
    made = model.read(batch, "resid_post.1", edit=[edit])["resid_post.1"]
    span = torch.linalg.pinv(directions.double()) @ directions.double()
    close(made, (x.double() - x.double() @ span).float(), loosen=4)
    close(made @ directions.T, torch.zeros(len(batch), 2), loosen=20)


def rows_are_matched_by_prompt(model: Model, batch: Batch) -> None:
    """Not by their place; prompts that are not named stay bitwise as they are."""
    before = logits_of(model, batch)
    names = (batch.ids[-1], "a prompt that is elsewhere", batch.ids[0])
    values = noise(3, model.width)
    edit = Edit("resid_post.0", "replace", values, positions="last", ids=names)
    reading = model.read(batch, "resid_post.0", edit=[edit], positions="all", logits=True)

    assert torch.equal(reading["resid_post.0"][-1, -1], values[0])
    assert torch.equal(reading["resid_post.0"][0, -1], values[2])
    if len(batch) > 2:
        # Experts take the tokens of all rows together, which moves the last bits.
        is_dense = model.wiring.blocks[0].down_proj is not None
        assert torch.equal(reading.logits[1], before[1]) or not is_dense
        close(reading.logits[1][batch.mask[1]], before[1][batch.mask[1]])
    flipped = flip(batch)
    close(logits_of(model, flipped, edit).flip(0)[batch.mask], reading.logits[batch.mask])


def flip(batch: Batch) -> Batch:
    return replace(
        batch,
        inputs={"input_ids": batch.inputs["input_ids"].flip(0)},
        ids=batch.ids[::-1],
        mask=batch.mask.flip(0),
        positions=batch.positions.flip(0),
        roles=None,
        choices=None,
        target=None,
    )


def everything_is_restored_after_an_error(model: Model, batch: Batch) -> None:
    kernel, hooks = model.module.config._attn_implementation, hook_count(model.module)
    before = outputs(model, batch).logits

    def broken(x: Tensor, batch: Batch) -> Tensor:
        raise ZeroDivisionError

    for site in editable(model):
        with pytest.raises(ZeroDivisionError):
            model.read(batch, (), edit=[Edit(site, broken)], logits=True)
    with pytest.raises(KeyError), model.edited([Edit("resid_post.1", "scale", 2.0)]):
        raise KeyError
    with (
        pytest.raises(KeyError),
        model.edited([Edit("v.1", "scale", 2.0)] if has_v(model) else []),
    ):
        raise KeyError

    assert hook_count(model.module) == hooks
    assert not model.is_edited
    assert model.module.config._attn_implementation == kernel
    assert torch.equal(outputs(model, batch).logits, before)


def has_v(model: Model) -> bool:
    return "v" in model.wiring.kinds


def gradients_pass_through_edits(model: Model, batch: Batch) -> None:
    """The gradient upstream of a doubled residual is that of the doubled function."""
    number = model.n_blocks - 1
    edit = Edit(f"resid_post.{number}", "scale", 2.0)
    sites = [f"resid_pre.{number}", f"resid_post.{number}"]
    reading = model.read(batch, sites, gradients=sites, metric=LogProbOfToken(), edit=[edit])
    for site in sites:
        # Along the gradient, as far as moves the metric well above its rounding.
        grad = reading.grads[model.site(site)]
        step = 0.01 * grad / grad.square().sum(1, keepdim=True)
        edits = [
            Edit(site, "add", sign * step, positions="last", ids=batch.ids) for sign in (1, -1)
        ]
        ends = [
            model.read(batch, (), metric=LogProbOfToken(), edit=[edit, e]).metric for e in edits
        ]
        close(ends[0] - ends[1], torch.full((len(batch),), 0.02), loosen=500)


def generation_is_a_loop_of_whole_passes(model: Model, batch: Batch) -> None:
    """Cached generation with edits gives the tokens of uncached passes with the same edits."""
    v = 3 * noise(model.width)
    sites = ["resid_post.1", "attn_out.1", *(["v.1", "k.1"] if has_v(model) else [])]
    for positions in ("prompt", "new", "all"):
        edits = [Edit("resid_post.0", "add", v, positions=positions)]
        for site in sites[1:]:
            edits.append(Edit(site, "scale", 1.5, positions=positions))
        made = model.generate(batch, max_new_tokens=4, edit=edits)

        grown, width = batch, batch.mask.shape[1]
        for _ in range(4):
            chosen = {
                "prompt": tuple(range(-grown.mask.shape[1], width - grown.mask.shape[1])),
                "new": tuple(range(width - grown.mask.shape[1], 0)),
                "all": "all",
            }[positions]
            current = [replace(edit, positions=chosen) for edit in edits if chosen]
            grown = append(grown, logits_of(model, grown, *current)[:, -1].argmax(-1))
        expected = grown.inputs["input_ids"][:, width:].tolist()
        assert [list(row) for row in made.tokens] == expected, positions


def append(batch: Batch, token: Tensor) -> Batch:
    mask = torch.cat([batch.mask, torch.ones(len(batch), 1, dtype=torch.bool)], dim=1)
    return Batch(
        {"input_ids": torch.cat([batch.inputs["input_ids"], token[:, None]], dim=1)},
        batch.ids,
        mask=mask,
        positions=(mask.long().cumsum(1) - 1).clamp(min=0),
    )


EDIT_CONTRACT: tuple[ModelCheck, ...] = (
    own_values_change_nothing,
    values_read_are_those_after_the_edit,
    adding_to_the_residual_is_a_hook_by_hand,
    the_middle_residual_goes_both_ways,
    ablating_a_head_is_zeroing_its_columns,
    parts_of_heads_are_edited_one_by_one,
    inputs_of_sublayers_are_edited_alone,
    attention_follows_its_parts,
    the_end_follows_the_final_norm,
    edits_are_done_in_order,
    directions_are_projected_out,
    rows_are_matched_by_prompt,
    everything_is_restored_after_an_error,
    gradients_pass_through_edits,
    generation_is_a_loop_of_whole_passes,
)
