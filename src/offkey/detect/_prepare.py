"""Features that learn something from trusted prompts before anything is recorded."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from offkey.data import Prompts, TensorPrompts
from offkey.detect._detector import Detector
from offkey.detect._fitted import row_name
from offkey.errors import Mismatch
from offkey.features import Feature, learn_together
from offkey.models import Model, Reading
from offkey.passes import Plan, World, progress, readings
from offkey.storage import first_difference, flatten, load_state, save_state

__all__ = ["described", "fit_part", "groups", "plain_settings", "prepare"]

KIND = "preparation"


def prepare(
    detectors: Sequence[Detector],
    model: Model,
    prompts: Prompts | TensorPrompts,
    fit: frozenset[str],
    folder: Path,
    *,
    world: World | None = None,
    quiet: bool = False,
) -> None:
    """Lets features that learn from trusted prompts see those that scores are fitted on.

    All whose plans agree share one pass. What they learned is kept in the folder: a second call
    with the same arguments takes it from there, and one that was interrupted starts its pass anew
    with features that have seen nothing. The features handed in stay as they were; each detector
    is given its own that has learned.

    Args:
        detectors: whose features are prepared.
        model: the model that is read.
        prompts: the trusted prompts.
        fit: ids of those that scores are fitted on; the others stay unseen.
        folder: where it is kept.
        world: which of several workers this is; the first one reads, the others wait for it.
        quiet: show no progress.

    Raises:
        BadInput: a prompt lacks a column that a feature needs.
        Mismatch: the folder holds a preparation of another configuration.
    """
    wanted = {_key(d.feature, model): d.feature for d in detectors if d.feature.learns}
    if not wanted:
        return
    world = world or World.from_environment()
    chosen = fit_part(prompts, fit)
    for feature in wanted.values():
        feature.check_trusted(chosen)
    ready: dict[str, Feature] = {}

    def plan_of(feature: Feature) -> Plan:
        return feature.learning_plan(model)

    for number, group in enumerate(groups(list(wanted.values()), plan_of)):
        home = folder / f"pass-{number}"
        config = {
            "features": [[f.name, plain_settings(f)] for f in group],
            "model": model.fingerprint,
            "prompts": chosen.digest,
        }
        if not (home / "artefact.json").exists() and world.is_main:
            learned = [f.state() for f in _pass(model, chosen, group, quiet)]
            save_state(home, {"config": config, "learned": learned}, kind=KIND)
        learned = _kept(home, config)
        ready |= {
            _key(feature, model): type(feature).from_state(state)
            for feature, state in zip(group, learned, strict=True)
        }
    for detector in detectors:
        if detector.feature.learns:
            detector.feature = ready[_key(detector.feature, model)]


def fit_part(prompts: Prompts | TensorPrompts, fit: frozenset[str]) -> Prompts | TensorPrompts:
    """The prompts that scores are fitted on."""
    return prompts.take([n for n, id in enumerate(prompts.ids) if id in fit])


def groups(features: Sequence[Feature], of: Callable[[Feature], Plan]) -> list[list[Feature]]:
    """Features in as few groups as can each share a pass, by the plan ``of`` each."""
    found: list[list[Feature]] = []
    for feature in features:
        for group in found:
            try:
                Plan.union(of(f) for f in [*group, feature])
            except Mismatch:
                continue
            group.append(feature)
            break
        else:
            found.append([feature])

    return found


def described(feature: Feature) -> list[Any]:
    """A feature's name, settings and a digest of what it learned, as JSON values."""
    settings, tensors = flatten(feature.state())
    if not tensors:
        return [feature.name, settings]
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    for value in tensors.values():
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())

    return [feature.name, plain_settings(feature), digest.hexdigest()]


def _pass(
    model: Model, prompts: Prompts | TensorPrompts, features: Sequence[Feature], quiet: bool
) -> list[Feature]:
    fresh = [deepcopy(feature) for feature in features]
    plan = Plan.union(feature.learning_plan(model) for feature in fresh)
    with progress(f"{len(prompts)} prompts to learn from", len(prompts), quiet=quiet) as advance:

        def counted() -> Iterator[Reading]:
            for reading in readings(model, prompts, plan):
                yield reading
                for _ in reading.batch.ids:
                    advance()

        learn_together(fresh, model, counted())

    return fresh


def _kept(home: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """What lies in the folder, once the worker that makes it is done."""
    while not (home / "artefact.json").exists():
        time.sleep(0.1)
    state = load_state(home, KIND)
    if difference := first_difference(state["config"], config):
        raise Mismatch(f"its features were prepared with another {difference[0]}",
                       where=str(home),
                       mend="Give another folder, or the settings of that run")  # fmt: skip
    learned: list[dict[str, Any]] = state["learned"]

    return learned


def _key(feature: Feature, model: Model) -> str:
    return row_name(feature, str(feature.sites_on(model)))


def plain_settings(feature: Feature) -> dict[str, Any]:
    """A feature's settings, as JSON has them."""
    return {
        name: value
        for name, value in feature.settings().items()
        if value is None or isinstance(value, bool | str | int | float | list)
    }
