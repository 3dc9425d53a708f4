"""What scores share that look at all sites of a prompt at once."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch, NotEnoughData
from offkey.scores._score import Score
from offkey.scores._tensors import BLOCK
from offkey.stats import Sample, Statistic

__all__ = ["SitesScore"]


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
            raise Mismatch(f"no rows of {missing[0]}", where=self.name,
                           mend="Give the sites that it was fitted on")  # fmt: skip
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
        """Keeps which sites there are; refuses fewer than ``sites``."""
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
                raise BadValue("several trusted rows have the same id", where=self.name,
                               mend="Give one row a prompt")  # fmt: skip
        shared = set(samples[0].ids).intersection(*(sample.ids for sample in samples))
        if len(shared) < rows:
            raise NotEnoughData(
                f"{len(shared)} trusted prompts with a row at every site where at least {rows} "
                "are needed",
                where=self.name,
                mend="Give more trusted prompts, or leave out sites that many of them lack",
            )
        found = [s.rows[[i for i, id in enumerate(s.ids) if id in shared]] for s in samples]
        self.widths_ = [part.shape[1] for part in found]

        return found

    def _split(self, joined: Float[Tensor, "*shape total"], dim: int = -1) -> list[Tensor]:
        """What lies side by side, one tensor a site."""
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


def _dense(x: Tensor) -> Tensor:
    x = x.detach() if x.layout is torch.strided else x.detach().to_dense()

    return x.to("cpu", torch.float64)
