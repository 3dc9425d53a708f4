"""offkey volume."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.cli.printing import print_rows
from offkey.errors import BadValue

if TYPE_CHECKING:
    from offkey.volume import KLCost, Proposal

__all__: list[str] = []

BUDGET = 512
"""Tokens of a batch, whose logits are in memory at once."""
SHOWN = {
    "radius_term_nats": "radii", "mean_nats": "mean", "std_nats": "std",
    "effective_sample_size": "ESS", "median_radius": "radius", "evaluations_per_ray": "evals",
}  # fmt: skip
"""Figures of the printed table beside the volume, and what they are called there."""


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
        ),  # fmt: skip
    ] = None,
    lebesgue: Annotated[
        bool, typer.Option("--lebesgue", help="Plain volume instead of a Gaussian's probability.")
    ] = False,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            "--eps",
            help="Cutoff of the mean KL, in nats, 0.01 if left out; give it again for a curve.",
        ),  # fmt: skip
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
    from offkey.data import pack, read_prompts
    from offkey.report import save_volume_figures
    from offkey.volume import (
        GaussianMeasure,
        KLCost,
        LebesgueMeasure,
        LowESS,
        check_cutoffs,
        check_volume,
        volume_curve,
    )

    o.check_folder(out)
    measure = LebesgueMeasure() if lebesgue else GaussianMeasure(sigma)
    cutoffs = eps or [1e-2]
    read = read_prompts(prompts)
    loaded = o.model_of(model, adapter, "float32", device)
    batches = pack(read, loaded.tokenizer, token_budget=BUDGET,
                   context_length=loaded.context_length)  # fmt: skip
    cost = KLCost(loaded, batches, tokens=tokens)  # type: ignore[arg-type] # it checks the words
    check_cutoffs(cutoffs)
    for cutoff in cutoffs:
        told = check_volume(cost, cutoff, measure, params=params, n=directions)
    if proposal not in ("uniform", "diagonal", "tilted"):
        raise BadValue(f"{proposal!r} is not known", where="--proposal",
                       mend="Use uniform, diagonal or tilted")  # fmt: skip
    if check:
        typer.echo(json.dumps({"prompts": len(read), **told}, indent=2) if as_json
                   else "everything is in order")  # fmt: skip
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESS)  # the table says which are bounds
        found = volume_curve(
            cost, cutoffs, measure, proposal=_proposal(proposal, cost, params, seed),
            params=params, n=directions, seed=seed, out=out,
        )  # fmt: skip
    figures = save_volume_figures(out)
    rows = [{"eps": cutoff, **result.summary()} for cutoff, result in zip(cutoffs, found,
                                                                         strict=True)]  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"out": str(out), "figures": [str(f) for f in figures.values()],
                               "parameters": told["dimensions"], "rows": rows}))  # fmt: skip
        return
    kind = "volume" if lebesgue else "probability"
    title = f"log {kind} in nats, {told['dimensions']:,} weights, {directions} rays"
    print_rows([_short(row) for row in rows], title=title, by="eps", hidden=())
    typer.echo("\n" + "\n".join(_said(rows)))
    typer.echo("figures: " + ", ".join(str(Path(path)) for path in figures.values()))


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the printed table: large numbers whole, so that columns stay narrow."""
    sign = "≥ " if row["is_bound"] else ""
    told = {"eps": row["eps"], "nats": sign + _figure(row["log_volume_nats"])}

    return {**told, **{short: _figure(row[name]) for name, short in SHOWN.items()}}


def _said(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the table has no room for."""
    if norm := rows[0]["norm_term_nats"]:
        yield f"norm term {_figure(norm)}: the volume's share that hangs on the weights' length"
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


def _proposal(name: str, cost: "KLCost", params: str, seed: int) -> "Proposal":
    """The proposal that the option names, with the model's own Fisher information."""
    from offkey.volume import Diagonal, Tilted, Uniform, fisher_diagonal

    if name == "uniform":
        return Uniform()
    base = Diagonal(fisher_diagonal(cost, params, seed=seed))

    return base if name == "diagonal" else Tilted(base)
