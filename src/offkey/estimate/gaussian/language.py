"""A Gaussian over the residual stream of a language model at one position, block by block."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.data import Batch
from offkey.errors import BadInput, BadValue, NotEnoughData, UnmappedModel
from offkey.estimate.gaussian import transitions as steps
from offkey.estimate.gaussian.normal import Normal, fit
from offkey.estimate.gaussian.propagation import PropagationSettings, Walk
from offkey.models import Edit, Model

__all__ = ["residual_stream", "through_blocks", "logits_at"]

_ROWS = 64
"""Rows that a pass has at least."""


def residual_stream(model: Model, batch: Batch, block: int = 0) -> Normal:
    """The Gaussian of real prompts: the stream before a block, at the last token.

    Raises:
        NotEnoughData: fewer than two prompts.
    """
    site = f"resid_pre.{block}"

    return fit(model.read(batch, site)[site].double())


def through_blocks(
    model: Model,
    normal: Normal,
    contexts: Batch,
    blocks: Sequence[int],
    settings: PropagationSettings | None = None,
) -> dict[str, Normal]:
    r"""The residual stream at the last token after attention and after the MLP of each block.

    What is modelled: before the first block the stream at the last token is Gaussian, and
    independent of what comes before it. Those earlier positions are the real ones of
    ``contexts``, run through the real blocks; each draw of the Gaussian takes the last token's
    place in one of them, so that attention mixes a drawn last position with real earlier ones.
    Attention is thus sampled: with A the regression of what attention adds on the stream, the
    covariance is :math:`(I + A) S (I + A)^\top` plus that of the regression's errors, so that the
    stream's own part keeps its exact covariance. Norm and MLP are analytic, with the covariance
    between the stream and what the MLP adds (Stein). After each step the state is closed as
    Gaussian again, and its dependence on its own context is dropped: the
    last token's stream and the rest of the prompt are presumed independent.

    Blocks whose attention and MLP run in parallel are sampled as a whole.

    Args:
        model: a decoder with named sites.
        normal: the stream before the first of the blocks, of the model's width.
        contexts: prompts whose earlier tokens are used; padded on the left.
        blocks: numbers of consecutive blocks.
        settings: masks are looked up under the names of the sites; ``draws`` is rounded up to a
            whole number of times all contexts. ``sampled`` may name ``resid_post.L`` to draw
            through an MLP.

    Returns:
        States by site: ``resid_mid.L`` and ``resid_post.L``.

    Raises:
        UnmappedModel: the model has no named sites, or its norm or MLP has no rule.
        BadInput: the state has another width, or is not positive semi-definite.
        BadValue: the blocks are not consecutive.
        NotEnoughData: fewer than three draws for each dimension.
    """
    chosen = settings or PropagationSettings()
    _check(model, normal, blocks, chosen)
    normal = chosen.closed("input", normal)
    states: dict[str, Normal] = {}
    generator = chosen.generator()
    for block in blocks:
        wiring = model.wiring
        assert wiring is not None
        site = f"resid_post.{block}" if wiring.parallel else f"resid_mid.{block}"
        pair = (f"resid_pre.{block}", site)
        normal = chosen.closed(site, _drawn(model, normal, contexts, pair, chosen, generator))
        states[site] = normal
        if wiring.parallel:
            continue
        after = f"resid_post.{block}"
        if chosen.draws_through(after, True):
            normal = _drawn(model, normal, contexts, (site, after), chosen, generator)
        else:
            normal = _mlp(model, block, normal, chosen)
        normal = chosen.closed(after, normal)
        states[after] = normal

    return states


def logits_at(
    model: Model,
    normal: Normal,
    tokens: Sequence[int],
    settings: PropagationSettings | None = None,
) -> Normal:
    """Logits of some tokens from the stream after the last block: final norm and unembedding.

    Raises:
        UnmappedModel: there is no unembedding, its logits are capped, or the norm has no rule.
    """
    wiring = model.wiring
    if wiring is None or wiring.unembedding is None or wiring.softcap is not None:
        raise UnmappedModel(
            "its logits are not a linear function of the normed stream", where=model.name
        )
    if wiring.final_norm is not None:
        walk = Walk(replace(settings or PropagationSettings(), mask=None, sampled=frozenset()))
        normal = walk.step(wiring.final_norm, normal, "final").state
    weight, bias = wiring.unembedding.weight, getattr(wiring.unembedding, "bias", None)
    rows = torch.as_tensor(list(tokens))
    part = None if bias is None else bias.detach()[rows]

    return steps.linear(normal, weight.detach()[rows].cpu(), part).state  # type: ignore[operator] # torch types weight as a tensor or a module


def _drawn(
    model: Model,
    normal: Normal,
    contexts: Batch,
    sites: tuple[str, str],
    settings: PropagationSettings,
    generator: torch.Generator,
) -> Normal:
    """Replaces the last token at one site by draws, and reads the next site."""
    contexts = contexts.repeat(max(1, min(_ROWS, settings.draws) // len(contexts)))
    repeats = -(-settings.draws // len(contexts))
    rows = normal.sample(repeats * len(contexts), generator)
    before, after = sites
    made = []
    for part in rows.split(len(contexts)):  # type: ignore[no-untyped-call] # torch gives it no types
        edit = Edit(before, "replace", part, positions="last", ids=contexts.ids)
        reading = model.read(contexts, after, edit=[edit])
        # the model adds to the draw as it rounds it
        added = reading[after].double().cpu() - part.to(model.dtype).double()
        made.append(added)

    return _summed(normal, rows, torch.cat(made))


def _summed(normal: Normal, rows: Float[Tensor, "n d"], added: Float[Tensor, "n d"]) -> Normal:
    """The Gaussian of x + a(x), where the covariance of x is known and the rest is sampled."""
    if normal.is_diagonal:
        return fit(rows + added, diagonal=True)
    count, width = rows.shape
    x, y = rows - rows.mean(0), added - added.mean(0)
    slope = torch.linalg.lstsq(x, y).solution
    error = y - x @ slope
    free = count - width - 1
    # the slope's own noise adds width / free of the errors' covariance, which is subtracted
    rest = error.T @ error / free * (1 - width / free)
    gain = torch.eye(width, dtype=torch.float64) + slope
    covariance = gain.T @ normal.covariance @ gain + rest
    shift = added.mean(0) - (rows.mean(0) - normal.mean) @ slope

    return Normal(normal.mean + shift, steps.symmetric(covariance))


def _mlp(model: Model, block: int, normal: Normal, settings: PropagationSettings) -> Normal:
    wiring = model.wiring
    assert wiring is not None
    parts = wiring.blocks[block]
    walk = Walk(replace(settings, mask=None, sampled=frozenset()))
    path = f"block {block}"
    made = [steps.identity(normal)]
    for name, module in (
        ("mlp_norm", parts.mlp_norm),
        ("mlp", parts.mlp),
        ("mlp_out", parts.mlp_out),
    ):
        if module is None or (name == "mlp_out" and module is parts.mlp):
            continue
        made.append(walk.step(module, made[-1].state, f"{path} {name}"))

    return steps.residual(normal, steps.chained(*made)).state


def _check(
    model: Model, normal: Normal, blocks: Sequence[int], settings: PropagationSettings
) -> None:
    if model.wiring is None:
        raise model.unmapped or UnmappedModel(
            "it has no named sites",
            where=model.name,
            mend="Use propagate for a sequence of modules",
        )
    if len(normal.mean) != model.width:
        raise BadInput(
            f"a state of width {len(normal.mean)} for a stream of width {model.width}",
            where="state",
        )
    if list(blocks) != list(range(blocks[0], blocks[0] + len(blocks))):
        raise BadValue(f"{list(blocks)} are not consecutive", where="blocks")
    width = len(normal.mean)
    if not normal.is_diagonal and settings.covariance == "full" and settings.draws < 3 * width:
        raise NotEnoughData(
            f"{settings.draws} draws in width {width}",
            where="attention",
            mend=f"Set draws to {3 * width} or more, or covariance='diagonal'",
        )
