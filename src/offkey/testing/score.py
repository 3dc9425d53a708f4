"""What every score must keep, to be run on any class.

Subclass :class:`ScoreContract`, let the fixture ``make`` return a function that builds a fresh
score, and run pytest::

    class TestMine(ScoreContract):
        @pytest.fixture
        def make(self):
            return MyScore
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offkey.errors import NotEnoughData
from offkey.scores import Score, largest_dependence
from offkey.stats import Statistic
from offkey.testing.shared import shared

__all__ = ["ScoreContract"]

WIDTH = 6
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
"""Sums in another order: float64 rounding, amplified by the condition of a covariance."""


def normal_rows(count: int, *, seed: int, width: int = WIDTH) -> Tensor:
    """Correlated rows of unlike scales, away from the origin, float32 as features give them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(count, width, generator=generator) @ mixing

    return rows * torch.linspace(0.5, 2, width) + torch.linspace(-12, 12, width)


def pool_rows(count: int = 160, *, width: int = WIDTH) -> Tensor:
    """Mostly normal rows with a fifth moved along one direction."""
    rows = normal_rows(count, seed=2, width=width)
    rows[: count // 5] += 12 * torch.linspace(1, 2, width)

    return rows


def names(count: int, *, start: int = 0) -> list[str]:
    return [f"prompt {i}" for i in range(start, start + count)]


def summed(score: Score, rows: Tensor, ids: list[str] | None = None) -> Statistic:
    statistic = score.statistic()
    statistic.update(rows, ids or names(len(rows)))

    return statistic


def fitted(score: Score, trusted: Tensor, pool: Tensor | None = None, *, seed: int = 0) -> Score:
    """The score, finished from trusted rows and, where it needs one, a pool."""
    pool = pool_rows(width=trusted.shape[1]) if pool is None else pool
    generator = torch.Generator().manual_seed(seed)

    return score.finish(
        summed(score, trusted), summed(score, pool) if score.needs_pool else None, generator
    )


def through_disk(score: Score, folder: Path) -> Score:
    """The score read back from JSON and safetensors, which is all that may be needed."""
    state = score.state()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    (folder / "state.json").write_text(json.dumps(plain, allow_nan=False))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "state.safetensors"
    )
    read: dict[str, Any] = json.loads((folder / "state.json").read_text())

    return type(score).from_state(read | load_file(folder / "state.safetensors"))


class ScoreContract:
    """Tests that any score of scope ``"site"`` passes."""

    @pytest.fixture
    def make(self) -> Callable[[], Score]:
        """A function that builds a fresh score."""
        raise NotImplementedError

    @pytest.fixture
    def score(
        self,
        request: pytest.FixtureRequest,
        make: Callable[[], Score],
    ) -> Score:
        """The score, fitted; no test may change it."""
        return shared(request, "score", lambda: fitted(make(), normal_rows(120, seed=1)))

    def test_has_a_name_and_a_scope(self, make: Callable[[], Score]) -> None:
        score = make()
        assert score.name
        assert score.scope == "site"
        assert isinstance(score.needs_pool, bool)

    def test_finish_returns_the_score_itself(self, make: Callable[[], Score]) -> None:
        score = make()
        assert fitted(score, normal_rows(120, seed=1)) is score

    def test_gives_one_float64_a_row(self, score: Score) -> None:
        scores = score(normal_rows(7, seed=3))
        assert scores.shape == (7,)
        assert scores.dtype == torch.float64
        assert score(normal_rows(0, seed=3)).shape == (0,)

    def test_a_row_does_not_depend_on_its_neighbours(self, score: Score) -> None:
        rows = torch.cat([normal_rows(20, seed=3), normal_rows(4, seed=4) * 5])
        assert largest_dependence(score, rows) < 1e-8

    def test_permuted_rows_give_permuted_scores(self, score: Score) -> None:
        rows = normal_rows(40, seed=3)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(score(rows[order]), score(rows)[order], **CLOSE)

    def test_is_pure(self, score: Score) -> None:
        rows = normal_rows(30, seed=3)
        before, given = copy.deepcopy(score.state()), rows.clone()
        first = score(rows)
        assert torch.equal(score(rows), first)
        assert torch.equal(rows, given)
        after = score.state()
        assert after.keys() == before.keys()
        for name, value in before.items():
            same = torch.equal(after[name], value) if isinstance(value, Tensor) else True
            assert same, name
            assert isinstance(value, Tensor) or after[name] == value, name

    @pytest.mark.parametrize("width", [WIDTH, 70])
    def test_saved_then_loaded_gives_the_same_bits(
        self, make: Callable[[], Score], tmp_path: Path, width: int
    ) -> None:
        score = fitted(make(), normal_rows(120, seed=1, width=width))
        rows = normal_rows(50, seed=3, width=width)
        again = through_disk(score, tmp_path)
        assert type(again) is type(score)
        assert torch.equal(again(rows), score(rows))
        assert torch.equal(again(rows[:1]), score(rows[:1]))

    def test_leaves_a_shared_statistic_as_it_was(self, make: Callable[[], Score]) -> None:
        score = make()
        rows, queries = normal_rows(120, seed=1), normal_rows(30, seed=3)
        trusted = summed(score, rows)
        pool = summed(score, pool_rows()) if score.needs_pool else None
        before = {name: value.clone() for name, value in trusted.state().items()}
        first = score.finish(trusted, pool, torch.Generator().manual_seed(0))(queries)
        after = trusted.state()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        trusted.update(normal_rows(40, seed=6) * 9, names(40, start=900))
        assert torch.equal(score(queries), first)

    def test_an_unfinished_score_can_be_saved(
        self, make: Callable[[], Score], tmp_path: Path
    ) -> None:
        rows = normal_rows(120, seed=1)
        again = fitted(through_disk(make(), tmp_path), rows)
        assert torch.equal(again(rows), fitted(make(), rows)(rows))

    def test_same_seed_gives_the_same_bits(self, make: Callable[[], Score]) -> None:
        rows, queries = normal_rows(120, seed=1), normal_rows(30, seed=3)
        torch.manual_seed(1)
        first = fitted(make(), rows, seed=5)(queries)
        torch.manual_seed(2)
        assert torch.equal(fitted(make(), rows, seed=5)(queries), first)

    def test_leaves_the_global_generator_alone(self, make: Callable[[], Score]) -> None:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        fitted(make(), normal_rows(120, seed=1))(normal_rows(5, seed=3))
        assert torch.equal(torch.rand(1), expected)

    def test_merging_in_any_grouping_gives_the_same_scores(
        self, make: Callable[[], Score]
    ) -> None:
        score = make()
        rows, queries = normal_rows(120, seed=1), normal_rows(30, seed=3)
        pool = summed(score, pool_rows()) if score.needs_pool else None
        ids = names(120)
        cuts = [(0, 37), (37, 38), (38, 120)]

        def part(index: int) -> Statistic:
            start, stop = cuts[index]
            return summed(score, rows[start:stop], ids[start:stop])

        left, right, tail = part(0), part(1), part(1)
        left.merge(right)
        left.merge(part(2))
        tail.merge(part(2))
        other = part(0)
        other.merge(tail)
        whole = summed(score, rows)
        found = [
            make().finish(trusted, pool, torch.Generator().manual_seed(0))(queries)
            for trusted in (left, other, whole)
        ]
        torch.testing.assert_close(found[0], found[1], **CLOSE)
        torch.testing.assert_close(found[0], found[2], **CLOSE)

    def test_a_reloaded_statistic_finishes_alike(self, make: Callable[[], Score]) -> None:
        score = make()
        rows, queries = normal_rows(120, seed=1), normal_rows(30, seed=3)
        trusted = summed(score, rows)
        again = type(trusted).from_state(trusted.state())
        pool = summed(score, pool_rows()) if score.needs_pool else None
        first = score.finish(trusted, pool, torch.Generator().manual_seed(0))(queries)
        second = make().finish(again, pool, torch.Generator().manual_seed(0))(queries)
        torch.testing.assert_close(second, first, **CLOSE)

    def test_a_planted_outlier_scores_higher(self, score: Score) -> None:
        normal = score(normal_rows(60, seed=3))
        planted = normal_rows(20, seed=4) + 16 * torch.linspace(1, 2, WIDTH)
        assert score(planted).median() > normal.median()
        assert (score(planted)[:, None] > normal).double().mean() > 0.9

    @pytest.mark.parametrize("case", ["constant column", "duplicates", "all alike", "few rows"])
    def test_stays_finite_on_degenerate_rows(self, make: Callable[[], Score], case: str) -> None:
        rows = normal_rows(120, seed=1)
        if case == "constant column":
            rows[:, 2] = 1.7
        elif case == "duplicates":
            rows = rows[:3].repeat(40, 1)
        elif case == "all alike":
            rows = rows[:1].repeat(120, 1)
        else:
            rows = normal_rows(30, seed=1, width=40)
        score = fitted(make(), rows)
        far = rows[:1].clone()
        far[0, 2] += 1e6
        queries = torch.cat([rows, far, torch.zeros_like(far), 1e30 * torch.ones_like(far)])
        assert score(queries).isfinite().all()

    def test_stays_finite_with_a_pool_all_alike(self, make: Callable[[], Score]) -> None:
        rows = normal_rows(120, seed=1)
        score = fitted(make(), rows, pool=rows[:1].repeat(50, 1))
        assert score(normal_rows(9, seed=3) * 100).isfinite().all()

    def test_too_few_rows_are_refused(self, make: Callable[[], Score]) -> None:
        one = normal_rows(1, seed=1)
        with pytest.raises(NotEnoughData, match="needed") as caught:
            fitted(make(), one, pool=one)
        assert caught.value.mend
        assert "\n" not in str(caught.value)

    def test_a_missing_pool_is_refused(self, make: Callable[[], Score]) -> None:
        score = make()
        if not score.needs_pool:
            trusted = summed(score, normal_rows(120, seed=1))
            score.finish(trusted, None, torch.Generator().manual_seed(0))
            assert score(normal_rows(3, seed=3)).isfinite().all()
            return
        with pytest.raises(NotEnoughData, match="pool"):
            score.finish(
                summed(score, normal_rows(120, seed=1)), None, torch.Generator().manual_seed(0)
            )
