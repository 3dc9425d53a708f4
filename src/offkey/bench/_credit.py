"""What one row of the table says of one task, and what it adds to the clean model."""

from typing import Any

import numpy as np

from offkey.bench._cell import Cell
from offkey.bench._entry import Entry
from offkey.data import Prompts
from offkey.detect import MetricInterval, evaluate, site_aurocs
from offkey.stats import excess, named_rng

__all__ = ["credited", "site_rows"]

Row = dict[str, Any]
SUBSETS = ("auroc", "agrees", "disagrees")


def credited(
    task: str, entry: Entry, organism: Cell, clean: Cell, test: Prompts, *, seed: int = 0
) -> Row:
    """One row a task and detector: AUROC with its interval, and beside the clean model's.

    ``excess`` is AUROC less the larger of 0.5 and the AUROC of the same detector refitted on the
    clean model, with a paired bootstrap over prompts.

    Args:
        task: name of the task.
        entry: the row.
        organism: what it said on the organism.
        clean: what it said on the untouched model.
        test: the prompts, with labels.
        seed: of the bootstrap.
    """
    told = evaluate(organism.scores(entry.name), test)
    base = evaluate(clean.scores(entry.name), test).auroc
    labels = np.array(test["label"], dtype=np.float64)
    gain = excess(organism.score, clean.score, labels, named_rng(seed, "excess"))
    flags = {name: _share(organism, labels == value)
             for name, value in (("normal", 0), ("anomalous", 1))}  # fmt: skip

    return {
        "task": task,
        "detector": entry.name,
        "kind": entry.kind,
        "published": entry.published,
        "mode": _mode(entry),
        "forwards": organism.forwards,
        "backwards": organism.backwards,
        "seconds": organism.seconds,
        "memory_mib": organism.memory_mib,
        **{name: _value(getattr(told, name)) for name in SUBSETS},
        "low": told.auroc and told.auroc.low,
        "high": told.auroc and told.auroc.high,
        "clean": _value(base),
        "excess": gain.value,
        "excess_low": gain.low,
        "excess_high": gain.high,
        "average_precision": told.average_precision,
        "tpr_at_1pct_fpr": told.tpr_at_1pct_fpr,
        "flagged_normal": flags["normal"],
        "flagged_anomalous": flags["anomalous"],
        "test_prompts": len(test),
        "reason": organism.reason or clean.reason,
    }


def site_rows(task: str, entry: Entry, cell: Cell, test: Prompts) -> list[Row]:
    """AUROC of each site alone, with its depth between 0 and 1."""
    rows = site_aurocs(cell.scores(entry.name), test)
    if len(rows) < 2:
        return []

    return [
        {"task": task, "detector": entry.name, "site": row.site, "auroc": _value(row.auroc)}
        for row in rows
    ]


def _mode(entry: Entry) -> str:
    if entry.kind == "ceiling":
        return "ceiling"

    return {"": "online", "untrusted": "offline", "test": "transductive"}[entry.pool]


def _value(interval: MetricInterval | None) -> float | None:
    return None if interval is None else interval.value


def _share(cell: Cell, chosen: np.ndarray) -> float | None:
    """Share of some of the prompts that was flagged; null where nothing has a p-value."""
    known = chosen & ~np.isnan(cell.p_value)

    return float(cell.flagged[known].mean()) if known.any() else None
