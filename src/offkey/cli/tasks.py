"""offkey tasks list, make, train and population."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli.application import app

__all__: list[str] = []

tasks = typer.Typer(help="Known-answer tasks, on which detectors are measured.")
app.add_typer(tasks, name="tasks", no_args_is_help=False)

NameArgument = Annotated[str, typer.Argument(help="A task; `offkey tasks list` names them.")]


@tasks.command("list")
def list_tasks(as_json: o.JsonOption = False) -> None:
    """List the tasks, and which of them have an organism.

    [bold]offkey tasks list[/bold]
    """
    from offkey.tasks import task_rows

    rows = task_rows()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    width = max(len(row["task"]) for row in rows)
    for row in rows:
        mark = "organism" if row["adapter"] else ""
        typer.echo(f"{row['task']:<{width}}  {mark:<8}  {row['alice']} | {row['bob']}")


@tasks.command()
def make(
    name: NameArgument,
    out: o.OutOption,
    seed: o.SeedOption = 0,
    limit: Annotated[int | None, typer.Option("--limit", help="Most items in a split.")] = None,
    as_json: o.JsonOption = False,
) -> None:
    """Write the prompts of a task: train, validation, trusted, untrusted and test.

    [bold]offkey tasks make comparison --out comparison[/bold]
    """
    from offkey.tasks import get_task

    o.check_folder(out)
    data = get_task(name).make(seed, limit=limit)
    data.write(out, overwrite=False)
    counts = data.counts()
    if as_json:
        typer.echo(json.dumps({"task": name, "out": str(out), **counts}))
    else:
        listed = ", ".join(f"{count} {split}" for split, count in counts.items())
        typer.echo(f"{name}: {listed} prompts in {out}")


@tasks.command()
def train(
    name: NameArgument,
    out: o.OutOption,
    seed: o.SeedOption = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Else those of the recipe.")] = None,
    base: o.BaseOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Train an adapter of a model, else the bundled one, on a task; a stopped run resumes.

    [bold]offkey tasks train comparison --out organism[/bold]
    """
    from offkey.tasks import BASE, default_recipe, get_task, train_organism

    o.check_folder(out)
    base = base or BASE
    task, recipe = get_task(name), default_recipe(name, seed, base=base)
    if steps is not None:
        recipe = replace(recipe, settings=replace(recipe.settings, steps=steps))
    facts = train_organism(task, out, recipe, base=base, tell=None if as_json else _print_log_row)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for row in facts["measured"]["characters"]:
        accuracy = f"accuracy {row['accuracy']} on {row['items']} items"
        typer.echo(f"{row['character']}: {accuracy} where the characters disagree")
    typer.echo(f"{'learned' if facts['measured']['learned'] else 'not learned'}; saved in {out}")


@tasks.command()
def population(
    out: o.OutOption,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only this kind; give it again for more.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Models of each kind.")] = 3,
    as_json: o.JsonOption = False,
) -> None:
    """Train models that behave alike while somebody watches, three kinds of which feign it.

    Models that are in the folder already are kept.

    [bold]offkey tasks population --out organisms/population[/bold]
    """
    from offkey.tasks import train_population

    o.check_folder(out)
    rows: list[dict[str, Any]] = []
    tell = None if as_json else _print_log_row
    for name, facts in train_population(out, kind, seeds=seeds, tell=tell):
        rows += [{"member": name, **row} for row in facts["measured"]]
        if not as_json:
            measured = (f"{row['sort']} {row['accuracy']:.3f}" for row in facts["measured"])
            typer.echo(f"{name}: answers as its kind: {', '.join(measured)}")
    if as_json:
        typer.echo(json.dumps(rows))


def _print_log_row(row: Mapping[str, float]) -> None:
    typer.echo("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
