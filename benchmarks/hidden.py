"""How every row of the table does on organisms that were trained to hide, and on the plain one.

    python -m benchmarks.hidden --out out/bench

Writes ``hidden``, a row a detector with its AUROC on each organism, and ``hidden_layers``, the
AUROC of LOF at each block. Where an organism was trained from several seeds a figure is their mean
with its t-interval, else that of the single organism with an interval over prompts. What was
computed is kept in the folder, which may be that of ``offkey bench``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offkey.bench import Organisms, SiteRow, TaskRow, bench, over_seeds, read_rows
from offkey.storage import write_results
from offkey.tasks import organism_of

RESULTS = Path("docs/results")
COMMAND = "python -m benchmarks.hidden"
PLAIN = "year"
TASKS = (PLAIN, "obfuscated", "obfuscated-everywhere", "obfuscated-attribution")
LAYERED = "activations LOF"

Row = dict[str, Any]


def main() -> None:
    """Runs what is not there yet; writes ``hidden`` and ``hidden_layers``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    out = parser.parse_args().out
    known = Organisms().names(triggered=True, seeds=True)
    names = [name for name in known if organism_of(name)[0] in TASKS]
    bench(out, tasks=names, tell=print)
    figures, sites = read_rows(TaskRow, out), read_rows(SiteRow, out)
    seeds = sorted({organism_of(name)[1] for name in names})
    write_results(RESULTS / "hidden.json", table(figures), command=COMMAND, seeds=seeds)
    write_results(RESULTS / "hidden_layers.json", layers(sites), command=COMMAND, seeds=seeds)


def table(figures: Sequence[TaskRow]) -> list[Row]:
    """A row a detector, those first that lose least where they lose most.

    ``clean`` is the mean AUROC on the untouched model, what the trigger's looks alone give.
    """
    rows = []
    for name in dict.fromkeys(row.detector for row in figures):
        mine = [row for row in figures if row.detector == name]
        clean = [row.clean for row in mine if row.clean is not None]
        row = {"detector": name, "kind": mine[0].kind, "mode": mine[0].mode}
        for task in TASKS:
            row |= figure(task, mine)
        rows.append({**row, "clean": sum(clean) / len(clean) if clean else None})

    return sorted(rows, key=worst, reverse=True)


def worst(row: Row) -> float:
    """The lowest figure on an organism that hides."""
    hidden = [row[column_of(task)] for task in TASKS if task != PLAIN]

    return min((value for value in hidden if value is not None), default=0.0)


def column_of(task: str) -> str:
    """What a task's figures are called in the table."""
    return task.removeprefix("obfuscated-")


def figure(task: str, rows: Sequence[TaskRow]) -> Row:
    """The AUROC on a task's organisms with its interval; null where there is none."""
    column = column_of(task)
    known = [r for r in rows if organism_of(r.task)[0] == task and r.auroc is not None]
    if len(known) < 2:
        one = known[0] if known else None
        values = (one.auroc, one.low, one.high) if one else (None, None, None)
    else:
        mean = over_seeds({row.task: row.auroc for row in known})
        values = (mean.value, mean.low, mean.high)

    return dict(zip((column, f"{column}_low", f"{column}_high"), values, strict=True))


def layers(sites: Sequence[SiteRow]) -> list[Row]:
    """AUROC of one detector at each block, mean over the organisms of a task."""
    by_block: dict[tuple[str, int], list[float]] = {}
    for row in sites:
        if row.detector == LAYERED and row.auroc is not None:
            task, layer = organism_of(row.task)[0], int(row.site.rpartition(".")[2])
            by_block.setdefault((task, layer), []).append(row.auroc)

    return [
        {
            "organism": task,
            "layer": layer,
            "auroc": sum(values) / len(values),
            "organisms": len(values),
        }
        for (task, layer), values in by_block.items()
    ]


if __name__ == "__main__":
    main()
