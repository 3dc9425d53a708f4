"""The contract of a score: how unusual a vector is, given trusted behaviour."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import NotEnoughData
from offkey.stats import Statistic
from offkey.storage import Stateful

__all__ = ["Score"]


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
