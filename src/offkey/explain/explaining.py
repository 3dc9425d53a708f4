"""Explaining prompts by a fitted detector: measure once, then say what drove each score."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.detect import Detector, Scores, Session, text_of
from offkey.dictionaries import Dictionary
from offkey.errors import BadInput, BadValue
from offkey.explain.explanation import (
    Detail,
    Explanation,
    LatentShare,
    Neighbour,
    ReadOut,
    SiteShare,
    Swap,
    Token,
)
from offkey.explain.instruments import (
    head_shares,
    heads_on,
    latent_shares,
    latents_on,
    read_both,
)
from offkey.explain.swaps import swap_shares, variants
from offkey.lenses import residual_sites, top_tokens, why_unreadable
from offkey.models import Model, Site
from offkey.passes import Rows

__all__ = ["explain", "nearest_rows"]

AnyPrompts = Prompts | TensorPrompts
Array = np.ndarray
Pair = tuple[Mapping[Site, Float[Tensor, "n d"]], Mapping[Site, Float[Tensor, "m d"]]]
"""Rows of the prompts, and of the trusted prompts."""

PARTS = ("sites", "heads", "latents", "read_outs", "swaps")
"""Parts of an explanation that may be missing for all prompts of a task."""


def explain(
    detector: Detector,
    model: Model,
    prompts: AnyPrompts,
    trusted: AnyPrompts,
    *,
    detail: Detail | None = None,
    other_model: bool = False,
) -> tuple[Explanation, ...]:
    """What drove the score of each prompt, compared with trusted prompts.

    The score's shares by site are exact. Heads are those whose attribution towards the answer
    differs most from the trusted median; latents those active here and on few trusted prompts;
    read-outs are those of the logit lens at the sites of the largest shares and at the last;
    neighbours are the nearest of the trusted prompts by the detector's own feature; swaps are
    exchanges of words for those of these neighbours, with the score that results. Heads, latents
    and read-outs are those of the last token. A part that is not available is empty, and the
    explanation's notes say why.

    Args:
        detector: fitted.
        model: the model that it watches.
        prompts: to be explained; few.
        trusted: prompts known to be handled normally, as those the detector was fitted on.
        detail: how much an explanation says.
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
        raise BadValue(
            f"it has no sites to explain a score by: {detector.fitted.reason}",
            where=f"detector {detector.name}",
            mend="Name another one",
        )
    shown, usual = (part.without("label", "agrees") for part in (prompts, trusted))
    task = _Task(detector, model, shown, _evenly_spaced(usual, detail.background), detail)
    measured = task.measured()

    return tuple(measured.explanation(n) for n in range(len(prompts)))


def nearest_rows(
    rows: Mapping[str, Float[Tensor, "n d"]],
    trusted: Mapping[str, Float[Tensor, "m d"]],
    count: int,
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    r"""Numbers and distances of the nearest trusted rows, nearest first.

    .. math:: D(x, t)^2 = \operatorname{mean}_s \operatorname{mean}_j
        \left(\frac{x_{sj} - t_{sj}}{\sigma_{sj}}\right)^2

    over sites :math:`s` and those coordinates :math:`j` that vary among the trusted rows, with
    their standard deviation :math:`\sigma`. Trusted rows with a NaN are nobody's neighbours.

    Args:
        rows: rows to explain, by site.
        trusted: trusted rows, by site.
        count: most neighbours of each.
    """
    known = ~torch.stack([t.isnan().any(1) for t in trusted.values()]).any(0)
    places = known.nonzero()[:, 0]
    total = torch.zeros(len(next(iter(rows.values()))), len(places), dtype=torch.float64)
    sites = 0
    for site, x in rows.items():
        t = trusted[site][known].double()
        sigma = t.std(0, correction=0)
        varies = sigma > 0
        if not bool(varies.any()):
            continue
        x, t = (part[:, varies] / sigma[varies] for part in (x.double(), t))
        distances = torch.cdist(x, t, compute_mode="donot_use_mm_for_euclid_dist")
        total += distances.square() / t.shape[1]
        sites += 1
    mean, order = (total / max(sites, 1)).sqrt().sort(dim=1, stable=True)

    return places[order[:, :count]], mean[:, :count]


@dataclass(frozen=True)
class _Task:
    """What is to be explained, by which detector, compared with which trusted prompts."""

    detector: Detector
    model: Model
    prompts: AnyPrompts
    trusted: AnyPrompts
    detail: Detail

    def rows(self, prompts: AnyPrompts) -> Rows:
        """The rows of the detector's feature on some prompts."""
        return Session(self.model).record_features([self.detector], prompts, "explained")[0]

    def texts(self, prompts: AnyPrompts) -> list[str | None]:
        """The prompts as a person reads them; null where they are redacted."""
        return [None] * len(prompts) if self.detail.redact else text_of(prompts)

    def measured(self) -> "_Measured":
        """Runs the model and gathers all that explanations are made of.

        Raises:
            BadInput: a prompt has no score.
        """
        detector, model = self.detector, self.model
        rows = self.rows(self.prompts)
        scores = detector.score_rows(rows)
        for id, why in scores.reasons.items():
            raise BadInput(
                f"it has no score: {why}",
                where=f"prompt {id}",
                mend="Explain prompts that have one",
            )
        trusted_rows = detector.columns(self.rows(self.trusted))
        columns = detector.columns(rows)
        places, distances = nearest_rows(columns, trusted_rows, self.detail.nearest)
        heads = heads_on(model, self.prompts, self.trusted)
        latents = latents_on(model, self.detail.dictionary)
        unreadable = why_unreadable(model)
        residuals = () if unreadable else residual_sites(model, detector.fitted.sites)
        here, usual = read_both(model, self.prompts, self.trusted, (heads, latents), residuals)
        swaps, no_swaps = self._swaps(scores, places)
        notes = {"heads": heads.why, "latents": latents.why, "swaps": no_swaps}
        notes["read_outs"] = unreadable
        if not (unreadable or residuals):
            notes["read_outs"] = "no site of the detector lies in a block"
        if scores.sites != detector.fitted.sites:
            notes["sites"] = "its score looks at all sites at once, so none has a share of its own"

        return _Measured(
            task=self,
            scores=scores,
            shares=detector.combine.shares(scores.by_site),
            places=places,
            distances=distances,
            heads=(here.rows(heads), usual.rows(heads)),
            latents=(here.rows(latents), usual.rows(latents)),
            residuals=(here.values(residuals), usual.values(residuals)),
            dictionary=latents.dictionary,
            swaps=swaps,
            notes={part: notes[part] for part in PARTS if notes.get(part)},
        )

    def _swaps(
        self, scores: Scores, places: Int[Tensor, "n k"]
    ) -> tuple[dict[str, tuple[Swap, ...]], str]:
        """Exchanges that matter, and why there are none where that holds for all prompts."""
        if self.detail.redact:
            return {}, "texts are redacted"
        if not self.detail.swaps:
            return {}, "not asked for"
        if not isinstance(self.prompts, Prompts):
            return {}, "the prompts are arrays"
        trusted = list(zip(self.trusted.ids, text_of(self.trusted), strict=True))
        near = {
            id: [trusted[place] for place in row]
            for id, row in zip(self.prompts.ids, places.tolist(), strict=True)
        }
        made, changed = variants(self.prompts, near)
        if changed is None:
            return {}, ""
        changed_scores = self.detector.score_rows(self.rows(changed)).score
        whole = dict(zip(scores.ids, scores.score.tolist(), strict=True))

        return swap_shares(made, changed_scores, whole, self.detail.top), ""


@dataclass(frozen=True)
class _Measured:
    """What was measured of all prompts of a task.

    Attributes:
        task: what is explained.
        scores: of the prompts.
        shares: what each site adds to them.
        places: numbers of the nearest trusted prompts.
        distances: of these.
        heads: attribution of heads; empty where there is none.
        latents: latents; empty where there are none.
        residuals: what the lens reads.
        dictionary: of the latents.
        swaps: exchanges of words that lower the score, by prompt.
        notes: why a part is missing.
    """

    task: _Task
    scores: Scores
    shares: Float64[Array, "n sites"]
    places: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]
    heads: Pair
    latents: Pair
    residuals: Pair
    dictionary: Dictionary | None
    swaps: Mapping[str, tuple[Swap, ...]]
    notes: Mapping[str, str]

    def explanation(self, n: int) -> Explanation:
        """The explanation of one prompt, by its number."""
        task, id = self.task, self.task.prompts.ids[n]
        p_value = None if np.isnan(self.scores.p_value[n]) else float(self.scores.p_value[n])
        swaps = self.swaps.get(id, ())
        no_swaps = {} if swaps else {"swaps": "it has no plain text to compare word by word"}
        effects, usual = self.heads

        return Explanation(
            id=id,
            text=task.texts(task.prompts)[n],
            detector=task.detector.name,
            combine=task.detector.combine.name,
            score=float(self.scores.score[n]),
            p_value=p_value,
            flagged=None if p_value is None else p_value <= task.detector.alpha,
            sites=self._sites(n),
            heads=head_shares({s: x[n] for s, x in effects.items()}, usual, task.detail.top),
            latents=self._latents(n),
            read_outs=self._read_outs(n),
            nearest=self._nearest(n),
            swaps=swaps,
            notes={**no_swaps, **self.notes},
        )

    def _sites(self, n: int) -> tuple[SiteShare, ...]:
        columns = zip(self.scores.sites, self.scores.by_site[n], self.shares[n], strict=True)

        return tuple(
            SiteShare(site=site, standardised=float(z), share=float(share))
            for site, z, share in columns
        )

    def _latents(self, n: int) -> tuple[LatentShare, ...]:
        if self.dictionary is None:
            return ()
        (active,), (usual,) = (part.values() for part in self.latents)
        detail = self.task.detail

        return latent_shares(
            self.task.model, self.dictionary, active[n], usual, rare=detail.rare, count=detail.top
        )

    def _read_outs(self, n: int) -> tuple[ReadOut, ...]:
        here, _ = self.residuals
        if not here:
            return ()
        model, detail = self.task.model, self.task.detail
        if "sites" in self.notes:
            # A joint score has no shares; its last sites are then the nearest to the answer.
            order = list(self.task.detector.fitted.sites[::-1])
        else:
            order = [s.site for s in sorted(self._sites(n), key=lambda s: -s.share)]
        chosen = sorted({*residual_sites(model, order)[: detail.layers], max(here)})

        return tuple(self._read_out(site, n) for site in chosen)

    def _read_out(self, site: Site, n: int) -> ReadOut:
        here, usual = self.residuals
        rows = torch.cat([here[site][n][None], usual[site][self.places[n]]])
        own, *beside = (
            tuple(Token(token=token, probability=p) for token, p in best)
            for best in top_tokens(self.task.model, rows, self.task.detail.top)
        )

        return ReadOut(site=str(site), tokens=own, beside=tuple(beside))

    def _nearest(self, n: int) -> tuple[Neighbour, ...]:
        ids, texts = self.task.trusted.ids, self.task.texts(self.task.trusted)
        near = zip(self.places[n].tolist(), self.distances[n].tolist(), strict=True)

        return tuple(
            Neighbour(id=ids[place], text=texts[place], distance=distance)
            for place, distance in near
        )


def _evenly_spaced(prompts: AnyPrompts, most: int) -> AnyPrompts:
    """At most so many of the prompts, evenly spaced."""
    if len(prompts) <= most:
        return prompts

    return prompts.take(np.linspace(0, len(prompts) - 1, most).round().astype(int).tolist())
