"""``offkey risk``: how likely a rare next token is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import BadInput
from offkey.errors import check as require

if TYPE_CHECKING:
    from offkey.estimate.risk import Problem

__all__: list[str] = []


@app.command()
def risk(
    model: o.ModelOption,
    prompt: Annotated[str, typer.Option("--prompt", help="What every input begins with.")],
    free: Annotated[
        Path,
        typer.Option(
            "--free",
            help="JSON file: a list with one object for each free position, from token text to "
            'probability, such as [{" yes": 0.9, " no": 0.1}].',
        ),
    ],
    target: Annotated[
        str, typer.Option("--target", help="Text of the next token whose probability is wanted.")
    ],
    out: o.OutOption,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="naive, itgis, mhis, qld, qld-gaussian, qld-pareto, gld or layer-gaussian; "
            "repeat it for more. All if left out.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Inputs that each method may run.")
    ] = 1024,
    temperature: Annotated[
        float, typer.Option("--temperature", help="T of itgis and mhis, in logits.")
    ] = 2.0,
    adapter: o.AdapterOption = None,
    seed: o.SeedOption = 0,
    dtype: o.DtypeOption = "float32",
    device: o.DeviceOption = "auto",
    check: o.CheckOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Estimate how likely a rare next token is, over inputs with free positions.

    [bold]offkey risk -m smollm2-135m-instruct --prompt "The word is"
    --free free.json --target " cat" --out risk[/bold]
    """
    from offkey.cli.printing import print_rows
    from offkey.estimate.risk import RiskQuestion, RiskSettings, estimate_risk
    from offkey.storage import make_folder

    o.check_folder(out)
    settings = RiskSettings(tuple(method or ()), samples, temperature, seed)
    question = RiskQuestion(prompt, _read_free(free), target)
    loaded = o.model_of(model, adapter, dtype, device)
    if check:
        typer.echo(_checked(question.problem(loaded), as_json))
        return
    report = estimate_risk(loaded, question, settings)
    path = make_folder(out) / "risk.json"
    report.write(path)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **report.model_dump()}))
        return
    print_rows(
        [row.model_dump() for row in report.rows],
        title=f"probability that {target!r} comes next, over {report.inputs} inputs",
        by="estimate",
        hidden=(),
    )
    typer.echo(f"\nwritten: {path}")


def _checked(problem: "Problem", as_json: bool) -> str:
    inputs = problem.inputs
    sizes = {"inputs": inputs.count, "positions": inputs.positions, "target": problem.target}

    return json.dumps(sizes, indent=2) if as_json else "everything is in order"


def _read_free(path: Path) -> list[dict[str, float]]:
    """The free positions that a JSON file lists."""
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"cannot be read ({error})", where=str(path), mend="Give a JSON list of objects"
        ) from None
    require(
        isinstance(rows, list)
        and all(
            isinstance(row, dict) and all(isinstance(p, int | float) for p in row.values())
            for row in rows
        ),
        "is not a list of objects from token to probability",
        where=str(path),
        mend='Write for example [{" yes": 0.9, " no": 0.1}]',
        error=BadInput,
    )

    return [{text: float(p) for text, p in row.items()} for row in rows]
