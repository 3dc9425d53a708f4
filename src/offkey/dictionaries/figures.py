"""How well a dictionary represents activations: sparsity, variance, and the loss on text."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from offkey.data import Batch, Prompts, Role
from offkey.dictionaries.dictionary import Dictionary
from offkey.errors import BadInput, Mismatch
from offkey.models import Edit, Model, ResponseCrossEntropy, Site
from offkey.passes import ActivationStream, Windows
from offkey.stats import Interval, bootstrap, named_rng

__all__ = ["Figures", "check_fits", "measure", "splice"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    r"""Measurements of a dictionary on texts; intervals resample whole texts.

    Attributes:
        texts: number of texts.
        rows: activations that counted.
        too_long: tokens left out because their activation is longer than any trained on.
        active: latents active at once, on average (:math:`L_0`).
        explained_variance: :math:`1 - \sum \lVert x - \hat x \rVert^2 / \sum \lVert x - \bar x
            \rVert^2` over all rows.
        norm_ratio: mean of :math:`\lVert \hat x \rVert / \lVert x \rVert`.
        dead_share: share of the latents that were active on none of ``rows``.
        loss: cross-entropy of the next token, in nats, of the unchanged model.
        loss_spliced: the same with every activation that counts replaced by its reconstruction.
        loss_mean: the same with the mean of all such activations in their place.
        loss_zero: the same with zeros in their place.
        recovered_mean: (loss_mean - loss_spliced) / (loss_mean - loss).
        recovered_zero: (loss_zero - loss_spliced) / (loss_zero - loss).
    """

    texts: int
    rows: int
    too_long: int
    active: Interval
    explained_variance: Interval
    norm_ratio: Interval
    dead_share: float
    loss: Interval
    loss_spliced: Interval
    loss_mean: Interval
    loss_zero: Interval
    recovered_mean: Interval
    recovered_zero: Interval

    def as_row(self) -> dict[str, Any]:
        """Flat values; intervals as ``NAME``, ``NAME_low`` and ``NAME_high``."""
        row: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Interval):
                row |= {
                    one.name: value.value,
                    f"{one.name}_low": value.low,
                    f"{one.name}_high": value.high,
                }
            else:
                row[one.name] = value

        return row


def check_fits(dictionary: Dictionary, model: Model, site: str | Site | None = None) -> Site:
    """The site of a dictionary on a model; ``site`` where the dictionary does not say.

    Raises:
        Mismatch: another site than it was trained at, or another width.
        BadInput: neither says which site.
        BadValue: the model has no such site.
    """
    where = f"dictionary at {dictionary.site}" if dictionary.site else "dictionary"
    if site is None and not dictionary.site:
        raise BadInput(
            "it does not say at which site it was trained", where=where, mend="Name the site"
        )
    place = model.site(site if site is not None else dictionary.site)
    if dictionary.site and str(place) != dictionary.site:
        raise Mismatch(
            f"it was trained at {dictionary.site}, not at {place}",
            where=where,
            mend=f"Use it at {dictionary.site}",
        )
    width = 1
    for size in place.shape:
        width *= size
    if place.shape and width != dictionary.width:
        raise Mismatch(
            f"it has width {dictionary.width}, and {place} of {model.name} has width {width}",
            where=where,
            mend="Use it on the model that it was trained on",
        )

    return place


def splice(
    replace_with: Dictionary | Float[Tensor, " d"],
    site: Site,
    windows: Windows,
    longest: float = float("inf"),
) -> Edit:
    """An edit that replaces the activations that count by their reconstruction, or by a vector.

    Args:
        replace_with: the dictionary, or the vector.
        site: where activations are replaced.
        windows: which tokens count.
        longest: longer activations stay unchanged.
    """

    def put(x: Tensor, batch: Batch) -> Tensor:
        rows = x.flatten(2).float()
        new = replace_with(rows) if isinstance(replace_with, Dictionary) else replace_with
        kept = windows.counted(batch).to(x.device) & (rows.norm(dim=-1) <= longest)
        made = torch.where(kept[..., None], new.to(rows), rows)

        return made.view(x.shape).to(x.dtype)

    return Edit(site, put)


def measure(
    dictionary: Dictionary,
    model: Model,
    texts: Prompts,
    *,
    site: str | Site | None = None,
    windows: Windows | None = None,
    longest: float | None = None,
    seed: int = 0,
) -> Figures:
    """Measures a dictionary on texts that it was not trained on.

    Args:
        dictionary: the dictionary to measure.
        model: whose activations it reconstructs.
        texts: texts that it was not trained on.
        site: where it is used, if the dictionary does not name its site.
        windows: how texts are cut and which tokens count; as in training.
        longest: longer activations do not count; by default what training left out.
        seed: of the intervals.

    Raises:
        Mismatch: the dictionary does not fit the model or the site.
    """
    place = check_fits(dictionary, model, site)
    windows = windows or Windows()
    if longest is None:
        longest = float(dictionary.about.get("longest_row", float("inf")))
    dictionary = dictionary.to(device=model.device)
    stream = ActivationStream(model, texts, place, windows=windows)
    mean = _mean(stream, place, longest)
    sums = _activations(dictionary, stream, place, longest, mean)
    zero = torch.zeros_like(mean)
    losses = {
        "loss": _losses(stream, []),
        **{
            f"loss_{name}": _losses(stream, [splice(what, place, windows, longest)])
            for name, what in (("spliced", dictionary), ("mean", mean), ("zero", zero))
        },
    }
    active = np.asarray(sums.ever.cpu())

    return _figures(sums, losses, 1 - float(active.mean()), seed)


@dataclass
class _Sums:
    """Sums over the rows of each text, and which latents were ever active."""

    by_text: dict[str, Array]
    ever: Tensor
    too_long: int = 0


def _batches(stream: ActivationStream) -> Iterator[Batch]:
    for number in range(len(stream.counts)):
        yield from stream.batches(number)


def _mean(stream: ActivationStream, site: Site, longest: float) -> Float[Tensor, " d"]:
    total, count = torch.zeros(0), 0
    for number in range(len(stream.counts)):
        rows = stream.block(number)[str(site)].double()
        rows = rows[rows.norm(dim=1) <= longest]
        total = rows.sum(0) + (total if count else 0)
        count += len(rows)

    return (total / count).float().to(stream.model.device)


def _activations(
    dictionary: Dictionary, stream: ActivationStream, site: Site, longest: float, mean: Tensor
) -> _Sums:
    sums = _Sums({}, torch.zeros(dictionary.latents, dtype=torch.bool, device=mean.device))
    for batch in _batches(stream):
        x = stream.model.read(batch, site, positions="all")[site].flatten(2).float()
        counted = stream.windows.counted(batch).to(x.device)
        kept = counted & (x.norm(dim=-1) <= longest)
        sums.too_long += int((counted & ~kept).sum())
        for name, rows, use in zip(batch.ids, x, kept, strict=True):
            text, row_sums = name.rpartition(":")[0], _row_sums(dictionary, rows[use], mean, sums)
            sums.by_text[text] = sums.by_text.get(text, np.zeros(5)) + row_sums

    return sums


def _row_sums(dictionary: Dictionary, rows: Tensor, mean: Tensor, sums: _Sums) -> Array:
    """Count, active latents, squared error, squared distance to the mean, ratio of norms."""
    f = dictionary.encode(rows)
    made = dictionary.decode(f).float()
    sums.ever |= (f > 0).any(0)
    ratio = made.norm(dim=1) / rows.norm(dim=1).clamp_min(1e-12)
    totals = [
        (f > 0).sum(),
        (rows - made).double().square().sum(),
        (rows - mean).double().square().sum(),
        ratio.double().sum(),
    ]

    return np.array([len(rows), *(float(value) for value in totals)])


def _losses(stream: ActivationStream, edit: list[Edit]) -> dict[str, Array]:
    """Summed cross-entropy and number of predicted tokens of each text."""
    losses: dict[str, Array] = {}
    for batch in _batches(stream):
        assert batch.roles is not None
        assert batch.positions is not None
        after = (batch.roles != int(Role.PADDING)) & (batch.positions > 0)
        roles = torch.where(after, int(Role.RESPONSE), batch.roles.clamp(max=int(Role.PROMPT)))
        reading = stream.model.read(
            replace(batch, roles=roles), (), metric=ResponseCrossEntropy(), edit=edit
        )
        assert reading.metric is not None
        rows = zip(batch.ids, reading.metric.tolist(), after.sum(1).tolist(), strict=True)
        for name, loss, count in rows:
            text = name.rpartition(":")[0]
            losses[text] = losses.get(text, np.zeros(2)) + np.array([loss * count, count])

    return losses


def _figures(
    sums: _Sums, losses: dict[str, dict[str, Array]], dead_share: float, seed: int
) -> Figures:
    names = list(sums.by_text)
    count, active, error, spread, ratio = np.stack([sums.by_text[name] for name in names]).T
    tokens = np.stack([losses["loss"][name] for name in names])[:, 1]
    loss = {kind: np.stack([by_text[n] for n in names])[:, 0] for kind, by_text in losses.items()}

    def interval(of: Any, *columns: Array) -> Interval:
        return bootstrap({("texts",): columns}, of, named_rng(seed, "dictionary figures"))

    return Figures(
        texts=len(names),
        rows=int(count.sum()),
        too_long=sums.too_long,
        active=interval(_ratio, active, count),
        explained_variance=interval(_explained, error, spread),
        norm_ratio=interval(_ratio, ratio, count),
        dead_share=dead_share,
        **{kind: interval(_ratio, values, tokens) for kind, values in loss.items()},
        **{
            f"recovered_{kind}": interval(
                _recovered, loss[f"loss_{kind}"], loss["loss_spliced"], loss["loss"]
            )
            for kind in ("mean", "zero")
        },
    )


def _ratio(a: Array, b: Array) -> float:
    return float(a.sum() / b.sum())


def _explained(a: Array, b: Array) -> float | None:
    return 1 - float(a.sum() / b.sum()) if b.sum() > 0 else None


def _recovered(ablated: Array, spliced: Array, clean: Array) -> float | None:
    gap = float((ablated - clean).sum())

    return float((ablated - spliced).sum()) / gap if gap else None
