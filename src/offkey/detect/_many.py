"""Many detectors in one pass over the prompts."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from offkey.data import Prompts, TensorPrompts
from offkey.detect._detector import Detector
from offkey.detect._fit import Parts, fit_rows
from offkey.detect._fitted import row_name
from offkey.detect._prepare import described, groups, prepare
from offkey.detect._scores import Scores
from offkey.errors import Mismatch
from offkey.features import Feature, own_reading
from offkey.models import Model, Reading
from offkey.passes import Extract, Plan, Rows, World, record

__all__ = ["fit_all", "harvest", "score_all", "trusted_prompts"]


def harvest(
    model: Model,
    prompts: Prompts | TensorPrompts,
    detectors: Sequence[Detector],
    folder: Path,
    *,
    world: World | None = None,
    quiet: bool = False,
) -> list[Rows]:
    """Records the rows of every detector, in as few passes over the prompts as their plans allow.

    Args:
        model: the model that is read.
        prompts: what it is given.
        detectors: whose features are recorded.
        folder: where shards go; a second call with the same arguments finds them there.
        world: which of several workers this is.
        quiet: show no progress.

    Returns:
        The rows for each detector; those that share a pass share the object.
    """
    features = {row_name(d.feature, str(d.feature.sites_on(model))): d.feature for d in detectors}
    told: dict[int, Rows] = {}
    for number, group in enumerate(
        groups(list(features.values()), lambda feature: feature.plan(model))
    ):
        rows = record(
            model,
            prompts,
            Plan.union(feature.plan(model) for feature in group),
            extractor(model, group),
            folder / f"pass-{number}",
            config={"features": [described(feature) for feature in group]},
            world=world,
            quiet=quiet,
        )
        told |= {id(feature): rows for feature in group}

    return [
        told[id(features[row_name(d.feature, str(d.feature.sites_on(model)))])] for d in detectors
    ]


def extractor(model: Model, features: Sequence[Feature]) -> Extract:
    """Makes the rows of every feature and site; what two features share is made once."""
    plans = [(feature, feature.plan(model)) for feature in features]

    def extract(reading: Reading) -> Mapping[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for feature, plan in plans:
            for site, vector in feature.rows(model, own_reading(reading, plan)).items():
                rows.setdefault(row_name(feature, str(site)), vector)

        return rows

    return extract


def trusted_prompts(
    trusted: Prompts | TensorPrompts, calibration: Prompts | TensorPrompts | None
) -> Prompts | TensorPrompts:
    """All that fitting reads, without the columns that say what is anomalous."""
    parts = [p.without("label", "agrees") for p in (trusted, calibration) if p is not None]

    return parts[0] if len(parts) == 1 else type(parts[0]).concat(parts)  # type: ignore[arg-type]


def fit_all(
    detectors: Sequence[Detector],
    model: Model,
    trusted: Prompts | TensorPrompts,
    *,
    pool: Prompts | TensorPrompts | None = None,
    calibration: Prompts | TensorPrompts | None = None,
    seed: int = 0,
    folder: Path | None = None,
    quiet: bool = True,
) -> None:
    """Fits many detectors in one pass over the trusted prompts; see :meth:`Detector.fit`.

    Raises:
        Mismatch: a prompt of the pool is among the trusted ones.
    """
    parts = Parts.of(trusted, calibration, seed)
    parts.check(detectors)
    prompts = trusted_prompts(trusted, calibration)
    if pool is not None and (shared := set(pool.ids) & set(prompts.ids)):
        raise Mismatch(f"{len(shared)} of its prompts are among the trusted ones too",
                       where="pool", mend="Take them out")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
        home = folder or Path(spare)
        alone = World() if folder is None else None
        prepare(detectors, model, prompts, parts.fit, home / "prepared", world=alone, quiet=quiet)
        rows = harvest(model, prompts, detectors, home / "trusted", world=alone, quiet=quiet)
        pooled = None
        if pool is not None and any(d.score_template.needs_pool for d in detectors):
            blind = pool.without("label", "agrees")
            pooled = harvest(model, blind, detectors, home / "pool", world=alone, quiet=quiet)
        fit_rows(detectors, rows, model, parts, pool=pooled, seed=seed)


def score_all(
    detectors: Sequence[Detector],
    model: Model,
    prompts: Prompts | TensorPrompts,
    *,
    other_model: bool = False,
    folder: Path | None = None,
    quiet: bool = True,
) -> list[Scores]:
    """Scores prompts by many detectors in one pass; see :meth:`Detector.score`."""
    for detector in detectors:
        detector.check_model(model, other_model=other_model)
    with tempfile.TemporaryDirectory(prefix="offkey-") as spare:
        home = folder or Path(spare)
        alone = World() if folder is None else None
        rows = harvest(model, prompts, detectors, home / "test", world=alone, quiet=quiet)

        return [d.score_rows(r) for d, r in zip(detectors, rows, strict=True)]
