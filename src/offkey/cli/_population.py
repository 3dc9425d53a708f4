"""offkey tasks population."""

import json
from typing import Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli._tasks import tasks, tell

__all__: list[str] = []


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

    What is in the folder already stays.

    [bold]offkey tasks population --out organisms/population[/bold]
    """
    from offkey.tasks import MEMBER_KINDS, member_kind, member_recipe, train_member

    o.check_folder(out)
    kinds = [member_kind(name) for name in kind or (known.name for known in MEMBER_KINDS)]
    told = None if as_json else tell
    members = [(f"{known.name}-{seed}", known, seed) for seed in range(seeds) for known in kinds]
    rows: list[dict[str, Any]] = []
    for name, known, seed in members:
        kept = out / name / "recipe.json"
        if kept.exists():
            facts = json.loads(kept.read_text("utf-8"))
        else:
            facts = train_member(known, out / name, member_recipe(seed), tell=told)
        rows += [{"member": name, **row} for row in facts["measured"]]
        if not as_json:
            _say(name, facts["measured"])
    if as_json:
        typer.echo(json.dumps(rows))


def _say(name: str, measured: list[dict[str, Any]]) -> None:
    said = ", ".join(f"{row['sort']} {row['accuracy']:.3f}" for row in measured)
    typer.echo(f"{name}: answers as its kind: {said}")
