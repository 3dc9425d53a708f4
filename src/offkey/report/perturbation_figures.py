"""Figures of models whose weights or activations were perturbed: local volume and sensitivity."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from offkey.errors import BadInput, check
from offkey.report._format import decimal, significant
from offkey.report._svg import Drawing, ink
from offkey.report.figures import draw_roc, save_drawings
from offkey.sensitivity import Curve, summarise
from offkey.storage import read_json, read_table

__all__ = ["save_sensitivity_figures", "save_volume_figures"]


LABELS = {"activations": "coefficient", "weights": "norm of the weight noise"}
SIDES = ((True, "misaligned", "anomalous"), (False, "aligned", "normal"))


def save_volume_figures(folder: str | Path) -> dict[str, Path]:
    """Draws the volumes in a folder, as ``radii.svg`` and, for several cutoffs, ``volume.svg``.

    Args:
        folder: where :func:`offkey.volume.volume_curve` wrote its results; figures go there too.

    Returns:
        Paths by name.

    Raises:
        BadInput: the folder holds no finished volume.
        Unwritable: the folder cannot be written.
    """
    folder = Path(folder)
    parts = sorted(folder.glob("eps-*"), key=lambda part: float(part.name[4:]))
    parts = [part for part in parts if (part / "volume.json").exists()]
    what, mend = "holds no finished volume", "Run `offkey volume` first"
    check(bool(parts), what, where=str(folder), mend=mend, error=BadInput)
    drawings = [_radii(parts)]
    if len(parts) > 1:
        drawings.append(_volumes(parts))

    return save_drawings(drawings, folder)


def _radii(parts: list[Path]) -> Drawing:
    """Radii of all rays, sorted, against their share."""
    lines = {}
    for part in parts:
        radius = read_table(part / "rays.parquet")["radius"].to_pylist()
        lines[part.name[4:]] = sorted(r for r in radius if r is not None), len(radius)

    def paint(axes: Axes) -> None:
        for number, (radius, count) in enumerate(lines.values()):
            shade = 1 - 0.65 * number / max(1, len(lines) - 1) if len(lines) > 1 else 1
            share = np.arange(1, len(radius) + 1) / count
            axes.step(radius, share, where="post", color=ink("accent"), alpha=shade)
        axes.set_xscale("log")
        axes.set(xlabel="radius of the crossing", ylabel="share of rays", ylim=(0, 1))

    text = "; ".join(
        f"cutoff {eps}: median {significant(float(np.median(radius)))}, {count - len(radius)} of "
        f"{count} rays infinite"
        for eps, (radius, count) in lines.items()
        if radius
    )

    return Drawing("radii", "Radii of the crossings", f"{text}.", paint)


def _volumes(parts: list[Path]) -> Drawing:
    """The log volume and the mean log weight against the cutoff."""
    eps = [float(part.name[4:]) for part in parts]
    rows = [read_json(part / "volume.json") for part in parts]
    volumes = [row["log_volume_nats"] for row in rows]

    def paint(axes: Axes) -> None:
        axes.plot(eps, volumes, color=ink("accent"), marker="o", markersize=4)
        means = [row["mean_nats"] for row in rows]
        dashes = (0, (4, 2))
        axes.plot(eps, means, color=ink("muted"), marker="s", markersize=3, linestyle=dashes)
        axes.set_xscale("log")
        axes.set(xlabel="cutoff (nats)", ylabel="log volume (nats)")

    bounds = sum(row["is_bound"] for row in rows)
    ends = (f"{significant(volumes[n])} at {eps[n]:g}" for n in (0, -1))
    text = f"From {' to '.join(ends)}; {bounds} of {len(rows)} are lower bounds."
    legend = [("mean over rays of the weights", "accent"), ("of their logarithms", "muted")]

    return Drawing("volume", "Volume against the cutoff", text, paint, legend)


def save_sensitivity_figures(
    folders: Mapping[str, Mapping[str, str | Path]],
    misaligned: Mapping[str, bool],
    out: str | Path,
) -> dict[str, Path]:
    """Draws the KL of every model against the strength of each perturbation, and ROC curves.

    Args:
        folders: folders of saved curves, by name of the perturbation and of the model.
        misaligned: whether each model is, by name.
        out: the folder that gets ``sensitivity-NAME.svg`` for each perturbation, and
            ``sensitivity-roc.svg``.

    Returns:
        Paths by name.

    Raises:
        Damaged: a curve cannot be read.
        Unwritable: the folder cannot be written.
    """
    curves = {
        name: {model: Curve.load(folder) for model, folder in models.items()}
        for name, models in folders.items()
    }
    drawings = [_curves(name, models, misaligned) for name, models in curves.items()]

    return save_drawings([*drawings, _roc(curves, misaligned)], out)


def _curves(name: str, models: Mapping[str, Curve], misaligned: Mapping[str, bool]) -> Drawing:
    first = next(iter(models.values()))
    perturbed = str(first.about.get("perturbed", ""))

    def paint(axes: Axes) -> None:
        for which, _, colour in SIDES:
            for model, curve in models.items():
                if misaligned[model] == which:
                    axes.plot(curve.strengths, curve.mean("kl"), color=ink(colour), linewidth=1)
        if perturbed == "weights":
            axes.set_xscale("log")
            axes.set_xticks(first.strengths, [f"{radius:g}" for radius in first.strengths])
            axes.set_xticks([], minor=True)
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(bottom=0)
        axes.set(xlabel=LABELS.get(perturbed, "strength"), ylabel="KL (nats)")

    sides = []
    for which, label, _ in SIDES:
        ends = [c.mean("kl")[-1] for model, c in models.items() if misaligned[model] == which]
        sides.append(f"{len(ends)} {label}: median KL {significant(float(np.median(ends)))}")
    text = f"At the greatest strength, {'; '.join(sides)} nats."
    legend = [(label, colour) for _, label, colour in SIDES]

    title = f"Noise on {perturbed}" + (f" ({name})" if name != perturbed else "")

    return Drawing(f"sensitivity-{name}", title, text, paint, legend)


def _roc(curves: Mapping[str, Mapping[str, Curve]], misaligned: Mapping[str, bool]) -> Drawing:
    scores = {}
    areas = {}
    for name, models in curves.items():
        by_model = {model: summarise(curve) for model, curve in models.items()}
        sides = tuple(
            np.array([score for model, score in by_model.items() if misaligned[model] == which])
            for which in (False, True)
        )
        scores[name] = sides
        gap = sides[1][:, None] - sides[0][None, :]
        areas[name] = decimal(float((gap > 0).mean() + (gap == 0).mean() / 2))
    drawn = draw_roc(scores, areas)  # type: ignore[arg-type] # pairs of arrays

    def paint(axes: Axes) -> None:
        drawn.paint(axes)
        axes.set(xlabel="aligned models accused", ylabel="misaligned models found")

    return replace(drawn, name="sensitivity-roc", title="Misaligned models found", paint=paint)
