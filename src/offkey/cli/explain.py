"""offkey explain."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import check

if TYPE_CHECKING:
    from offkey.data import Prompts
    from offkey.explain import Explanation, Token

__all__: list[str] = []

MODEL = "The model that was watched, where it cannot be loaded by the name that the run has."


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    id: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            help="Test prompt; give it again for more. The most anomalous "
            "flagged ones if left out.",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector", "-d", help="One of the run's detectors; the first if left out."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL)] = None,
    adapter: o.AdapterOption = None,
    trusted: Annotated[
        str | None, typer.Option("--trusted", help="The run's trusted prompts, if it keeps none.")
    ] = None,
    test: Annotated[
        str | None, typer.Option("--test", help="The run's test prompts, if it keeps none.")
    ] = None,
    background: Annotated[
        int, typer.Option("--background", help="Most trusted prompts that are read.")
    ] = 128,
    top: Annotated[int, typer.Option("--top", help="Most heads, latents, swaps and tokens.")] = 5,
    dictionary: Annotated[
        str | None,
        typer.Option("--dictionary", help="Folder of a sparse autoencoder, or bundled:SITE."),
    ] = None,
    redact: o.RedactOption = False,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    as_json: o.JsonOption = False,
) -> None:
    """Say why prompts of a run were flagged; its page shows it too.

    [bold]offkey explain run --id p17[/bold]
    """
    from offkey.explain import Detail, explain_run
    from offkey.report import write_report

    explanations = explain_run(
        folder,
        id or (),
        detector=detector,
        model=o.model_of(model, adapter, dtype, device) if model else None,
        prompts=_prompts(trusted, test),
        detail=Detail(top=top, background=background, dictionary=dictionary, redact=redact),
    )
    page = write_report(folder, redact=redact) if explanations else None
    if as_json:
        rows = [each.as_json() for each in explanations]
        typer.echo(json.dumps({"report": page and str(page), "prompts": rows}))
        return
    if not explanations:
        typer.echo("no prompt was flagged; name one by --id")
        return
    for each in explanations:
        _print(each)
    typer.echo(f"report: {page}")


def _print(row: "Explanation") -> None:
    p_value = "no p-value" if row.p_value is None else f"p {row.p_value:.2g}"
    flag = {None: "", True: ", flagged", False: ", not flagged"}[row.flagged]
    typer.echo(f"{row.id}: {row.detector} {row.score:.4g}, {p_value}{flag}")
    for text in (row.text or "").splitlines():
        typer.echo(f"  | {text}")
    for part, lines in _parts(row).items():
        for number, line in enumerate(lines):
            typer.echo(f"  {part if not number else '':9}{line}")
    for part, why in row.notes.items():
        typer.echo(f"  {part:9}none: {why}")
    typer.echo("")


def _parts(row: "Explanation") -> dict[str, list[str]]:
    """The lines of each part of an explanation."""
    drivers = [site for site in row.drivers[:3] if site.share > 0]

    return {
        "sites": [f"{s.site} adds {s.share:.3g} ({s.standardised:.3g} spreads)" for s in drivers],
        "words": [f"{_swap(s.words, s.instead)}: score {s.score:.3g}" for s in row.swaps[:3]],
        "heads": [
            f"{h.site} head {h.head}: {h.effect:+.3g} nats (usual {h.usual:+.3g})"
            for h in row.heads[:3]
        ],
        "latents": [
            f"{one.site} latent {one.latent}: {one.activation:.3g} "
            f"(on {one.trusted:.1%} of trusted prompts)"
            for one in row.latents[:3]
        ],
        "lens": [
            f"{r.site}: {_tokens(r.tokens)} beside {_tokens(r.beside[0])}" for r in row.read_outs
        ],
        "nearest": [f"{n.id} at {n.distance:.3g}" for n in row.nearest],
    }


def _swap(words: str, instead: tuple[str, ...]) -> str:
    others = [repr(word) if word else "nothing" for word in instead]

    return f"{words or 'nothing'!r} for {' or '.join(others)}"


def _tokens(tokens: "tuple[Token, ...]") -> str:
    return " ".join(f"{t.token!r} {t.probability:.0%}" for t in tokens[:2])


def _prompts(trusted: str | None, test: str | None) -> "tuple[Prompts, Prompts] | None":
    from offkey.data import read_prompts

    check(
        (trusted is None) == (test is None),
        "the one is given without the other",
        where="--trusted, --test",
        mend="Give both, or neither",
    )
    if trusted is None or test is None:
        return None

    return read_prompts(trusted), read_prompts(test)
