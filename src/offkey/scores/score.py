"""The contract of a score: how unusual a vector is, given trusted behaviour."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch, NotEnoughData
from offkey.stats import Sample, Statistic
from offkey.storage import Stateful

__all__ = [
    "Score",
    "SitesScore",
    "TensorScore",
    "check_number",
    "largest_dependence",
]

BLOCK = 2048
"""Rows scored at once, so that a score of many rows needs no float64 copy of them all."""


class Score(Stateful, ABC):
    """How odd a row is. **Higher is more anomalous**, everywhere.

    The constructor only stores settings, each under its own name. Rows are summed up in the
    :class:`Statistic` that :meth:`statistic` names; :meth:`finish` turns it into the learned
    state, tensors or plain values whose names end in ``_``. After that a score is a pure function:
    a row's score does not depend on its neighbours.

    Attributes:
        scope: ``"site"``: rows of one site, ``[n, d] -> [n]``; ``"sites"``: rows of every site
            at once, ``{site name: [n, d]} -> [n]``, for scores that follow a prompt through the
            layers.
        needs_pool: whether unlabelled rows are needed besides the trusted ones.
    """

    name: ClassVar[str]
    scope: ClassVar[Literal["site", "sites"]] = "site"
    needs_pool: ClassVar[bool] = False

    @abstractmethod
    def statistic(self) -> Statistic:
        """A fresh summary of the kind this score is finished from."""

    @abstractmethod
    def finish(self, trusted: Any, pool: Any, generator: torch.Generator) -> Self:
        """Learns from the trusted rows (and the pool's, where one is needed); returns itself.

        Args:
            trusted: the statistic of the trusted rows; with scope ``"sites"``, one a site.
            pool: the same of the pool's rows, or ``None``.
            generator: of everything random.

        Raises:
            NotEnoughData: fewer trusted rows than the score needs.
        """

    @abstractmethod
    def __call__(self, x: Any) -> Float[Tensor, " n"]:
        """Scores rows ``[n, d]``, one dict of them by site with scope ``"sites"``.

        Float64, higher is more anomalous.
        """

    def _need(
        self, statistic: Statistic, rows: int, instead: str = "", role: str = "trusted"
    ) -> None:
        """Refuses to learn from fewer than ``rows`` rows; ``instead`` says what else would do."""
        if statistic.count < rows:
            raise NotEnoughData(
                f"{statistic.count} {role} rows where at least {rows} are needed",
                where=self.name,
                mend=f"Give more {role} prompts" + (f", or use {instead}" if instead else ""),
            )

    def _need_pool(self, pool: Statistic | None, rows: int = 2) -> Statistic:
        """The pool's statistic, refused where it is missing or has fewer than ``rows`` rows."""
        if pool is None:
            raise NotEnoughData(
                "no pool was given",
                where=self.name,
                mend="Give unlabelled prompts as a pool, or use mahalanobis, which needs none",
            )
        self._need(pool, rows, "mahalanobis, which needs no pool", role="pool")

        return pool


class TensorScore(Score):
    """A score of rows of one site.

    A subclass learns in ``finish`` and scores blocks of rows in ``_score``; where it learns no
    ``mean_``, it says in ``_width`` how wide rows are.
    """

    mean_: Float[Tensor, " d"]

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Scores rows; float64, higher is more anomalous.

        Raises:
            Mismatch: rows of another width than the trusted ones.
        """
        if x.ndim != 2 or x.shape[1] != self._width():
            raise Mismatch(
                f"rows of shape {tuple(x.shape)} where the trusted ones had width {self._width()}",
                where=self.name,
                mend="Score the feature and site that it was fitted on",
            )
        if not len(x):
            return torch.empty(0, dtype=torch.float64)
        dense = x.detach() if x.layout is torch.strided else x.detach().to_dense()
        parts = [
            self._score(dense[start : start + BLOCK].to("cpu", torch.float64))
            for start in range(0, len(x), BLOCK)
        ]

        return torch.cat(parts)

    def _width(self) -> int:
        """Width of the rows that it learned from."""
        return int(self.mean_.shape[-1])

    @abstractmethod
    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Scores a block of one or more rows, given in float64 on the CPU."""


class SitesScore(Score):
    """A score that follows a prompt through the sites, in the order in which they were given.

    A subclass calls :meth:`_remember` in ``finish`` and scores blocks of rows, one tensor a site,
    in ``_score``. Learned tensors of all sites lie side by side along the width.
    """

    scope = "sites"
    sites_: list[str]
    widths_: list[int]

    def __call__(self, x: Mapping[str, Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        """Scores rows given by site; float64, higher is more anomalous. Other sites are ignored.

        Raises:
            Mismatch: a fitted site is missing, its rows have another width than the trusted
                ones, or sites have unlike numbers of rows.
        """
        if missing := [site for site in self.sites_ if site not in x]:
            raise Mismatch(
                f"no rows of {missing[0]}",
                where=self.name,
                mend="Give the sites that it was fitted on",
            )
        rows = [x[site] for site in self.sites_]
        count = len(rows[0])
        for site, width, given in zip(self.sites_, self.widths_, rows, strict=True):
            if given.shape != (count, width):
                raise Mismatch(
                    f"rows of shape {tuple(given.shape)} at {site} where {(count, width)} belong",
                    where=self.name,
                    mend="Score the feature and sites that it was fitted on",
                )
        if not count:
            return torch.empty(0, dtype=torch.float64)
        parts = [
            self._score([_dense(given[start : start + BLOCK]) for given in rows])
            for start in range(0, count, BLOCK)
        ]

        return torch.cat(parts)

    def _remember(self, trusted: Mapping[str, Statistic], sites: int) -> None:
        """Stores the names of the sites; refuses fewer than ``sites``."""
        if len(trusted) < sites:
            raise NotEnoughData(
                f"{len(trusted)} sites that vary where at least {sites} are needed",
                where=self.name,
                mend="Choose more sites, such as resid_post.*",
            )
        self.sites_ = list(trusted)

    def _aligned(self, trusted: Mapping[str, Statistic], rows: int) -> list[Tensor]:
        """Rows of each site, in the dtype given, of the prompts that were sampled at every site.

        Raises:
            BadValue: several rows have one id, so that sites cannot be told apart by it.
            NotEnoughData: fewer than ``rows`` prompts.
        """
        samples = [sample for sample in trusted.values() if isinstance(sample, Sample)]
        assert len(samples) == len(trusted)
        for sample in samples:
            self._need(sample, rows)
            if len(set(sample.ids)) < len(sample):
                raise BadValue(
                    "several trusted rows have the same id",
                    where=self.name,
                    mend="Give one row a prompt",
                )
        shared = set(samples[0].ids).intersection(*(sample.ids for sample in samples))
        if len(shared) < rows:
            raise NotEnoughData(
                f"{len(shared)} trusted prompts with a row at every site where at least {rows} "
                "are needed",
                where=self.name,
                mend="Give more trusted prompts, or leave out sites that many of them lack",
            )
        rows_of_sites = [
            s.rows[[i for i, id in enumerate(s.ids) if id in shared]] for s in samples
        ]
        self.widths_ = [part.shape[1] for part in rows_of_sites]

        return rows_of_sites

    def _split(self, joined: Float[Tensor, "*shape total"], dim: int = -1) -> list[Tensor]:
        """Splits what lies side by side into one tensor for each site."""
        return list(torch.split(joined, self.widths_, dim=dim))

    def _one_width(self) -> None:
        """Refuses sites of unlike widths.

        Raises:
            Mismatch: differences between such sites do not exist.
        """
        if len(set(self.widths_)) > 1:
            raise Mismatch(
                f"sites of widths {', '.join(map(str, sorted(set(self.widths_))))}, and it takes "
                "differences between sites",
                where=self.name,
                mend="Choose sites of one kind, such as resid_post.*",
            )

    @abstractmethod
    def _score(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        """Scores a block of one or more rows of each site, given in float64 on the CPU."""


def largest_dependence(
    score: Callable[[Float[Tensor, "n d"]], Float[Tensor, " n"]], x: Float[Tensor, "n d"]
) -> float:
    """How much a row's score moves with the rows beside it, as a share of its size.

    The rows are scored together, one by one, in reverse, beside far outliers, and together
    again; a score that keeps the contract gives the same each time, up to rounding.
    """
    together = score(x)
    far = x.mean(dim=0) + 10 * (x - x.mean(dim=0))
    others = [
        torch.cat([score(row[None]) for row in x]),
        score(x.flip(0)).flip(0),
        score(torch.cat([far, x]))[len(x) :],
        score(x),
    ]
    size = together.abs().clamp_min(together.abs().mean()).clamp_min(1e-300)

    return max(float(((other - together).abs() / size).max()) for other in others)


def check_number(
    name: str, value: float, *, least: float, most: float = float("inf"), whole: bool = False
) -> None:
    """Refuses a setting outside ``[least, most]``.

    Raises:
        BadValue: it is outside, or not a (whole) number.
    """
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        span = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise BadValue(
            f"{value!r} is not allowed",
            where=name,
            mend=f"Use a {'whole ' if whole else ''}number {span}",
        )


def _dense(x: Tensor) -> Tensor:
    x = x.detach() if x.layout is torch.strided else x.detach().to_dense()

    return x.to("cpu", torch.float64)
