"""offkey detect, fit and score."""

import json
from pathlib import Path
from typing import Annotated

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.cli.printing import print_rows

__all__: list[str] = []

TrustedOption = Annotated[
    str, typer.Option("--trusted", help="Prompts known to be handled normally: JSONL, CSV, …")
]
TestOption = Annotated[str, typer.Option("--test", help="Prompts to score; labels are optional.")]
PoolOption = Annotated[
    str | None, typer.Option("--pool", help="Unlabelled prompts, for scores that need them.")
]
CalibrationOption = Annotated[
    str | None, typer.Option("--calibration", help="Trusted prompts kept for p-values.")
]


@app.command()
def detect(
    model: o.ModelOption,
    trusted: TrustedOption,
    test: TestOption,
    out: o.OutOption,
    adapter: o.AdapterOption = None,
    pool: PoolOption = None,
    calibration: CalibrationOption = None,
    detector: o.DetectorOption = None,
    sites: o.SitesOption = None,
    positions: o.PositionsOption = "last",
    combine: o.CombineOption = "mean",
    alpha: o.AlphaOption = 0.05,
    seed: o.SeedOption = 0,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    redact: o.RedactOption = False,
    check: o.CheckOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Fit on trusted prompts, score test prompts, write a report.

    [bold]offkey detect -m smollm2-135m-instruct --adapter bundled:comparison
    --trusted trusted.jsonl --test new.jsonl --out run[/bold]
    """
    from offkey.data import read_prompts
    from offkey.detect import DetectionRun
    from offkey.report import print_table, write_report

    o.check_folder(out)
    detectors = o.detectors_of(detector, sites, positions, combine, alpha)
    files = {"trusted": trusted, "test": test, "pool": pool, "calibration": calibration}
    prompts = {name: read_prompts(file) for name, file in files.items() if file}
    run = DetectionRun(
        o.model_of(model, adapter, dtype, device),
        detectors,
        **prompts,
        seed=seed,
        redact=redact,
        quiet=as_json,
    )
    if check:
        plan = run.check()
        typer.echo(json.dumps(plan, indent=2) if as_json else "everything is in order")
        return
    metrics = run.run(out)
    if metrics is None:
        return
    page = write_report(out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "report": str(page), **metrics.as_json()}))
    else:
        print_table(metrics)
        typer.echo(f"\nreport: {page}")


@app.command()
def fit(
    model: o.ModelOption,
    trusted: TrustedOption,
    out: o.OutOption,
    adapter: o.AdapterOption = None,
    pool: PoolOption = None,
    calibration: CalibrationOption = None,
    detector: Annotated[
        str, typer.Option("--detector", "-d", help="FEATURE/SCORE, such as activations/lof.")
    ] = "activations",
    sites: o.SitesOption = None,
    positions: o.PositionsOption = "last",
    combine: o.CombineOption = "mean",
    alpha: o.AlphaOption = 0.05,
    seed: o.SeedOption = 0,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    as_json: o.JsonOption = False,
) -> None:
    """Fit one detector on trusted prompts and save it in a folder.

    [bold]offkey fit -m smollm2-135m-instruct --trusted trusted.jsonl --out detector[/bold]
    """
    from offkey.data import read_prompts

    o.check_folder(out)
    made = o.detectors_of([detector], sites, positions, combine, alpha)[0]
    made.fit(
        o.model_of(model, adapter, dtype, device),
        read_prompts(trusted),
        pool=read_prompts(pool) if pool else None,
        calibration=read_prompts(calibration) if calibration else None,
        seed=seed,
    )
    made.save(out)
    fitted = made.fitted
    if as_json:
        summary = {"detector": made.name, "out": str(out), **fitted.counts}
        left_out = dict(fitted.left_out)
        typer.echo(json.dumps({**summary, "sites": list(fitted.sites), "left_out": left_out}))
    else:
        typer.echo(
            f"{made.name}: fitted on {fitted.counts['fit']} prompts, calibrated on "
            f"{fitted.counts['calibrate']}, saved in {out}"
        )


@app.command()
def score(
    detector: Annotated[Path, typer.Argument(help="Folder that `offkey fit` saved.")],
    prompts: Annotated[str, typer.Argument(help="Prompts to score.")],
    model: o.ModelOption,
    adapter: o.AdapterOption = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Score each token of the responses.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Parquet file that is written.")
    ] = None,
    other_model: Annotated[
        bool, typer.Option("--other-model", help="Allow a model it was not fitted on.")
    ] = False,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    as_json: o.JsonOption = False,
) -> None:
    """Score prompts, or the tokens of responses, by a saved detector.

    [bold]offkey score detector new.jsonl -m smollm2-135m-instruct[/bold]
    """
    from offkey.data import read_prompts
    from offkey.detect import Detector, score_tokens
    from offkey.storage import write_table

    if out:
        o.check_writable(out)
    loaded = Detector.load(detector)
    read = read_prompts(prompts)
    loaded_model = o.model_of(model, adapter, dtype, device)
    if tokens:
        table = score_tokens(loaded, loaded_model, read, other_model=other_model)
    else:
        table = loaded.score(loaded_model, read, other_model=other_model).table()
    if out:
        write_table(out, table)
    if as_json:
        typer.echo(json.dumps({"detector": loaded.name, "rows": table.to_pylist()}))
    else:
        print_rows(table.to_pylist(), title=f"{loaded.name}: the highest scores first")
