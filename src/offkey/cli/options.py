"""Options that several verbs share, and what each of them stands for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.errors import BadValue, Unwritable, check

if TYPE_CHECKING:
    from offkey.detect import Detector
    from offkey.models import Model, Positions

__all__ = [
    "AdapterOption",
    "AlphaOption",
    "BaseOption",
    "CheckOption",
    "CombineOption",
    "DetectorOption",
    "DeviceOption",
    "DtypeOption",
    "JsonOption",
    "ModelOption",
    "OutOption",
    "PositionsOption",
    "RedactOption",
    "SeedOption",
    "SitesOption",
    "check_folder",
    "check_writable",
    "detectors_of",
    "model_of",
]

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="Bundled name, folder, .gguf file or Hub id."),
]
AdapterOption = Annotated[
    str | None, typer.Option("--adapter", help="PEFT folder, or bundled:NAME.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16, float16 or float64.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")]
DetectorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        "-d",
        help="FEATURE/SCORE, such as activations/lof; repeat for more. `offkey sites` lists both.",
    ),
]
SitesOption = Annotated[
    str | None,
    typer.Option(
        "--sites", help="Where activations are read: resid_post.later, resid_post.4-12, …"
    ),
]
PositionsOption = Annotated[
    str, typer.Option("--positions", help="last, mean, or offsets from the end such as -1,-2.")
]
CombineOption = Annotated[
    str, typer.Option("--combine", help="mean, max, later-half or top-M, such as top-3.")
]
AlphaOption = Annotated[
    float, typer.Option("--alpha", help="False-alarm rate at which prompts are flagged.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="The untouched model; else the bundled one.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every split and random draw.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Check model, prompts and settings; run nothing.")
]
RedactOption = Annotated[
    bool, typer.Option("--redact", help="Keep the texts of prompts out of tables and report.")
]

IN_THE_WAY = "cannot be written: a file stands where a folder is needed"


def check_writable(path: Path) -> None:
    """Refuses a path that cannot be written, before any work is done; creates nothing.

    Raises:
        Unwritable: a file is in the way, or the folder is write-protected.
    """
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    check(
        place == path.absolute() or place.is_dir(),
        IN_THE_WAY,
        where=str(place),
        mend="Choose another folder",
        error=Unwritable,
    )
    check(
        os.access(place, os.W_OK),
        "cannot be written: permission denied",
        where=str(place),
        mend="Choose another folder or change its permissions",
        error=Unwritable,
    )


def check_folder(path: Path) -> None:
    """Refuses a folder that cannot be created or written to; creates nothing.

    Raises:
        Unwritable: it, or a folder above it, is a file or write-protected.
    """
    check_writable(path)
    check(
        path.is_dir() or not path.exists(),
        IN_THE_WAY,
        where=str(path),
        mend="Choose another folder",
        error=Unwritable,
    )


def model_of(model: str, adapter: str | None, dtype: str, device: str) -> "Model":
    """Loads the model that the options describe."""
    from offkey.models import load

    return load(model, adapter, dtype=dtype, device=device)


def detectors_of(
    names: list[str] | None, sites: str | None, positions: str, combine: str, alpha: float
) -> "list[Detector]":
    """The detectors that the options describe; the default one if none is named."""
    from offkey.detect import Detector

    return [
        Detector.named(
            name,
            sites=sites,
            positions=_positions(positions),
            combine=combine,
            alpha=alpha,
        )
        for name in dict.fromkeys(names or ["activations"])
    ]


def _positions(text: str) -> "Positions":
    if text in ("last", "mean"):
        return text  # type: ignore[return-value] # narrowed to the two words
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadValue(
            f"{text!r} is neither last, mean nor numbers",
            where="--positions",
            mend="Write for example --positions last, or --positions -1,-2",
        ) from None
