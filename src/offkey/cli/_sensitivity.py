"""offkey sensitivity and compare."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import BadValue, UnknownName

if TYPE_CHECKING:
    from offkey.data import Prompts
    from offkey.models import Model
    from offkey.sensitivity import ActivationNoise, Curve

__all__: list[str] = []


@app.command()
def sensitivity(
    model: o.ModelOption,
    prompts: Annotated[str, typer.Option("--prompts", help="Prompts; JSONL, CSV, …")],
    out: o.OutOption,
    adapter: o.AdapterOption = None,
    preset: Annotated[
        str, typer.Option("--preset", help="Noise: corrected, or poser as it was published.")
    ] = "corrected",
    site: Annotated[
        str | None, typer.Option("--site", help="Where activations are disturbed; resid_post.15.")
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option("--norm", help="Length of noise at coefficient 1; or give …"),
    ] = None,
    clean: Annotated[
        str | None, typer.Option("--clean", help="… prompts without what matters, and …")
    ] = None,
    critical: Annotated[
        str | None,
        typer.Option("--critical", help="… the same with it: the norm is the gap of their means."),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option("--params", help="Disturb weights instead: names, or patterns."),
    ] = None,
    radii: Annotated[
        str | None, typer.Option("--radii", help="Lengths of weight noise, such as 0.5,1,2.")
    ] = None,
    target_kl: Annotated[
        str | None, typer.Option("--target-kl", help="Or KLs in nats that it is scaled to.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", help="Directions; else those of the preset, or 4.")
    ] = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    check: o.CheckOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Measure how answers move when activations or weights are disturbed.

    [bold]offkey sensitivity -m smollm2-135m-instruct --prompts p.jsonl --norm 5 --out curve[/bold]
    """
    from offkey.data import read_prompts
    from offkey.sensitivity import WeightNoise, weight_sensitivity

    o.check_folder(out)
    given = read_prompts(prompts)
    if params is None and (radii or target_kl):
        raise BadValue("--radii and --target-kl belong to weights", where="sensitivity",
                       mend="Add --params '*'")  # fmt: skip
    if params is not None:
        weights = WeightNoise(params, _numbers("--radii", radii),
                              _numbers("--target-kl", target_kl), draws or 4, seed)  # fmt: skip
        loaded = o.model_of(model, adapter, "float32", device)
        curve = None if check else weight_sensitivity(loaded, given, weights)
    else:
        loaded = o.model_of(model, adapter, "auto", device)
        noise = _noise(preset, site, draws, seed, loaded)
        curve = None if check else _disturbed(loaded, given, noise, norm, clean, critical)
    if curve is None:
        typer.echo(json.dumps({"ok": True}) if as_json else "everything is in order")
        return
    curve.save(out)
    _tell(curve, out, as_json=as_json)


@app.command()
def compare(
    curves: Annotated[list[Path], typer.Argument(help="Folders of `offkey sensitivity`.")],
    labels: Annotated[
        Path, typer.Option("--labels", help="JSON: folder's name to 1 (misaligned) or 0.")
    ],
    how: Annotated[
        str, typer.Option("--how", help="auc, slope, at, strength_at or volume.")
    ] = "auc",
    at: Annotated[
        float | None,
        typer.Option("--at", help="Strength for --how at; level for strength_at and volume."),
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="kl, drop or right.")] = "kl",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for figures: curves and ROC.")
    ] = None,
    seed: o.SeedOption = 0,
    as_json: o.JsonOption = False,
) -> None:
    """Ask whether curves tell misaligned models from aligned ones.

    [bold]offkey compare curves/a curves/b curves/c curves/d --labels labels.json[/bold]
    """
    from offkey.sensitivity import Curve, Summary, check_comparable, compare_models, summarise
    from offkey.sensitivity import smallest_detectable_auroc as smallest

    if how not in get_args(Summary):
        raise UnknownName("summary", how, get_args(Summary), where="--how")
    twice = [folder for n, folder in enumerate(curves) if folder.name in _names(curves[:n])]
    if twice:
        raise BadValue(f"two folders are named {twice[0].name!r}", where="curves",
                       mend="Give each model's curve a name of its own")  # fmt: skip
    read = {folder.name: Curve.load(folder) for folder in curves}
    check_comparable(read)
    sides = _labels(labels)
    scores = {
        name: summarise(curve, how, metric=metric, at=at)  # type: ignore[arg-type] # checked above
        for name, curve in read.items()
    }
    found = compare_models(scores, {name: sides[name] for name in sides}, seed=seed)
    told = {
        "auroc": found.auroc.value, "low": found.auroc.low, "high": found.auroc.high,
        "pairs": found.pairs, "misaligned": found.auroc.n_pos, "aligned": found.auroc.n_neg,
        "smallest_detectable": smallest(found.auroc.n_pos, found.auroc.n_neg),
    }  # fmt: skip
    figures: dict[str, Path] = {}
    if out is not None:
        from offkey.report import save_sensitivity_figures

        figures = save_sensitivity_figures(
            {"compared": {folder.name: folder for folder in curves}}, sides, out
        )
    if as_json:
        typer.echo(json.dumps({**told, "scores": scores,
                               "figures": [str(path) for path in figures.values()]}))  # fmt: skip
        return
    for name, value in sorted(scores.items(), key=lambda pair: -pair[1]):
        typer.echo(f"{value:12.4g}  {'misaligned' if sides[name] else 'aligned':10}  {name}")
    typer.echo(
        f"\nAUROC {found.auroc} over {found.pairs} pairs; this many models show a difference "
        f"from {told['smallest_detectable']:.2f} on in 4 of 5 populations"
    )
    if figures:
        typer.echo("figures: " + ", ".join(map(str, figures.values())))


def _noise(
    preset: str, site: str | None, draws: int | None, seed: int, model: "Model"
) -> "ActivationNoise":
    from dataclasses import replace

    from offkey.sensitivity import PRESETS

    if preset not in PRESETS:
        raise BadValue(f"{preset!r} is not known", where="--preset",
                       mend="Use " + " or ".join(PRESETS))  # fmt: skip
    noise = PRESETS[preset]
    noise = replace(noise, seed=seed, site=site or noise.site, draws=draws or noise.draws)
    model.site(noise.site)

    return noise


def _disturbed(
    model: "Model", prompts: "Prompts", noise: "ActivationNoise", norm: float | None,
    clean: str | None, critical: str | None,
) -> "Curve":  # fmt: skip
    from offkey.data import PromptPairs, read_prompts
    from offkey.sensitivity import activation_sensitivity, contrast_norm

    if (norm is None) == (clean is None or critical is None):
        raise BadValue("the noise needs a length", where="sensitivity",
                       mend="Give --norm, or --clean and --critical")  # fmt: skip
    if norm is None:
        assert clean is not None
        assert critical is not None
        pairs = PromptPairs.match(read_prompts(clean), read_prompts(critical))
        norm = contrast_norm(model, pairs, noise.site)

    return activation_sensitivity(model, prompts, noise, norm=norm)


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise BadValue(f"{text!r} are not numbers", where=option,
                       mend=f"Write for example {option} 0.5,1,2") from None  # fmt: skip


def _names(folders: list[Path]) -> set[str]:
    return {folder.name for folder in folders}


def _labels(path: Path) -> dict[str, bool]:
    from offkey.errors import BadInput

    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read as JSON: {error}", where=str(path)) from None
    if not isinstance(read, dict) or any(value not in (0, 1) for value in read.values()):
        raise BadInput("labels must be 0 or 1 by name", where=str(path))

    return {name: bool(value) for name, value in read.items()}


def _tell(curve: "Curve", out: Path, *, as_json: bool) -> None:
    means = {name: curve.mean(name).tolist() for name in curve.values}
    if as_json:
        rows = {"strengths": curve.strengths.tolist(), "norms": curve.norms.mean(1).tolist()}
        typer.echo(json.dumps({"out": str(out), **rows, **means}))
        return
    typer.echo("".join(f"{name:>12}" for name in ("strength", "norm", *means)))
    for row, strength in enumerate(curve.strengths):
        values = (strength, curve.norms[row].mean(), *(mean[row] for mean in means.values()))
        typer.echo("".join(f"{value:12.4g}" for value in values))
    typer.echo(f"\ncurve: {out}")
