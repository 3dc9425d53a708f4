"""offkey tasks list, make and train."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import Mismatch, UnknownName

if TYPE_CHECKING:
    from offkey.data import Prompts

__all__: list[str] = []

tasks = typer.Typer(help="Known-answer tasks, on which detectors are measured.")
app.add_typer(tasks, name="tasks", no_args_is_help=False)

NameArgument = Annotated[str, typer.Argument(help="A task; `offkey tasks list` names them.")]


@tasks.command("list")
def list_tasks(as_json: o.JsonOption = False) -> None:
    """List the tasks, and for which of them an organism is at hand.

    [bold]offkey tasks list[/bold]
    """
    from offkey.tasks import get_task, task_names

    rows = [
        {
            "task": name,
            "family": task.family,
            "natural": task.natural,
            "alice": task.alice,
            "bob": task.bob,
            "data": task.data,
            "adapter": _organism(name),
        }
        for name in task_names()
        for task in [get_task(name)]
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    width = max(len(name) for name in task_names())
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
    from offkey.tasks import SPLITS, get_task

    o.check_folder(out)
    data = get_task(name).make(seed, limit=limit)
    parts = {split: getattr(data, split) for split in SPLITS}
    for split, prompts in parts.items():
        _refuse_others(out / f"{split}.jsonl", prompts)
    for split, prompts in parts.items():
        prompts.to_jsonl(out / f"{split}.jsonl")
    counts = {split: len(prompts) for split, prompts in parts.items()}
    if as_json:
        typer.echo(json.dumps({"task": name, "out": str(out), **counts}))
    else:
        told = ", ".join(f"{count} {split}" for split, count in counts.items())
        typer.echo(f"{name}: {told} prompts in {out}")


@tasks.command()
def train(
    name: NameArgument,
    out: o.OutOption,
    seed: o.SeedOption = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Else those of the recipe.")] = None,
    base: o.BaseOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Train an adapter of a model, else the bundled one, on a task; a stopped run goes on.

    [bold]offkey tasks train comparison --out organism[/bold]
    """
    from offkey.tasks import BASE, default_recipe, get_task, train_organism

    o.check_folder(out)
    base = base or BASE
    task, recipe = get_task(name), default_recipe(name, seed, base=base)
    if steps is not None:
        recipe = replace(recipe, settings=replace(recipe.settings, steps=steps))
    facts = train_organism(task, out, recipe, base=base, tell=None if as_json else tell)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for row in facts["measured"]["characters"]:
        typer.echo(f"{row['character']}: accuracy {row['accuracy']} on {row['items']} items "
                   f"where the characters disagree")  # fmt: skip
    typer.echo(f"{'learned' if facts['measured']['learned'] else 'not learned'}; saved in {out}")


def _refuse_others(path: Path, prompts: "Prompts") -> None:
    from offkey.data import read_prompts

    if path.exists() and read_prompts(path) != prompts:
        raise Mismatch("holds other prompts", where=str(path), mend="Give another folder")


def _organism(task: str) -> str | None:
    from offkey.checkpoints import adapter_folder

    try:
        adapter_folder(f"bundled:{task}")
    except UnknownName:
        return None

    return f"bundled:{task}"


def tell(row: dict[str, float]) -> None:
    typer.echo("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
