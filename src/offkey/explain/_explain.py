"""Explaining prompts by a fitted detector."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from offkey.detect import Detector, text_of
from offkey.errors import BadValue
from offkey.explain._parts import head_shares, latent_shares
from offkey.explain._seen import AnyPrompts, Seen, Task, look
from offkey.explain.explanation import (
    Detail,
    Explanation,
    LatentShare,
    Neighbour,
    ReadOut,
    SiteShare,
    Token,
)
from offkey.lenses import residual_sites, top_tokens
from offkey.models import Model, Site

__all__ = ["explain"]


def explain(
    detector: Detector,
    model: Model,
    prompts: AnyPrompts,
    trusted: AnyPrompts,
    *,
    detail: Detail | None = None,
    other_model: bool = False,
) -> tuple[Explanation, ...]:
    """What drove the score of each prompt, beside trusted prompts.

    The score's shares by site are exact. Heads are those whose attribution towards the answer
    differs most from the trusted median; latents those active here and on few trusted prompts;
    read-outs are those of the logit lens at the sites of the largest shares and at the last;
    neighbours are the nearest of the trusted prompts by the detector's own feature; swaps are
    exchanges of words for those of these neighbours, and the score then. Heads, latents and
    read-outs are those of the last token. A part that cannot be had is empty, and the
    explanation's notes say why.

    Args:
        detector: fitted.
        model: the model that it watches.
        prompts: to be explained; few.
        trusted: prompts known to be handled normally, as those the detector was fitted on.
        detail: how much is told.
        other_model: allow a model other than the one the detector was fitted on.

    Returns:
        One explanation a prompt, in their order.

    Raises:
        BadValue: the detector is not fitted, or could learn nothing.
        BadInput: the detector has no score for a prompt.
        Mismatch: the detector was fitted on another model.
    """
    detail = detail or Detail()
    detector.check_model(model, other_model=other_model)
    if detector.fitted.reason:
        raise BadValue(f"it has no sites to explain a score by: {detector.fitted.reason}",
                       where=f"detector {detector.name}", mend="Name another one")  # fmt: skip
    shown, usual = (part.without("label", "agrees") for part in (prompts, trusted))
    usual = _spread(usual, detail.background)
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
        task = Task(detector, model, shown, usual, detail, Path(spare))
        seen = look(task)

    return tuple(_told(task, seen, n) for n in range(len(prompts)))


def _told(task: Task, seen: Seen, n: int) -> Explanation:
    detector, detail, id = task.detector, task.detail, task.prompts.ids[n]
    p_value = None if np.isnan(seen.scores.p_value[n]) else float(seen.scores.p_value[n])
    swaps = seen.swaps.get(id, ())
    unswapped = {} if swaps else {"swaps": "it has no plain text to compare word by word"}
    effects, usual = seen.heads

    return Explanation(
        id=id,
        text=_texts(task, task.prompts)[n],
        detector=detector.name,
        combine=detector.combine.name,
        score=float(seen.scores.score[n]),
        p_value=p_value,
        flagged=None if p_value is None else p_value <= detector.alpha,
        sites=_sites(seen, n),
        heads=head_shares({s: x[n] for s, x in effects.items()}, usual, detail.top),
        latents=_latents(task, seen, n),
        read_outs=_read_outs(task, seen, n),
        nearest=_nearest(task, seen, n),
        swaps=swaps,
        notes={**unswapped, **seen.notes},
    )


def _sites(seen: Seen, n: int) -> tuple[SiteShare, ...]:
    rows = zip(seen.scores.sites, seen.scores.by_site[n], seen.shares[n], strict=True)

    return tuple(
        SiteShare(site=site, standardised=float(z), share=float(share)) for site, z, share in rows
    )


def _latents(task: Task, seen: Seen, n: int) -> tuple[LatentShare, ...]:
    if seen.dictionary is None:
        return ()
    (active,), (usual,) = (part.values() for part in seen.latents)

    return latent_shares(task.model, seen.dictionary, active[n], usual,
                         rare=task.detail.rare, count=task.detail.top)  # fmt: skip


def _read_outs(task: Task, seen: Seen, n: int) -> tuple[ReadOut, ...]:
    here, usual = seen.streams
    if not here:
        return ()
    # A joint score has no shares; its last sites are then the nearest to the answer.
    names = [s.site for s in sorted(_sites(seen, n), key=lambda s: -s.share)]
    order = task.detector.fitted.sites[::-1] if "sites" in seen.notes else names
    chosen = sorted({*residual_sites(task.model, order)[: task.detail.layers], max(here)})

    def read_out(site: Site) -> ReadOut:
        rows = torch.cat([here[site][n][None], usual[site][seen.places[n]]])
        own, *beside = (
            tuple(Token(token=token, probability=p) for token, p in best)
            for best in top_tokens(task.model, rows, task.detail.top)
        )
        return ReadOut(site=str(site), tokens=own, beside=tuple(beside))

    return tuple(read_out(site) for site in chosen)


def _nearest(task: Task, seen: Seen, n: int) -> tuple[Neighbour, ...]:
    texts = _texts(task, task.trusted)

    return tuple(
        Neighbour(id=task.trusted.ids[place], text=texts[place], distance=distance)
        for place, distance in zip(
            seen.places[n].tolist(), seen.distances[n].tolist(), strict=True
        )
    )


def _texts(task: Task, prompts: AnyPrompts) -> list[str | None]:
    return [None] * len(prompts) if task.detail.redact else text_of(prompts)


def _spread(prompts: AnyPrompts, most: int) -> AnyPrompts:
    """At most so many of the prompts, evenly spaced."""
    if len(prompts) <= most:
        return prompts

    return prompts.take(np.linspace(0, len(prompts) - 1, most).round().astype(int).tolist())
