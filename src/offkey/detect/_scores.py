"""What a detector says of prompts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64

from offkey.detect.records import Mode

__all__ = ["SCORES_SCHEMA", "Scores"]

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """Scores of prompts; NaN inside, null in every table.

    Attributes:
        detector: name of the detector.
        mode: ``online``: fitted on trusted prompts only; ``offline``: saw an unlabelled pool too;
            ``transductive``: the pool was these prompts; ``ceiling``: it was told the labels of
            the others, and is no detector.
        alpha: false-alarm rate at which prompts are flagged.
        ids: ids of the prompts.
        score: one a prompt; higher is more anomalous.
        p_value: share of trusted prompts at least as odd, conformal; null in transductive mode.
        sites: names of the sites that were combined.
        by_site: standardised score of each site.
        reasons: why a prompt has no score, by id.
    """

    detector: str
    mode: Mode
    alpha: float
    ids: tuple[str, ...]
    score: Float64[Array, " n"]
    p_value: Float64[Array, " n"]
    sites: tuple[str, ...]
    by_site: Float64[Array, "n sites"]
    reasons: dict[str, str]

    @classmethod
    def missing(
        cls, detector: str, alpha: float, ids: tuple[str, ...], reason: str, mode: Mode = "online"
    ) -> "Scores":
        """No scores, and why."""
        none = np.full(len(ids), np.nan)

        return cls(detector, mode, alpha, ids, none, none, (), np.empty((len(ids), 0)),
                   dict.fromkeys(ids, reason))  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def flagged(self) -> Bool[Array, " n"]:
        """Whether the p-value is at most alpha; False where there is none."""
        return np.asarray(self.p_value <= self.alpha)

    @property
    def worst_site(self) -> tuple[str | None, ...]:
        """The site with the highest standardised score of each prompt."""
        return tuple(
            None if not row.size or np.isnan(row).any() else self.sites[int(row.argmax())]
            for row in self.by_site
        )

    def select(self, ids: frozenset[str]) -> "Scores":
        """Scores of some of the prompts, as of trusted ones: without p-values."""
        rows = np.array([id in ids for id in self.ids])
        return replace(
            self,
            ids=tuple(id for id in self.ids if id in ids),
            score=self.score[rows],
            p_value=np.full(int(rows.sum()), np.nan),
            by_site=self.by_site[rows],
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One row a prompt: id, detector, score, p_value, flagged, worst_site, status, reason."""
        worst = self.worst_site
        for row, id in enumerate(self.ids):
            reason = self.reasons.get(id)
            p_value = _null(self.p_value[row])
            yield {
                "id": id,
                "detector": self.detector,
                "score": _null(self.score[row]),
                "p_value": p_value,
                "flagged": None if p_value is None else bool(p_value <= self.alpha),
                "worst_site": worst[row],
                "status": "not_applicable" if reason else "ok",
                "reason": reason,
            }

    def table(self) -> pa.Table:
        """The rows as an Arrow table; ``.to_pandas()`` and ``.to_pylist()`` go on from there."""
        return pa.Table.from_pylist(list(self), schema=SCORES_SCHEMA)

    def site_table(self) -> pa.Table:
        """One row a prompt and site: id, detector, site, standardised score."""
        count, sites = self.by_site.shape
        flat = self.by_site.reshape(-1)
        return pa.table(
            {
                "id": np.repeat(np.array(self.ids, dtype=object), sites).tolist(),
                "detector": [self.detector] * flat.size,
                "site": list(self.sites) * count,
                "score": pa.array(flat, mask=np.isnan(flat)),
            }
        )


SCORES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("detector", pa.string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("flagged", pa.bool_()),
        ("worst_site", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
