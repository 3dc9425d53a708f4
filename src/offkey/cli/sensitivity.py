"""offkey sensitivity, which measures one model, and offkey sensitivity compare."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from offkey.cli import options as o
from offkey.cli.application import app
from offkey.errors import BadInput, BadValue, check

if TYPE_CHECKING:
    from offkey.data import PromptPairs
    from offkey.sensitivity import Curve, CurveComparison

__all__: list[str] = []


class _Group(TyperGroup):
    """A group with a verb that is meant where none is named."""

    default = "measure"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "-h", "--help"):
            args = [self.default, *args]

        return super().parse_args(ctx, args)


sensitivity = typer.Typer(
    cls=_Group,
    help="""Measure how answers move under perturbation, or compare models by it.

    The verb measure may be left out:

    [bold]offkey sensitivity -m smollm2-135m-instruct --prompts p.jsonl --norm 5 --out curve[/bold]
    """,
)
app.add_typer(sensitivity, name="sensitivity", no_args_is_help=False)


@sensitivity.command()
def measure(
    model: o.ModelOption,
    prompts: Annotated[str, typer.Option("--prompts", help="Prompts; JSONL, CSV, …")],
    out: o.OutOption,
    adapter: o.AdapterOption = None,
    preset: Annotated[
        str, typer.Option("--preset", help="Noise: corrected, or poser as it was published.")
    ] = "corrected",
    site: Annotated[
        str | None, typer.Option("--site", help="Where activations are perturbed; resid_post.15.")
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
        typer.Option("--params", help="Perturb weights instead: names, or patterns."),
    ] = None,
    radii: Annotated[
        str | None, typer.Option("--radii", help="Lengths of weight noise, such as 0.5,1,2.")
    ] = None,
    target_kl: Annotated[
        str | None, typer.Option("--target-kl", help="Or KLs in nats to which it is scaled.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", help="Directions; else those of the preset, or 4.")
    ] = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    check: o.CheckOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Measure how answers move when activations or weights are perturbed.

    [bold]offkey sensitivity measure -m smollm2-135m-instruct --prompts p.jsonl --norm 5 --out
    curve[/bold]
    """
    from offkey.data import read_prompts
    from offkey.sensitivity import (
        ActivationNoise,
        WeightNoise,
        activation_sensitivity,
        weight_sensitivity,
    )

    o.check_folder(out)
    rows = read_prompts(prompts)
    if params is None:
        _check_no_weight_options(radii, target_kl)
        loaded = o.model_of(model, adapter, "auto", device)
        noise = ActivationNoise.preset(preset, site=site, draws=draws, seed=seed)
        loaded.site(noise.site)
        length = None if check else _norm(norm, clean, critical)
        curve = (
            None if length is None else activation_sensitivity(loaded, rows, noise, norm=length)
        )
    else:
        strengths = _numbers("--radii", radii), _numbers("--target-kl", target_kl)
        weights = WeightNoise(params, *strengths, draws or 4, seed)
        loaded = o.model_of(model, adapter, "float32", device)
        curve = None if check else weight_sensitivity(loaded, rows, weights)
    if curve is None:
        typer.echo(json.dumps({"ok": True}) if as_json else "everything is in order")
        return
    curve.save(out)
    _print_curve(curve, out, as_json=as_json)


@sensitivity.command()
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

    [bold]offkey sensitivity compare curves/a curves/b curves/c curves/d --labels
    labels.json[/bold]
    """
    from offkey.sensitivity import compare_curves, load_curves

    loaded = load_curves(curves)
    misaligned = _labels(labels)
    result = compare_curves(
        loaded,
        misaligned,
        how=how,  # type: ignore[arg-type] # checked there
        metric=metric,
        at=at,
        seed=seed,
    )
    figures: dict[str, Path] = {}
    if out is not None:
        from offkey.report import save_sensitivity_figures

        folders = {folder.name: folder for folder in curves}
        figures = save_sensitivity_figures({"compared": folders}, misaligned, out)
    _print_comparison(
        result, misaligned, [str(path) for path in figures.values()], as_json=as_json
    )


def _check_no_weight_options(radii: str | None, target_kl: str | None) -> None:
    check(
        not (radii or target_kl),
        "--radii and --target-kl belong to weights",
        where="sensitivity",
        mend="Add --params '*'",
    )


def _norm(norm: float | None, clean: str | None, critical: str | None) -> "float | PromptPairs":
    """The length of the noise, or the pairs that give it."""
    from offkey.data import PromptPairs, read_prompts

    if (norm is None) == (clean is None or critical is None):
        raise BadValue(
            "the noise needs a length",
            where="sensitivity",
            mend="Give --norm, or --clean and --critical",
        )
    if norm is not None:
        return norm
    assert clean is not None
    assert critical is not None

    return PromptPairs.match(read_prompts(clean), read_prompts(critical))


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise BadValue(
            f"{text!r} are not numbers",
            where=option,
            mend=f"Write for example {option} 0.5,1,2",
        ) from None


def _labels(path: Path) -> dict[str, bool]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read as JSON: {error}", where=str(path)) from None
    if not isinstance(labels, dict) or any(value not in (0, 1) for value in labels.values()):
        raise BadInput("labels must be 0 or 1 by name", where=str(path))

    return {name: bool(value) for name, value in labels.items()}


def _print_curve(curve: "Curve", out: Path, *, as_json: bool) -> None:
    means = {name: curve.mean(name).tolist() for name in curve.values}
    missing = {name: count for name in curve.values if (count := curve.missing(name))}
    if as_json:
        rows = {"strengths": curve.strengths.tolist(), "norms": curve.norms.mean(1).tolist()}
        typer.echo(json.dumps({"out": str(out), **rows, **means, "missing": missing}))
        return
    typer.echo("".join(f"{name:>12}" for name in ("strength", "norm", *means)))
    for row, strength in enumerate(curve.strengths):
        values = (strength, curve.norms[row].mean(), *(mean[row] for mean in means.values()))
        typer.echo("".join(f"{value:12.4g}" for value in values))
    typer.echo()
    for name, count in missing.items():
        typer.echo(f"{name}: without {count} of {len(curve.ids)} prompts, which have no target")
    typer.echo(f"curve: {out}")


def _print_comparison(
    result: "CurveComparison",
    misaligned: Mapping[str, bool],
    figures: list[str],
    *,
    as_json: bool,
) -> None:
    scores, comparison = result
    auroc = comparison.auroc
    if as_json:
        row = {
            "auroc": auroc.value,
            "low": auroc.low,
            "high": auroc.high,
            "pairs": comparison.pairs,
            "misaligned": auroc.n_pos,
            "aligned": auroc.n_neg,
            "smallest_detectable": comparison.smallest_detectable,
        }
        typer.echo(json.dumps({**row, "scores": scores, "figures": figures}))
        return
    for name, value in sorted(scores.items(), key=lambda pair: -pair[1]):
        typer.echo(f"{value:12.4g}  {'misaligned' if misaligned[name] else 'aligned':10}  {name}")
    typer.echo(
        f"\nAUROC {auroc} over {comparison.pairs} pairs; this many models show a difference "
        f"from {comparison.smallest_detectable:.2f} on in 4 of 5 populations"
    )
    if figures:
        typer.echo("figures: " + ", ".join(figures))
