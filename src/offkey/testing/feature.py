"""What every feature must keep, to be run on any class.

Subclass :class:`FeatureContract`, let the fixture ``make`` return a function that builds the
feature, and run pytest::

    class TestMine(FeatureContract):
        @pytest.fixture
        def make(self):
            return MyFeature

It runs on a small random language model; override ``model`` for one that needs another.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offkey.data import Batch
from offkey.features import Feature, learn_together
from offkey.features.activation_model import TrackedRelations
from offkey.models import Model, Reading, Site
from offkey.passes import Plan
from offkey.storage import flatten, unflatten
from offkey.testing.random_models import batch_of, random_module
from offkey.testing.shared import shared

__all__ = ["FeatureContract", "prepared", "vectors_of"]

ROWS = (
    (7, 11, 3, 9, 2),
    (4, 8, 15, 16, 23, 42, 6),
    (10, 20, 30, 40, 50, 60, 1, 2),
    (31, 30, 29, 28, 27),
)
TRUSTED = tuple(tuple((7 * i + 3 * j) % 60 + 1 for j in range(4 + i % 5)) for i in range(24))
CLOSE = 1e-5
"""Relative to a row's length: float32 sums in another order."""


def read_for(feature: Feature, model: Model, batch: Batch) -> Reading:
    """The reading that the feature's plan asks for."""
    return read_by(feature.plan(model), model, batch)


def read_by(plan: Plan, model: Model, batch: Batch) -> Reading:
    """The reading that a plan asks for."""
    if not (plan.reads or plan.gradients or plan.logits or plan.metric):
        return Reading(batch, {})

    return model.read(
        batch,
        plan.reads,
        positions=plan.positions,
        metric=plan.metric,
        gradients=plan.gradients,
        logits=plan.logits,
    )


def tensors_of(reading: Reading) -> list[Tensor]:
    """Everything that a feature must leave as it was."""
    return [*reading.values.values(), *reading.grads.values()]


def vectors_of(feature: Feature, model: Model, batch: Batch) -> dict[Site, Tensor]:
    """What the feature gives on a batch; made dense."""
    given = feature.rows(model, read_for(feature, model, batch))

    return {site: value.to_dense() for site, value in given.items()}


def trusted_readings(feature: Feature, model: Model) -> Iterator[Reading]:
    """What the feature learns from: trusted prompts of either true answer."""
    yield from readings_by(feature.learning_plan(model), model)


def readings_by(plan: Plan, model: Model) -> Iterator[Reading]:
    """Readings of the trusted prompts by a plan."""
    for start in range(0, len(TRUSTED), 8):
        rows = TRUSTED[start : start + 8]
        targets = torch.tensor([row[-1] % 2 for row in rows])
        yield read_by(plan, model, replace(batch_of(rows), target=targets))


def prepared(feature: Feature, model: Model) -> Feature:
    """The feature, after it has learned from trusted prompts, if it does."""
    if feature.learns:
        feature.learn(model, trusted_readings(feature, model))

    return feature


def through_disk(feature: Feature, folder: Path) -> Feature:
    """The feature read back from JSON and safetensors, which is all that may be needed."""
    settings, tensors = flatten(feature.state())
    (folder / "state.json").write_text(json.dumps(settings, allow_nan=False))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "state.safetensors")
    read = json.loads((folder / "state.json").read_text())

    return type(feature).from_state(unflatten(read, load_file(folder / "state.safetensors")))


def assert_close(found: dict[Site, Tensor], expected: dict[Site, Tensor]) -> None:
    assert list(found) == list(expected)
    for site, value in expected.items():
        error = (found[site] - value).norm(dim=1)
        allowed = CLOSE * value.norm(dim=1) + 1e-6
        assert bool((error <= allowed).all()), (str(site), error)


@cache
def _random_llama() -> Model:
    return Model(random_module("llama"), tokenizer=object(), name="random")


class FeatureContract:
    """Tests that any feature passes on any model of text that it applies to."""

    @pytest.fixture
    def make(self) -> Callable[[], Feature]:
        """A function that builds a fresh feature."""
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> Model:
        """A small random language model, built once; its tokenizer is never called."""
        return _random_llama()

    @pytest.fixture
    def batch(self) -> Batch:
        """Four prompts of unlike lengths, with choices and targets."""
        return batch_of(ROWS)

    @pytest.fixture
    def feature(
        self,
        request: pytest.FixtureRequest,
        make: Callable[[], Feature],
        model: Model,
    ) -> Feature:
        """The feature, after it has learned; no test may change it."""
        return shared(request, "feature", lambda: prepared(make(), model))

    @pytest.fixture
    def whole(
        self,
        request: pytest.FixtureRequest,
        feature: Feature,
        model: Model,
    ) -> dict[Site, Tensor]:
        """Its vectors on all prompts."""
        return shared(request, "whole", lambda: vectors_of(feature, model, batch_of(ROWS)))

    def test_has_a_name(self, make: Callable[[], Feature]) -> None:
        assert make().name

    def test_its_plan_is_stable_and_can_be_carried_out(
        self, make: Callable[[], Feature], feature: Feature, model: Model
    ) -> None:
        plan = feature.plan(model)
        assert plan == make().plan(model)
        vectors_of(feature, model, batch_of(ROWS))
        assert feature.plan(model) == plan
        assert len(set(plan.reads)) == len(plan.reads)
        assert {*plan.reads, *plan.gradients} <= {model.site(s) for s in plan.reads}

    def test_it_gives_vectors_at_the_sites_that_it_says(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor]
    ) -> None:
        assert tuple(whole) == feature.sites_on(model)

    def test_it_gives_finite_float32_vectors_of_one_length(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor]
    ) -> None:
        fewer = vectors_of(feature, model, batch_of(ROWS[:1]))
        for site, value in whole.items():
            assert value.dtype == torch.float32
            assert value.shape[0] == len(ROWS)
            assert value.ndim == 2
            assert value.shape[1] > 0
            assert value.isfinite().all()
            assert fewer[site].shape == (1, value.shape[1])

    def test_a_batch_of_one_gives_what_a_batch_of_many_does(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor]
    ) -> None:
        for number, row in enumerate(ROWS):
            alone = vectors_of(feature, model, batch_of([row]))
            assert_close(alone, {s: v[number : number + 1] for s, v in whole.items()})

    def test_padding_changes_nothing(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor]
    ) -> None:
        assert_close(vectors_of(feature, model, batch_of(ROWS, width=19)), whole)

    def test_a_row_does_not_depend_on_its_neighbours(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor]
    ) -> None:
        strangers = [tuple(61 - token for token in row) for row in ROWS]
        for number, row in enumerate(ROWS):
            mixed = [*strangers[:number], row, *strangers[number + 1 :]]
            found = vectors_of(feature, model, batch_of(mixed))
            assert_close(
                {s: v[number : number + 1] for s, v in found.items()},
                {s: v[number : number + 1] for s, v in whole.items()},
            )

    def test_permuted_rows_give_permuted_vectors(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor]
    ) -> None:
        back = vectors_of(feature, model, batch_of(ROWS[::-1]))
        assert_close({site: value.flip(0) for site, value in back.items()}, whole)

    def test_it_tells_prompts_apart(self, feature: Feature, whole: dict[Site, Tensor]) -> None:
        assert any(bool((value != value[:1]).any()) for value in whole.values()), feature.name

    def test_it_is_pure(self, feature: Feature, model: Model) -> None:
        reading = read_for(feature, model, batch_of(ROWS))
        kept = [tensor.clone() for tensor in tensors_of(reading)]
        first, again = feature.rows(model, reading), feature.rows(model, reading)
        assert all(map(torch.equal, tensors_of(reading), kept))
        first, again = (
            {site: value.to_dense() for site, value in rows.items()} for rows in (first, again)
        )
        assert all(torch.equal(first[site], again[site]) for site in first)

    def test_saved_then_loaded_gives_the_same_bits(
        self, feature: Feature, model: Model, whole: dict[Site, Tensor], tmp_path: Path
    ) -> None:
        again = through_disk(feature, tmp_path)
        assert type(again) is type(feature)
        assert again.plan(model) == feature.plan(model)
        assert again.sites_on(model) == feature.sites_on(model)
        found = vectors_of(again, model, batch_of(ROWS))
        assert all(torch.equal(found[site], value) for site, value in whole.items())
        assert _plain(again.state()) == _plain(feature.state())

    def test_learning_again_begins_anew(
        self, make: Callable[[], Feature], feature: Feature, model: Model
    ) -> None:
        if not feature.learns:
            return
        first = _plain(feature.state())
        assert set(feature.state()) > set(feature.settings())
        assert _plain(prepared(copy.deepcopy(feature), model).state()) == first
        assert _plain(make().state()) != first

    def test_learning_beside_others_changes_nothing(
        self, make: Callable[[], Feature], feature: Feature, model: Model
    ) -> None:
        if not feature.learns:
            return
        pair = [make(), TrackedRelations(positions=feature.learning_plan(model).positions)]
        plan = Plan.union(one.learning_plan(model) for one in pair)
        learn_together(pair, model, readings_by(plan, model))
        assert _plain(pair[0].state()) == _plain(feature.state())

    def test_it_leaves_the_global_generator_alone(self, feature: Feature, model: Model) -> None:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        vectors_of(feature, model, batch_of(ROWS))
        assert torch.equal(torch.rand(1), expected)


def _plain(state: dict[str, Any]) -> Any:
    settings, tensors = flatten(state)
    return settings, {name: tensor.tolist() for name, tensor in tensors.items()}
