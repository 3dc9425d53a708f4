"""offkey volume."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.cli.printing import print_rows

__all__: list[str] = []

COLUMNS = {
    "radius_term_nats": "radii",
    "mean_nats": "mean",
    "std_nats": "std",
    "effective_sample_size": "ESS",
    "median_radius": "radius",
    "evaluations_per_ray": "evals",
}
"""Figures of the printed table beside the volume, and their short names."""


@app.command()
def volume(
    model: o.ModelOption,
    prompts: Annotated[str, typer.Option("--prompts", help="Prompts whose answers must stay.")],
    out: o.OutOption,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            help="Standard deviation of the Gaussian measure, such as that of "
            "the initial weights; needed unless --lebesgue.",
        ),
    ] = None,
    lebesgue: Annotated[
        bool, typer.Option("--lebesgue", help="Plain volume instead of a Gaussian's probability.")
    ] = False,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            "--eps",
            help="Cutoff of the mean KL, in nats, 0.01 if left out; give it again for a curve.",
        ),
    ] = None,
    params: Annotated[
        str,
        typer.Option("--params", help="Which weights move: names or patterns, by commas."),
    ] = "*",
    directions: Annotated[int, typer.Option("--directions", "-n", help="Number of rays.")] = 32,
    tokens: Annotated[
        str, typer.Option("--tokens", help="Whose KL counts: all tokens, or the last.")
    ] = "all",
    proposal: Annotated[
        str,
        typer.Option("--proposal", help="Rays: uniform, diagonal (Fisher) or tilted."),
    ] = "uniform",
    adapter: o.AdapterOption = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    check: o.CheckOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Estimate how much of weight space answers as the model does.

    [bold]offkey volume -m smollm2-135m-instruct --prompts trusted.jsonl --sigma 0.05
    --params 'model.layers.15.*' --out volume[/bold]
    """
    from offkey.data import read_prompts
    from offkey.report import save_volume_figures
    from offkey.volume import (
        GaussianMeasure,
        LebesgueMeasure,
        LowESS,
        VolumeSettings,
        check_model_volume,
        model_volume,
    )

    o.check_folder(out)
    settings = VolumeSettings(
        measure=LebesgueMeasure() if lebesgue else GaussianMeasure(sigma),
        cutoffs=tuple(eps or [1e-2]),
        params=params,
        rays=directions,
        tokens=tokens,  # type: ignore[arg-type] # checked there
        proposal=proposal,  # type: ignore[arg-type] # checked there
        seed=seed,
    )
    rows = read_prompts(prompts)
    loaded = o.model_of(model, adapter, "float32", device)
    if check:
        checked = check_model_volume(loaded, rows, settings)
        typer.echo(json.dumps(checked, indent=2) if as_json else "everything is in order")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESS)  # the table says which are bounds
        results = model_volume(loaded, rows, settings, out=out)
    _print(
        [{"eps": result.meta["eps"], **result.summary()} for result in results],
        results[0].meta["dimensions"],
        {"out": str(out), "figures": [str(path) for path in save_volume_figures(out).values()]},
        kind="volume" if lebesgue else "probability",
        as_json=as_json,
    )


def _print(
    rows: Sequence[Mapping[str, Any]],
    parameters: int,
    files: Mapping[str, Any],
    *,
    kind: str,
    as_json: bool,
) -> None:
    if as_json:
        typer.echo(json.dumps({**files, "parameters": parameters, "rows": rows}))
        return
    title = f"log {kind} in nats, {parameters:,} weights, {rows[0]['rays']} rays"
    print_rows([_table_row(row) for row in rows], title=title, by="eps", hidden=())
    typer.echo("\n" + "\n".join(_notes(rows)))
    typer.echo("figures: " + ", ".join(files["figures"]))


def _table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the printed table: large numbers whole, so that columns stay narrow."""
    sign = "≥ " if row["is_bound"] else ""
    volume = {"eps": row["eps"], "nats": sign + _figure(row["log_volume_nats"])}

    return {**volume, **{short: _figure(row[name]) for name, short in COLUMNS.items()}}


def _notes(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the table has no room for."""
    if norm := rows[0]["norm_term_nats"]:
        yield f"norm term {_figure(norm)}: what depends on the length of the weights alone"
    for row in rows:
        if not row["is_bound"]:
            ends = _figure(row["low"]), _figure(row["high"])
            yield f"95 % interval at {row['eps']:g}: {ends[0]} to {ends[1]}"
    if any(row["is_bound"] for row in rows):
        yield "≥ a bound: fewer than ten rays carry the sum, so the volume is at least this"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"

    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
