"""offkey risk."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import BadInput, BadValue, UnknownName

if TYPE_CHECKING:
    from offkey.estimate import Estimate
    from offkey.estimate.risk import Draws, Problem, TokenInputs
    from offkey.models import Model

__all__: list[str] = []

METHODS = (
    "naive",
    "itgis",
    "mhis",
    "qld",
    "qld-gaussian",
    "qld-pareto",
    "gld",
    "layer-gaussian",
)
SAMPLED = ("itgis", "mhis")
SHOWN = (
    "method",
    "estimate",
    "standard_error",
    "effective_samples",
    "resolution",
    "status",
    "reason",
)


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
        str, typer.Option("--target", help="Text of the next token whose probability is asked.")
    ],
    out: o.OutOption,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help=f"{', '.join(METHODS)}; again for more. All if none."),
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
    from offkey.estimate.risk import Draws, LanguageNetwork, Problem, Remembered
    from offkey.storage import make_folder, write_json

    o.check_folder(out)
    names = _methods(method)
    if samples < 1024 and "mhis" in names:
        raise BadValue(
            f"{samples} samples are too few for mhis",
            where="--samples",
            mend="Give at least 1024, or other methods",
        )
    loaded = o.model_of(model, adapter, dtype, device)
    inputs = _inputs(loaded, free)
    wanted = _token(loaded, target, "--target")
    network = LanguageNetwork(loaded, _ids(loaded, prompt))
    problem = Problem(Remembered(network), inputs, wanted)
    if check:
        told = {"inputs": inputs.count, "positions": inputs.positions, "target": wanted}
        typer.echo(json.dumps(told, indent=2) if as_json else "everything is in order")
        return
    plain = [name for name in names if name not in SAMPLED]
    draws = Draws.of(network, inputs, samples, seed=seed) if plain else None
    rows = [
        _row(name, _estimate(name, problem, draws, (samples, temperature, seed))) for name in names
    ]
    report = {
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "prompt": prompt,
        "target": target,
        "target_token": wanted,
        "inputs": inputs.count,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "rows": rows,
    }
    path = make_folder(out) / "risk.json"
    write_json(path, report)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **report}))
        return
    print_rows(
        [{name: row[name] for name in SHOWN} for row in rows],
        title=f"probability that {target!r} comes next, over {inputs.count} inputs",
        by="estimate",
        hidden=(),
    )
    typer.echo(f"\nwritten: {path}")


def _methods(given: list[str] | None) -> list[str]:
    for name in given or ():
        if name not in METHODS:
            raise UnknownName("method", name, METHODS, where="--method")

    return list(dict.fromkeys(given or METHODS))


def _estimate(
    name: str, problem: "Problem", draws: "Draws | None", settings: tuple[int, float, int]
) -> "Estimate":
    from offkey.estimate.risk import ITGIS, MHIS, argmax_probability, gld, monte_carlo, qld

    samples, temperature, seed = settings
    if name == "itgis":
        return ITGIS(temperature, samples, batch=min(256, max(1, samples // 16)))(
            problem, seed=seed
        )
    if name == "mhis":
        return MHIS(temperature, samples, chains=16)(problem, seed=seed)
    assert draws is not None
    target = problem.target
    match name:
        case "naive":
            return monte_carlo(draws, target)
        case "gld":
            return gld(draws, target)
        case "layer-gaussian":
            return argmax_probability(draws.normal, draws.weight, draws.bias, target, seed=seed)
        case "qld-gaussian":
            return qld(draws, target, tail="gaussian")
        case "qld-pareto":
            return qld(draws, target, tail="pareto")

    return qld(draws, target)


def _row(name: str, found: "Estimate") -> dict[str, Any]:
    return {
        "method": name,
        "estimate": found.value,
        "standard_error": found.error,
        "effective_samples": found.effective_samples,
        "resolution": found.resolution,
        "status": found.status,
        "reason": found.reason,
    }


def _inputs(model: "Model", path: Path) -> "TokenInputs":
    from offkey.estimate.risk import TokenInputs

    try:
        told = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"cannot be read ({error})", where=str(path), mend="Give a JSON list of objects"
        ) from None
    fits = isinstance(told, list) and all(
        isinstance(row, dict) and all(isinstance(p, int | float) for p in row.values())
        for row in told
    )
    if not fits:
        raise BadInput(
            "is not a list of objects from token to probability",
            where=str(path),
            mend='Write for example [{" yes": 0.9, " no": 0.1}]',
        )
    rows = []
    for place, row in enumerate(told):
        where = f"{path}, position {place}"
        tokens = [_token(model, text, where) for text in row]
        if len(set(tokens)) != len(tokens):
            raise BadInput("two texts are the same token", where=where)
        rows.append(dict(zip(tokens, map(float, row.values()), strict=True)))

    return TokenInputs.of(rows)


def _ids(model: "Model", text: str) -> list[int]:
    if model.tokenizer is None:
        raise BadInput("the model has no tokenizer", where=f"model {model.name}")

    return [int(token) for token in model.tokenizer(text)["input_ids"]]


def _token(model: "Model", text: str, where: str) -> int:
    if model.tokenizer is None:
        raise BadInput("the model has no tokenizer", where=f"model {model.name}")
    found = model.tokenizer.encode(text, add_special_tokens=False)
    if len(found) != 1:
        parts = ", ".join(repr(model.tokenizer.decode([token])) for token in found) or "nothing"
        raise BadInput(
            f"{text!r} is not one token of the vocabulary but {parts}",
            where=where,
            mend="Give one token's text, with its leading space",
        )

    return int(found[0])
