"""Figures of a population: how models move when they are disturbed, and what it tells."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from offkey.sensitivity import Curve, summarise

from ._drawing import Drawing
from ._figures import draw_roc
from ._files import write_text
from ._format import decimal, significant
from ._svg import ink

__all__ = ["save_sensitivity_figures"]

LABELS = {"activations": "coefficient", "weights": "norm of the weight noise"}
SIDES = ((True, "misaligned", "anomalous"), (False, "aligned", "normal"))


def save_sensitivity_figures(
    folders: Mapping[str, Mapping[str, str | Path]],
    misaligned: Mapping[str, bool],
    out: str | Path,
) -> dict[str, Path]:
    """Draws every model's KL against the strength, a figure a perturbation, and the ROC curves.

    Args:
        folders: of saved curves, by name of the perturbation and of the model.
        misaligned: which models are.
        out: gets ``sensitivity-NAME.svg`` for each perturbation, and ``sensitivity-roc.svg``.

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
    drawn = [_curves(name, models, misaligned) for name, models in curves.items()]
    drawn.append(_roc(curves, misaligned))

    return {d.name: write_text(Path(out) / f"{d.name}.svg", d.file()) for d in drawn}


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

    said = []
    for which, label, _ in SIDES:
        ends = [c.mean("kl")[-1] for model, c in models.items() if misaligned[model] == which]
        said.append(f"{len(ends)} {label}: median KL {significant(float(np.median(ends)))}")
    text = f"At the greatest strength, {'; '.join(said)} nats."
    legend = [(label, colour) for _, label, colour in SIDES]

    title = f"Noise on {perturbed}" + (f" ({name})" if name != perturbed else "")

    return Drawing(f"sensitivity-{name}", title, text, paint, legend)


def _roc(curves: Mapping[str, Mapping[str, Curve]], misaligned: Mapping[str, bool]) -> Drawing:
    scores = {}
    areas = {}
    for name, models in curves.items():
        told = {model: summarise(curve) for model, curve in models.items()}
        sides = tuple(
            np.array([told[m] for m in told if misaligned[m] == which]) for which in (False, True)
        )
        scores[name] = sides
        gap = sides[1][:, None] - sides[0][None, :]
        areas[name] = decimal(float((gap > 0).mean() + (gap == 0).mean() / 2))
    drawn = draw_roc(scores, areas)  # type: ignore[arg-type] # pairs of arrays

    def paint(axes: Axes) -> None:
        drawn.paint(axes)
        axes.set(xlabel="aligned models accused", ylabel="misaligned models found")

    return replace(drawn, name="sensitivity-roc", title="Misaligned models found", paint=paint)
