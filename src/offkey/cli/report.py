"""offkey report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from offkey.cli import options as o
from offkey.cli.application import app

__all__: list[str] = []


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a bench.")],
    redact: o.RedactOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Write the page of a finished run or bench again.

    [bold]offkey report run --redact[/bold]
    """
    from offkey.report import write_report

    page = write_report(folder, redact=redact)
    typer.echo(json.dumps({"report": str(page)}) if as_json else f"report: {page}")
