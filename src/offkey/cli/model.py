"""offkey sites and doctor."""

import json
from typing import Annotated

import typer

from offkey.cli import options as o
from offkey.cli.application import app

__all__: list[str] = []


@app.command()
def sites(
    model: Annotated[str, typer.Argument(help="Bundled name, folder, .gguf file or Hub id.")],
    adapter: o.AdapterOption = None,
    pattern: Annotated[
        str | None, typer.Option("--sites", help="Only these, such as resid_post.later.")
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """List the places of a model that can be read, and the features and scores there are.

    [bold]offkey sites smollm2-135m-instruct --sites resid_post.later[/bold]
    """
    from offkey.features import feature_names
    from offkey.scores import score_names

    loaded = o.model_of(model, adapter, "auto", "auto")
    places = loaded.sites_at(pattern) if pattern else loaded.sites
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "sites": [{"site": str(s), "shape": list(s.shape)} for s in places],
                    "features": list(feature_names()),
                    "scores": list(score_names()),
                }
            )
        )
        return
    for kind in dict.fromkeys(site.kind for site in places):
        same = [site for site in places if site.kind == kind]
        names = str(same[0]) if len(same) == 1 else f"{same[0]} … {same[-1]}"
        typer.echo(f"{names:<34} {' × '.join(map(str, same[0].shape)) or '?'} a token")
    typer.echo(f"\nfeatures: {', '.join(feature_names())}\nscores:   {', '.join(score_names())}")


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Bundled name, folder, .gguf file or Hub id.")],
    adapter: o.AdapterOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Prove that offkey reads the right places of a model.

    [bold]offkey doctor smollm2-135m-instruct[/bold]
    """
    from offkey.doctor import doctor as examine

    report = examine(o.model_of(model, adapter, "auto", "auto"))
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, "checks": report.rows()}))
    else:
        typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
