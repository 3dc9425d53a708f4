"""The page of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._cells import Notes, control_rows, detector_rows
from ._drawing import Drawing
from ._explained import explained, telling
from ._figures import draw_histogram, draw_layers, draw_profile, draw_roc
from ._files import write_text
from ._format import decimal
from ._prompts import top_prompts, unscored
from ._render import render
from ._run import Run
from ._schema import RunInfo
from ._verdict import verdict

__all__ = ["flat", "run_figures", "write_report"]


def write_report(folder: str | Path, *, redact: bool = False, most: int = 20) -> Path:
    """Writes ``report.html`` into a run folder: one file, opened without a network.

    The same folder gives the same bytes.

    Args:
        folder: a run folder with ``run.json``, ``metrics.json``, ``scores.parquet`` and, for what
            drove a prompt's score, ``site_scores.parquet`` and ``explanations.json``.
        redact: keep the prompts' texts out of the page; ids stay.
        most: how many of the most anomalous prompts are shown.

    Returns:
        The path of the page.

    Raises:
        BadInput: no such folder or file, or a run that has not ended.
        Damaged: a file was truncated or edited, or two files disagree.
        Unwritable: the folder cannot be written.
    """
    run = Run.read(folder, redact=redact)
    notes = Notes()
    detectors, controls = detector_rows(run, notes), control_rows(run, notes)
    drawn = run_figures(run)
    page = render(
        "run.html.jinja",
        subject=_subject(run.info),
        info=run.info,
        metrics=run.metrics,
        verdict=verdict(run),
        detectors=detectors,
        controls=controls,
        notes=notes.pairs,
        has_labels=any(r.auroc for r in run.metrics.detectors),
        figures={d.name: d for d in drawn if not d.name.startswith("scores-")},
        histograms=[d for d in drawn if d.name.startswith("scores-")],
        prompts=top_prompts(run, most),
        explained=explained(run, redact=redact),
        words=[] if redact else telling(run),
        unscored=unscored(run),
        redacted=redact or "text" not in run.scores.column_names,
        settings=flat(run.info.config),
        versions=flat(run.info.versions),
        seconds=run.info.seconds if isinstance(run.info.seconds, dict) else {},
    )

    return write_text(run.folder / "report.html", page)


def run_figures(run: Run) -> list[Drawing]:
    """Every figure that the run has the data for."""
    drawn: list[Drawing] = []
    curves = {
        row.detector: (test.scores_of(0), test.scores_of(1))
        for row in run.metrics.detectors
        if (test := run.rows(row.detector, "test")).is_labelled
    }
    if curves:
        auroc = {r.detector: decimal(r.auroc.value if r.auroc else None)
                 for r in run.metrics.detectors}  # fmt: skip
        drawn.append(draw_roc(curves, auroc))
    if any(row.auroc for row in run.metrics.sites):
        drawn.append(draw_layers(run.metrics.sites))
    drawn += _profile(run)
    for i, row in enumerate(run.metrics.detectors):
        drawn += _histogram(run, i, row.detector)

    return drawn


def flat(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of dotted name and text, in their order."""
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value):
            for i, part in enumerate(value):
                pairs += flat({str(i): part}, f"{name}.")
        elif isinstance(value, (list, tuple)):
            pairs.append((name, ", ".join(str(v) for v in value) or "none"))
        else:
            pairs.append((name, "none" if value is None else str(value)))

    return pairs


def _subject(info: RunInfo) -> str:
    model, adapter = (info.config.get(k) for k in ("model", "adapter"))

    return " + ".join(str(part) for part in (model, adapter) if part) or "a run"


def _histogram(run: Run, number: int, detector: str) -> list[Drawing]:
    trusted, test = run.rows(detector, "calibration"), run.rows(detector, "test")
    groups = {"trusted": trusted.scores_of()}
    if len(test.scores_of(0)) or len(test.scores_of(1)):
        groups |= {"normal": test.scores_of(0), "anomalous": test.scores_of(1)}
    else:
        groups["accent"] = test.scores_of()
    n = len(groups["trusted"])
    k = int(np.floor(run.metrics.alpha * (n + 1) + 1e-9))
    # Flagged are the scores above the k-th highest calibration score.
    has_threshold = 1 <= k <= n and not np.isnan(test.p_value).all()
    threshold = float(np.sort(groups["trusted"])[-k]) if has_threshold else None
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return []
    name = f"scores-{number + 1}"

    return [draw_histogram(name, f"Scores by {detector}", groups, threshold)]


def _profile(run: Run) -> list[Drawing]:
    detector = run.metrics.detectors[0].detector
    trusted, test = run.site_scores(detector, "calibration"), run.site_scores(detector, "test")
    rows = run.rows(detector, "test")
    flagged = {
        i for i, f in zip(rows.table["id"].to_pylist(), rows.flagged, strict=True) if f == 1
    }
    mask = np.array([i in flagged for i in test.ids], dtype=bool)
    parts = {
        "test, flagged": ("anomalous", test.z[mask]),
        "test, not flagged": ("normal", test.z[~mask]),
    }
    if trusted.sites == test.sites:
        parts = {"trusted": ("trusted", trusted.z), **parts}
    parts = {k: v for k, v in parts.items() if len(v[1]) and not np.isnan(v[1]).all(axis=0).any()}
    if not test.sites or not parts:
        return []

    return [draw_profile(test.sites, parts)]
