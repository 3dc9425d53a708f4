"""offkey demo and bench."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli.application import app

if TYPE_CHECKING:
    from offkey.bench import Bench, Organisms

__all__: list[str] = []


@app.command()
def demo(
    out: o.OutOption = Path("out/demo"),
    seed: o.SeedOption = 0,
    results: Annotated[
        Path | None, typer.Option("--results", help="Also write the figures to this JSON file.")
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """Detect the anomalies of a bundled organism, with controls, and write a report.

    [bold]offkey demo --out demo[/bold]
    """
    from offkey.bench import demo as run
    from offkey.bench import demo_rows
    from offkey.report import print_table, write_report
    from offkey.storage import write_results

    metrics = run(out, seed=seed, quiet=as_json)
    page = write_report(out / "organism")
    if results:
        write_results(results, demo_rows(metrics), command="offkey demo", seeds=[seed])
    if as_json:
        typer.echo(json.dumps({"out": str(out), "report": str(page), **metrics}))
    else:
        print_table(metrics)
        typer.echo(f"\nreport: {page}")


@app.command()
def bench(
    what: Annotated[
        str, typer.Argument(help="table1, controls, search or held-out.", show_default=True)
    ] = "table1",
    out: o.OutOption = Path("out/bench"),
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Only this task or organism; give it again for more."),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option("--row", help="Only this row of the table; give it again for more."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="All rows but this one; give it again for more."),
    ] = None,
    base: o.BaseOption = None,
    organisms: Annotated[
        Path | None,
        typer.Option("--organisms", help="Folder of your own organisms; else the bundled ones."),
    ] = None,
    seed: o.SeedOption = 0,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Also write the figures to JSON files in this folder."),
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """Run every detector and control on every learned task; write the table and its page.

    [bold]table1[/bold] is the table; [bold]controls[/bold] puts some of its rows to wrong labels,
    polluted trusted prompts and decoys; [bold]search[/bold] tries detectors on the development
    tasks; [bold]held-out[/bold] judges the default one on the others. What was computed is kept
    in the folder, and all four use it again.

    [bold]offkey bench table1 --out bench --task comparison --row default[/bold]
    """
    from offkey.bench import Organisms
    from offkey.errors import BadValue, UnknownName
    from offkey.tasks import BASE

    say = (lambda _: None) if as_json else typer.echo
    if what not in _MAKERS:
        raise UnknownName("table", what, _MAKERS)
    for name, given, takers in (
        ("--row", row, ("table1", "controls")),
        ("--without", without, ("table1",)),
    ):
        if given and what not in takers:
            raise BadValue(f"{what} takes no {name}", where="offkey bench",
                           mend=f"Leave it out, or ask for {' or '.join(takers)}")  # fmt: skip
    found = Organisms(base or BASE, organisms)
    _MAKERS[what](_Asked(out, task, row, without, found, seed, results, as_json, say))


@dataclass(frozen=True)
class _Asked:
    """What was given on the command line."""

    out: Path
    tasks: list[str] | None
    rows: list[str] | None
    without: list[str] | None
    organisms: "Organisms"
    seed: int
    results: Path | None
    as_json: bool
    say: Callable[[str], None]

    def bench(self, tasks: Sequence[str] | None = None) -> "Bench":
        """Where it lies and what it is run on."""
        from offkey.bench import Bench

        return Bench.of(self.out, tasks or self.tasks, self.seed, self.say, self.organisms)

    def show(self, rows: Sequence[Mapping[str, Any]], title: str, by: str, names: str) -> None:
        """Prints some columns, or everything as JSON."""
        if self.as_json:
            typer.echo(json.dumps({"out": str(self.out), "rows": list(rows)}))
            return
        from offkey.cli.printing import print_rows

        shown = [{name: row.get(name) for name in names.split()} for row in rows]
        print_rows(shown, title=title, by=by, hidden=(), most=len(shown))

    def keep(self, name: str, rows: Sequence[Mapping[str, Any]], verb: str) -> None:
        """Writes the results where documents find them."""
        if self.results:
            from offkey.storage import write_results

            asked = "".join(f" --task {task}" for task in self.tasks or ())
            write_results(self.results / f"{name}.json", [dict(row) for row in rows],
                          command=f"offkey bench {verb} --results docs/results{asked}",
                          seeds=[self.seed])  # fmt: skip


def _table1(asked: _Asked) -> None:
    from offkey.bench import bench as run
    from offkey.report import bench_report

    rows = run(asked.out, tasks=asked.tasks, rows=asked.rows, without=asked.without,
               seed=asked.seed, organisms=asked.organisms, results=asked.results,
               tell=asked.say)  # fmt: skip
    page = bench_report(asked.out)
    asked.show(
        rows,
        "AUROC, mean over tasks",
        "average",
        "detector average agrees disagrees tasks clean excess reason",
    )
    if not asked.as_json:
        typer.echo(f"\nreport: {page}")


def _controls(asked: _Asked) -> None:
    from offkey.bench import control_rows

    rows = control_rows(asked.bench(), asked.rows)
    asked.keep("controls", rows, "controls")
    asked.show(rows, "AUROC under controls, mean over tasks", "average",
               "detector control average difference flagged_negatives tasks reason")  # fmt: skip


def _search(asked: _Asked) -> None:
    from offkey.bench import search

    rows = search(asked.bench(), asked.out / "search.jsonl")
    asked.keep("default_search", rows, "search")
    asked.show(rows[:25], f"Detectors on development tasks, best first of {len(rows)}",
               "objective",
               "place score span combine auroc excess flagged_normal objective")  # fmt: skip


def _held_out(asked: _Asked) -> None:
    from offkey.bench import held_out_rows

    quirky, triggered = (
        asked.organisms.names(triggered=kind, seeds=kind) for kind in (False, True)
    )
    rows = held_out_rows(asked.bench(asked.tasks or [*quirky, *triggered]))
    asked.keep("default_detector", rows, "held-out")
    asked.show(rows, "The default detector on held-out tasks", "auroc",
               "task auroc clean excess best_seed_row output_only reason")  # fmt: skip


_MAKERS: dict[str, Callable[[_Asked], None]] = {
    "table1": _table1,
    "controls": _controls,
    "search": _search,
    "held-out": _held_out,
}
