"""What every score of scope ``"sites"`` must keep, to be run on any class.

Subclass :class:`SitesScoreContract`, let the fixture ``make`` return a function that builds a
fresh score, and run pytest; the same contract as that of scores of one site, with rows by site.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offkey.errors import Mismatch, NotEnoughData
from offkey.scores import Score, largest_dependence
from offkey.stats import Statistic
from offkey.storage import flatten, load_state, save_state
from offkey.testing.score import CLOSE, names, normal_rows
from offkey.testing.shared import shared

__all__ = ["SitesScoreContract", "fitted", "normal_sites", "odd_sites"]

WIDTH = 6
SITES = tuple(f"resid_post.{n}" for n in range(4, 10))


def normal_sites(count: int, *, seed: int, width: int = WIDTH) -> dict[str, Tensor]:
    """Rows that move a little from site to site, float32 as features give them."""
    generator = torch.Generator().manual_seed(seed + 1000)
    rows = normal_rows(count, seed=seed, width=width)
    found = {}
    for n, site in enumerate(SITES):
        rows = rows + 0.3 * torch.randn(rows.shape, generator=generator)
        found[site] = rows + 0.2 * n
    return found


def odd_sites(count: int, *, seed: int, width: int = WIDTH) -> dict[str, Tensor]:
    """Rows that jump to other places halfway, each row to its own."""
    rows = normal_sites(count, seed=seed, width=width)
    generator = torch.Generator().manual_seed(seed + 2000)
    jump = 40 * torch.randn(count, width, generator=generator)

    return {site: x + jump * (n >= len(SITES) // 2) for n, (site, x) in enumerate(rows.items())}


def summed(score: Score, rows: Mapping[str, Tensor], start: int = 0) -> dict[str, Statistic]:
    found = {}
    for site, x in rows.items():
        found[site] = score.statistic()
        found[site].update(x, names(len(x), start=start))
    return found


def finished(score: Score, statistics: Mapping[str, Statistic], seed: int = 0) -> Score:
    """The score, finished; a pool is made where it needs one."""
    pool = None
    if score.needs_pool:
        odd, plain = odd_sites(40, seed=5), normal_sites(120, seed=2)
        pool = summed(score, {site: torch.cat([odd[site], plain[site]]) for site in statistics})
    return score.finish(statistics, pool, torch.Generator().manual_seed(seed))


def fitted(score: Score, rows: Mapping[str, Tensor], seed: int = 0) -> Score:
    return finished(score, summed(score, rows), seed)


def through_disk(score: Score, folder: Path) -> Score:
    """The score read back from JSON and safetensors, which is all that may be needed."""
    save_state(folder / "score", score.state(), kind="score", version=1)

    return type(score).from_state(load_state(folder / "score", "score", version=1))


def picked(rows: Mapping[str, Tensor], which: Any) -> dict[str, Tensor]:
    return {site: x[which] for site, x in rows.items()}


class SitesScoreContract:
    """Tests that any score of scope ``"sites"`` passes."""

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
        return shared(request, "score", lambda: fitted(make(), normal_sites(120, seed=1)))

    def test_has_a_name_and_a_scope(self, make: Callable[[], Score]) -> None:
        assert make().name
        assert make().scope == "sites"

    def test_finish_returns_the_score_itself(self, make: Callable[[], Score]) -> None:
        score = make()
        assert fitted(score, normal_sites(120, seed=1)) is score

    def test_gives_one_float64_a_prompt(self, score: Score) -> None:
        scores = score(normal_sites(7, seed=3))
        assert scores.shape == (7,)
        assert scores.dtype == torch.float64
        assert score(normal_sites(0, seed=3)).shape == (0,)

    def test_a_prompt_does_not_depend_on_its_neighbours(self, score: Score) -> None:
        rows = normal_sites(20, seed=3)

        def side_by_side(x: Tensor) -> Tensor:
            return score(dict(zip(rows, torch.split(x, WIDTH, dim=1), strict=True)))

        assert largest_dependence(side_by_side, torch.cat(list(rows.values()), dim=1)) < 1e-8

    def test_the_order_of_the_dict_is_nothing(self, score: Score) -> None:
        rows = normal_sites(9, seed=3)
        assert torch.equal(score(dict(reversed(rows.items()))), score(rows))

    def test_is_pure(self, score: Score) -> None:
        rows = normal_sites(30, seed=3)
        before, given = flatten(copy.deepcopy(score.state())), copy.deepcopy(rows)
        first = score(rows)
        assert torch.equal(score(rows), first)
        assert all(torch.equal(rows[site], x) for site, x in given.items())
        (plain, tensors), (plain_before, tensors_before) = flatten(score.state()), before
        assert plain == plain_before
        assert tensors.keys() == tensors_before.keys()
        assert all(torch.equal(tensors[name], value) for name, value in tensors_before.items())

    @pytest.mark.parametrize("width", [WIDTH, 70])
    def test_saved_then_loaded_gives_the_same_bits(
        self, make: Callable[[], Score], tmp_path: Path, width: int
    ) -> None:
        score = fitted(make(), normal_sites(120, seed=1, width=width))
        rows = normal_sites(50, seed=3, width=width)
        again = through_disk(score, tmp_path)
        assert type(again) is type(score)
        assert torch.equal(again(rows), score(rows))
        assert torch.equal(again(picked(rows, slice(1))), score(picked(rows, slice(1))))

    def test_leaves_shared_statistics_as_they_were(self, make: Callable[[], Score]) -> None:
        score, queries = make(), normal_sites(30, seed=3)
        trusted = summed(score, normal_sites(120, seed=1))
        before = {
            (site, name): value.clone()
            for site, statistic in trusted.items()
            for name, value in statistic.state().items()
        }
        first = finished(score, trusted)(queries)
        for (site, name), value in before.items():
            assert torch.equal(trusted[site].state()[name], value), (site, name)
        for site, x in normal_sites(40, seed=6).items():
            trusted[site].update(x * 9, names(40, start=900))
        assert torch.equal(score(queries), first)

    def test_an_unfinished_score_can_be_saved(
        self, make: Callable[[], Score], tmp_path: Path
    ) -> None:
        rows = normal_sites(120, seed=1)
        again = fitted(through_disk(make(), tmp_path), rows)
        assert torch.equal(again(rows), fitted(make(), rows)(rows))

    def test_same_seed_gives_the_same_bits(self, make: Callable[[], Score]) -> None:
        rows, queries = normal_sites(120, seed=1), normal_sites(30, seed=3)
        torch.manual_seed(1)
        first = fitted(make(), rows, seed=5)(queries)
        expected = torch.rand(1)
        torch.manual_seed(2)
        assert torch.equal(fitted(make(), rows, seed=5)(queries), first)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), expected)

    def test_merging_in_any_grouping_gives_the_same_scores(
        self, make: Callable[[], Score]
    ) -> None:
        score = make()
        rows, queries = normal_sites(120, seed=1), normal_sites(30, seed=3)
        parts = [
            summed(score, picked(rows, slice(start, stop)), start)
            for start, stop in [(37, 120), (0, 37)]
        ]
        for site, statistic in parts[0].items():
            statistic.merge(parts[1][site])
        whole = finished(make(), summed(score, rows))(queries)
        torch.testing.assert_close(finished(make(), parts[0])(queries), whole, **CLOSE)

    def test_a_reloaded_statistic_finishes_alike(self, make: Callable[[], Score]) -> None:
        rows, queries = normal_sites(120, seed=1), normal_sites(30, seed=3)
        trusted = summed(make(), rows)
        again = {site: type(s).from_state(s.state()) for site, s in trusted.items()}
        first = finished(make(), trusted)(queries)
        torch.testing.assert_close(finished(make(), again)(queries), first, **CLOSE)

    def test_a_planted_jump_scores_higher(self, score: Score) -> None:
        normal, planted = score(normal_sites(60, seed=3)), score(odd_sites(20, seed=4))
        assert planted.median() > normal.median()
        assert (planted[:, None] > normal).double().mean() > 0.9

    @pytest.mark.parametrize("case", ["constant column", "duplicates", "all alike", "few rows"])
    def test_stays_finite_on_degenerate_rows(self, make: Callable[[], Score], case: str) -> None:
        rows = normal_sites(120, seed=1)
        if case == "constant column":
            for x in rows.values():
                x[:, 2] = 1.7
        elif case == "duplicates":
            rows = {site: x[:3].repeat(40, 1) for site, x in rows.items()}
        elif case == "all alike":
            rows = {site: x[:1].repeat(120, 1) for site, x in rows.items()}
        else:
            rows = normal_sites(30, seed=1, width=40)
        score = fitted(make(), rows)
        queries = {}
        for site, x in rows.items():
            far = x[:1].clone()
            far[0, 2] += 1e6
            queries[site] = torch.cat([x, far, 0 * far, 1e30 * torch.ones_like(far)])
        assert score(queries).isfinite().all()

    def test_too_few_rows_are_refused(self, make: Callable[[], Score]) -> None:
        with pytest.raises(NotEnoughData, match="needed") as caught:
            fitted(make(), normal_sites(1, seed=1))
        assert caught.value.mend
        assert "\n" not in str(caught.value)

    def test_rows_that_do_not_fit_are_refused(self, score: Score) -> None:
        rows = normal_sites(5, seed=3)
        lacking = {site: x for site, x in rows.items() if site != SITES[2]}
        for wrong in (
            lacking,
            rows | {SITES[2]: torch.zeros(5, WIDTH + 1)},
            rows | {SITES[2]: torch.zeros(4, WIDTH)},
        ):
            with pytest.raises(Mismatch, match="rows"):
                score(wrong)
