"""offkey demo and bench."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import UnknownName, check

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

    comparison = run(out, seed=seed, quiet=as_json)
    page = write_report(out / "organism")
    if results:
        rows = [row.flat() for row in demo_rows(comparison)]
        write_results(results, rows, command="offkey demo", seeds=[seed])
    if as_json:
        typer.echo(json.dumps({"out": str(out), "report": str(page), **comparison.as_json()}))
    else:
        print_table(comparison.metrics)
        typer.echo(f"\nreport: {page}")


@app.command()
def bench(
    what: Annotated[
        str, typer.Argument(help="table1, controls, search or held-out.", show_default=True)
    ] = "table1",
    out: o.OutOption = Path("out/bench"),
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Only this task or organism; repeat for more."),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option("--row", help="Only this row of the table; repeat for more."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="All rows except this one; repeat for more."),
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
    """Compare detectors and controls on every task, and write the table and its page.

    [bold]table1[/bold] makes the table; [bold]controls[/bold] runs some of its rows with shuffled
    labels, contaminated trusted prompts and decoys; [bold]search[/bold] tries detectors on the
    development tasks; [bold]held-out[/bold] judges the default one on the others. All four keep
    what was computed in the folder and use it again.

    [bold]offkey bench table1 --out bench --task comparison --row default[/bold]
    """
    from offkey.bench import Organisms
    from offkey.tasks import BASE

    if what not in _TABLES:
        raise UnknownName("table", what, _TABLES)
    for name, value, takers in (
        ("--row", row, ("table1", "controls")),
        ("--without", without, ("table1",)),
    ):
        mend = f"Leave it out, or ask for {' or '.join(takers)}"
        allowed = not value or what in takers
        check(allowed, f"{what} takes no {name}", where="offkey bench", mend=mend)
    known = Organisms(base or BASE, organisms)
    _TABLES[what](_BenchRequest(out, task, row, without, known, seed, results, as_json))


@dataclass(frozen=True)
class _BenchRequest:
    """What was given on the command line."""

    out: Path
    tasks: list[str] | None
    rows: list[str] | None
    without: list[str] | None
    organisms: "Organisms"
    seed: int
    results: Path | None
    as_json: bool

    def tell(self, line: str) -> None:
        """Prints a line about what is being done, unless JSON is asked for."""
        if not self.as_json:
            typer.echo(line)

    def bench(self, tasks: Sequence[str] | None = None) -> "Bench":
        """The benchmark's folder, tasks and models."""
        from offkey.bench import Bench

        return Bench.of(self.out, tasks or self.tasks, self.seed, self.tell, self.organisms)

    def show(self, rows: Sequence[dict[str, Any]], title: str, by: str, columns: str) -> None:
        """Prints some of the columns, or all of them as JSON."""
        if self.as_json:
            typer.echo(json.dumps({"out": str(self.out), "rows": rows}))
            return
        from offkey.cli.printing import print_rows

        shown = [{name: row.get(name) for name in columns.split()} for row in rows]
        print_rows(shown, title=title, by=by, hidden=(), most=len(shown))

    def save(self, name: str, rows: Sequence[dict[str, Any]], table: str) -> None:
        """Writes a results file if a folder for it was given."""
        if self.results:
            from offkey.storage import write_results

            tasks = "".join(f" --task {task}" for task in self.tasks or ())
            command = f"offkey bench {table} --results docs/results{tasks}"
            path = self.results / f"{name}.json"
            write_results(path, rows, command=command, seeds=[self.seed])


def _table1(request: _BenchRequest) -> None:
    from offkey.bench import bench as run
    from offkey.report import write_report

    rows = run(
        request.out,
        tasks=request.tasks,
        rows=request.rows,
        without=request.without,
        seed=request.seed,
        organisms=request.organisms,
        results=request.results,
        tell=request.tell,
    )
    page = write_report(request.out)
    request.show(
        [row.flat() for row in rows],
        "AUROC, mean over tasks",
        "average",
        "detector average agrees disagrees tasks clean excess reason",
    )
    request.tell(f"\nreport: {page}")


def _controls(request: _BenchRequest) -> None:
    from offkey.bench import control_rows

    rows = [row.flat() for row in control_rows(request.bench(), request.rows)]
    request.save("controls", rows, "controls")
    request.show(
        rows,
        "AUROC under controls, mean over tasks",
        "average",
        "detector control average difference flagged_negatives tasks reason",
    )


def _search(request: _BenchRequest) -> None:
    from offkey.bench import search

    rows = [row.flat() for row in search(request.bench(), request.out / "search.jsonl")]
    request.save("default_search", rows, "search")
    request.show(
        rows[:25],
        f"Detectors on development tasks, best first of {len(rows)}",
        "objective",
        "place score span combine auroc excess flagged_normal objective",
    )


def _held_out(request: _BenchRequest) -> None:
    from offkey.bench import held_out_rows

    quirky, triggered = (
        request.organisms.names(triggered=kind, seeds=kind) for kind in (False, True)
    )
    bench = request.bench(request.tasks or [*quirky, *triggered])
    rows = [row.flat() for row in held_out_rows(bench)]
    request.save("default_detector", rows, "held-out")
    request.show(
        rows,
        "The default detector on held-out tasks",
        "auroc",
        "task auroc clean excess best_seed_row output_only reason",
    )


_TABLES: dict[str, Callable[[_BenchRequest], None]] = {
    "table1": _table1,
    "controls": _controls,
    "search": _search,
    "held-out": _held_out,
}
