"""The default detector on tasks that no choice was made on."""

from collections.abc import Callable, Sequence
from typing import Any

from offkey.bench._bench import Bench
from offkey.bench._credit import credited
from offkey.bench._entry import Entry
from offkey.bench._lineup import DEFAULT, ENTRIES
from offkey.bench._split import held_out
from offkey.bench._summary import over_tasks
from offkey.tasks import get_task, organism_of

__all__ = ["held_out_rows"]

Row = dict[str, Any]
HIDDEN = "obfuscated"
"""The task whose organisms were trained to hide from the default detector."""
RIVALS = ("clean", "best_seed_row", "output_only")


def held_out_rows(where: Bench, entries: Sequence[Entry] = ENTRIES) -> list[Row]:
    """The default detector beside the published rows and the controls, on held-out tasks.

    The best published row is the one with the highest mean over these very tasks, and
    ``output_only`` the best control that sees the output alone: the strongest rivals that could
    be named afterwards. Differences are paired by task.

    Args:
        where: tasks and models; tasks of development families are left out.
        entries: the rows that there are.

    Returns:
        A row a task; then ``mean`` over those where a name says which rule holds,
        ``best_seed_row``, the same of that row, and ``obfuscated``, the mean over organisms of
        that task, which were trained to hide from this very detector, where there are several;
        the first of these is ``obfuscated-0`` then. Each has ``auroc``, ``clean``, ``excess``,
        ``best_seed_row``, ``output_only``, ``over_best_seed_row``, ``over_clean`` and
        ``over_output_only``; means have ``low`` and ``high`` for each.
    """
    used = [e for e in entries if e.name == DEFAULT or e.published or e.kind == "output"]
    figures: dict[str, dict[str, Row]] = {}
    for task in held_out(where.tasks):
        for entry, organism, clean in where.cells(task, used):
            test = where.arena(task).cut(entry.prompts).test
            row = credited(task, entry, organism, clean, test, seed=where.seed)
            figures.setdefault(entry.name, {})[task] = row
    ours = figures.get(DEFAULT, {})
    made = {name: get_task(organism_of(name)[0]) for name in ours}
    hidden = [name for name, task in made.items() if task.name == HIDDEN]
    plain = [name for name, task in made.items() if not task.triggered]
    kinds: dict[str, Callable[[Entry], bool]] = {
        "best_seed_row": lambda e: e.published,
        "output_only": lambda e: e.kind == "output",
    }
    best = {
        name: _best([e.name for e in used if fits(e)], figures, plain)
        for name, fits in kinds.items()
    }
    told = [_row(task, ours[task], {n: figures.get(b, {}) for n, b in best.items()})
            for task in ours]  # fmt: skip
    rows = [*told, _mean("mean", [row for row in told if row["task"] in plain], where.seed)]
    if best["best_seed_row"]:
        rival = figures[best["best_seed_row"]]
        rows.append({**_mean("best_seed_row", [_row(t, rival[t], {}) for t in plain], where.seed),
                     "detector": best["best_seed_row"]})  # fmt: skip
    if len(hidden) > 1:
        rows = [{**r, "task": f"{HIDDEN}-0"} if r["task"] == HIDDEN else r for r in rows]
        rows.append(_mean(HIDDEN, [r for r in told if r["task"] in hidden], where.seed))

    return rows


def _best(names: Sequence[str], figures: dict[str, dict[str, Row]], tasks: Sequence[str]) -> str:
    """The row with the highest mean, of those that have a figure on every task."""
    whole = {
        name: sum(figures[name][task]["auroc"] for task in tasks)
        for name in names
        if all(figures.get(name, {}).get(t, {}).get("auroc") is not None for t in tasks)
    }

    return max(whole, key=lambda name: whole[name], default="")


def _row(task: str, ours: Row, rivals: dict[str, dict[str, Row]]) -> Row:
    kept = ("task", "detector", "auroc", "low", "high", "agrees", "disagrees", "clean", "excess",
            "excess_low", "excess_high", "tpr_at_1pct_fpr", "flagged_normal")  # fmt: skip
    row = {name: ours[name] for name in kept}
    row |= {name: other.get(task, {}).get("auroc") for name, other in rivals.items()}
    for name in RIVALS:
        row[f"over_{name}"] = _less(row["auroc"], row.get(name))

    return row


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _mean(name: str, rows: Sequence[Row], seed: int) -> Row:
    """Means over tasks, each with an interval that resamples the tasks."""
    columns = ("auroc", "agrees", "disagrees", "excess", *RIVALS,
               *(f"over_{rival}" for rival in RIVALS), "flagged_normal")  # fmt: skip
    known = [row["auroc"] for row in rows if row["auroc"] is not None]
    told: Row = {
        "task": name,
        "detector": rows[0]["detector"] if rows else DEFAULT,
        "tasks": len({organism_of(row["task"])[0] for row in rows}),
        "lowest": min(known, default=None),
    }
    for column in columns:
        values = {r["task"]: r[column] for r in rows if r.get(column) is not None}
        found = over_tasks(values, seed)
        head = "" if column == "auroc" else f"{column}_"
        told |= {column: found.value, f"{head}low": found.low, f"{head}high": found.high}

    return told
