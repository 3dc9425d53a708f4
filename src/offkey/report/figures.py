"""The figures of run and bench folders.

Each drawing describes in words what it shows. Its legend is pairs of a label and an ink: the page
writes them as text, an SVG file draws them into the figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from offkey.bench import SiteRow, correlation
from offkey.detect import MetricInterval, SiteMetrics
from offkey.report._folders import BenchData, RunData, is_bench
from offkey.report._format import block_of, decimal, kind_of, significant, site_order
from offkey.report._svg import Drawing, ink, series_dash, series_ink
from offkey.storage import write_text

__all__ = [
    "bench_figures",
    "draw_histogram",
    "draw_layers",
    "draw_profile",
    "draw_quirkiness",
    "draw_roc",
    "mean_sites",
    "quirkiness_points",
    "run_figures",
    "save_drawings",
    "save_figures",
    "site_series",
]


Array = NDArray[np.float64]
_CHANCE = (0, (2, 3))
_GROUPS = {
    "trusted": "trusted",
    "normal": "test, normal",
    "anomalous": "test, anomalous",
    "accent": "test, no labels",
}


def save_figures(folder: str | Path, out: str | Path) -> dict[str, Path]:
    """Writes every figure of a run or bench folder as a file, light or dark as the reader has it.

    Args:
        folder: a run folder (``metrics.json``) or a bench folder (``table.parquet``).
        out: where the files go: ``roc.svg``, ``layers.svg``, ``profile.svg``, ``scores-1.svg``, …
            of a run; ``layers.svg`` and ``quirkiness.svg`` of a bench.

    Returns:
        Paths by name.

    Raises:
        BadInput: no such folder or file, or a run that has not ended.
        Damaged: a file was truncated or edited.
        Unwritable: ``out`` cannot be written.
    """
    if is_bench(folder):
        return save_drawings(bench_figures(BenchData.read(folder)), out)

    return save_drawings(run_figures(RunData.read(folder, redact=True)), out)


def save_drawings(drawings: Sequence[Drawing], out: str | Path) -> dict[str, Path]:
    """Writes each drawing as ``NAME.svg`` into a folder.

    Returns:
        Paths by name.

    Raises:
        Unwritable: the folder cannot be written.
    """
    paths = {drawing.name: Path(out) / f"{drawing.name}.svg" for drawing in drawings}
    for drawing in drawings:
        write_text(paths[drawing.name], drawing.file())

    return paths


def run_figures(run: RunData) -> list[Drawing]:
    """Every figure that the run has the data for."""
    drawn: list[Drawing] = []
    curves = {
        row.detector: (test.scores_of(0), test.scores_of(1))
        for row in run.metrics.detectors
        if (test := run.rows(row.detector, "test")).is_labelled
    }
    if curves:
        auroc = {
            row.detector: decimal(row.auroc.value if row.auroc else None)
            for row in run.metrics.detectors
        }
        drawn.append(draw_roc(curves, auroc))
    if any(row.auroc for row in run.metrics.sites):
        drawn.append(draw_layers(run.metrics.sites))
    drawn += _profile(run)
    for i, row in enumerate(run.metrics.detectors):
        drawn += _histogram(run, i, row.detector)

    return drawn


def bench_figures(bench: BenchData) -> list[Drawing]:
    """Every figure that the bench has the data for."""
    drawn = []
    means = mean_sites(bench.sites, bench.detectors)
    if means:
        drawn.append(draw_layers(means, "AUROC by layer, mean over tasks"))
    first = bench.detectors[0]
    points = quirkiness_points(bench, first)
    if points:
        drawn.append(draw_quirkiness(first, points))

    return drawn


def quirkiness_points(bench: BenchData, detector: str) -> list[tuple[str, float, float]]:
    """Task, quirkiness in nats and AUROC of a detector, where both are known."""
    return [
        (task, float(quirk), value.value)
        for task, quirk in sorted(bench.quirkiness.items())
        if quirk is not None and (value := bench.auroc.get((task, detector))) is not None
    ]


def draw_roc(curves: Mapping[str, tuple[Array, Array]], auroc: Mapping[str, str]) -> Drawing:
    """ROC curves on the test prompts.

    Args:
        curves: for each detector the scores of normal and of anomalous prompts.
        auroc: for each detector the figure to print beside its name.
    """

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=ink("muted"), linewidth=1, linestyle=_CHANCE)
        for i, (normal, anomalous) in enumerate(curves.values()):
            truth = np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
            fpr, tpr, _ = roc_curve(truth, np.r_[normal, anomalous])
            axes.plot(fpr, tpr, color=ink(series_ink(i)), linestyle=series_dash(i))
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        axes.set(xlabel="normal prompts flagged (false positives)")
        axes.set(ylabel="anomalous prompts flagged")

    text = "; ".join(f"{name}: AUROC {auroc[name]}" for name in curves)
    legend = [(f"{name} {auroc[name]}", series_ink(i)) for i, name in enumerate(curves)]

    return Drawing("roc", "ROC curves", f"{text}. The dotted diagonal is chance.", paint, legend)


def draw_layers(rows: Sequence[SiteMetrics], title: str = "AUROC by layer") -> Drawing:
    """AUROC at each site, with its interval where few lines leave room for it."""
    lines = site_series(rows)
    places = _places([r.site for r in rows])
    banded = len(lines) if len(lines) <= 3 else 1

    def paint(axes: Axes) -> None:
        axes.axhline(0.5, color=ink("muted"), linewidth=1, linestyle=_CHANCE)
        for i, line in enumerate(lines):
            _layer_line(axes, line, places, i, band=i < banded)
        low, _ = axes.get_ylim()
        axes.set(ylim=(min(0.45, max(0.0, low)), 1.01), ylabel="AUROC")
        _site_axis(axes, places)

    text = "; ".join(f"{line.label}: {_span(line.rows)}" for line in lines)
    legend = [(line.label, series_ink(i)) for i, line in enumerate(lines)]

    return Drawing("layers", title, f"{text}. The dotted line is chance.", paint, legend)


def draw_histogram(
    name: str, title: str, groups: Mapping[str, Array], threshold: float | None
) -> Drawing:
    """Scores of trusted and test prompts; the outermost bins hold all that lies beyond.

    Args:
        name: slug of the figure.
        title: what it is.
        groups: scores by ink: ``trusted``, ``normal``, ``anomalous``; ``accent`` for unlabelled.
        threshold: the score above which prompts are flagged.
    """
    edges = _edges(list(groups.values()))

    def paint(axes: Axes) -> None:
        for group, values in groups.items():
            heights, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
            share = 100 * heights / max(len(values), 1)
            axes.stairs(share, edges, fill=True, color=ink(group), alpha=0.16, linewidth=0)
            axes.stairs(share, edges, color=ink(group), linewidth=1.5)
        if threshold is not None and edges[0] <= threshold <= edges[-1]:
            axes.axvline(threshold, color=ink("ink"), linewidth=1, linestyle=(0, (4, 2)))
        axes.set(xlabel="score (higher is more anomalous)", xlim=(edges[0], edges[-1]))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0f} %")

    text = [
        f"{_GROUPS[g]}: {len(v)} prompts, median score {significant(float(np.median(v)))}"
        for g, v in groups.items()
        if len(v)
    ]
    if threshold is not None:
        text.append(f"flagged above {significant(threshold)}")
    legend = [(_GROUPS[g], g) for g in groups]

    return Drawing(name, title, "; ".join(text) + ".", paint, legend)


def draw_profile(sites: Sequence[str], groups: Mapping[str, tuple[str, Array]]) -> Drawing:
    """Standardised scores along the model: median and middle half of groups of prompts.

    Args:
        sites: names of the columns.
        groups: by label the ink and ``z [prompt, site]``, each column with a number in it.
    """
    places = _places(sites)
    order = sorted(range(len(sites)), key=lambda i: places[sites[i]])
    names = [sites[i] for i in order]
    x = [places[s] for s in names]
    quarts = {
        label: np.nanquantile(z[:, order], [0.25, 0.5, 0.75], axis=0)
        for label, (_, z) in groups.items()
    }

    def paint(axes: Axes) -> None:
        for label, (colour, _) in groups.items():
            low, middle, high = quarts[label]
            axes.fill_between(x, low, high, color=ink(colour), alpha=0.14, linewidth=0)
            axes.plot(x, middle, color=ink(colour), marker="o" if len(x) < 2 else "")
        axes.set(ylabel="standardised score")
        _site_axis(axes, places)

    text = "; ".join(
        f"{label}: the median is highest at {names[int(np.argmax(q[1]))]}, "
        f"{significant(float(np.max(q[1])))}"
        for label, q in quarts.items()
    )
    legend = [(label, colour) for label, (colour, _) in groups.items()]
    title = "Standardised score by layer"

    return Drawing("profile", title, f"{text}. Bands hold the middle half.", paint, legend)


def draw_quirkiness(detector: str, points: Sequence[tuple[str, float, float]]) -> Drawing:
    """Quirkiness of the organisms against the AUROC of one detector, a dot a task."""
    known = correlation([p[1] for p in points], [p[2] for p in points])

    def paint(axes: Axes) -> None:
        x, y = [p[1] for p in points], [p[2] for p in points]
        axes.axhline(0.5, color=ink("muted"), linewidth=1, linestyle=(0, (2, 3)))
        axes.plot(x, y, "o", color=ink("accent"), markersize=5)
        right = (min(x) + max(x)) / 2
        for task, across, up in points:
            left = across <= right
            axes.annotate(
                task,
                (across, up),
                xytext=(6 if left else -6, 3),
                textcoords="offset points",
                ha="left" if left else "right",
                fontsize=8.5,
                color=ink("muted"),
            )
        axes.margins(0.08)
        axes.set(xlabel="quirkiness (nats)", ylabel="AUROC")

    text = "; ".join(f"{t}: {significant(q)}, {decimal(a)}" for t, q, a in points)
    if known.pearson is not None:
        text += f". Pearson correlation {decimal(known.pearson, 2)} over {known.n} tasks"

    return Drawing("quirkiness", f"Quirkiness and AUROC of {detector}", f"{text}.", paint)


def mean_sites(rows: Sequence[SiteRow], detectors: Sequence[str]) -> list[SiteMetrics]:
    """AUROC of each detector at each site: mean over tasks, and the middle half of them."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.auroc is not None:
            values.setdefault((row.detector, row.site), []).append(row.auroc)
    means = []
    for (detector, site), several in values.items():
        low, high = np.quantile(several, [0.25, 0.75])
        mean = MetricInterval(value=float(np.mean(several)), low=float(low), high=float(high))
        means.append(SiteMetrics(detector=detector, site=site, auroc=mean))

    return sorted(
        (row for row in means if row.detector in detectors),
        key=lambda row: detectors.index(row.detector),
    )


def _histogram(run: RunData, number: int, detector: str) -> list[Drawing]:
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


def _profile(run: RunData) -> list[Drawing]:
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


@dataclass(frozen=True)
class SiteSeries:
    """AUROC of one detector along the sites of one kind."""

    label: str
    rows: Sequence[SiteMetrics]


def site_series(rows: Sequence[SiteMetrics]) -> list[SiteSeries]:
    """Sorts AUROC by site into lines, one for each detector and kind of site."""
    lines: list[SiteSeries] = []
    for name in dict.fromkeys(row.detector for row in rows):
        own = sorted((r for r in rows if r.detector == name), key=lambda r: site_order(r.site))
        kinds = list(dict.fromkeys(kind_of(r.site) for r in own if block_of(r.site) is not None))
        if len(kinds) < 2:
            lines.append(SiteSeries(name, own))
            continue
        loose = [r for r in own if block_of(r.site) is None]
        for kind in kinds:
            part = [r for r in own if kind_of(r.site) == kind and block_of(r.site) is not None]
            lines.append(SiteSeries(f"{name}, {kind}", part))
        if loose:
            lines.append(SiteSeries(f"{name}, other", loose))

    return lines


def _layer_line(
    axes: Axes, line: SiteSeries, places: Mapping[str, float], number: int, *, band: bool
) -> None:
    x = [places[r.site] for r in line.rows]
    missing = float("nan")
    value = [r.auroc.value if r.auroc else missing for r in line.rows]
    colour = ink(series_ink(number))
    if band:
        low = [r.auroc.low if r.auroc and r.auroc.low is not None else missing for r in line.rows]
        high = [
            r.auroc.high if r.auroc and r.auroc.high is not None else missing for r in line.rows
        ]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, value, color=colour, linestyle=series_dash(number), marker="o", markersize=2.6)


def _places(sites: Sequence[str]) -> dict[str, float]:
    """Where each site stands on the axis: blocks at their numbers, the rest around them."""
    known = sorted(set(sites), key=site_order)
    blocks = [b for s in known if (b := block_of(s)) is not None]
    after = max(blocks, default=-1)
    places: dict[str, float] = {}
    for site in known:
        block = block_of(site)
        if block is not None:
            places[site] = block
        elif site == "embed":
            places[site] = min(blocks, default=0) - 1
        else:
            after += 1
            places[site] = after

    return places


def _site_axis(axes: Axes, places: Mapping[str, float]) -> None:
    blocks = sorted({b for s in places if (b := block_of(s)) is not None})
    loose = {p: s for s, p in places.items() if block_of(s) is None}
    step = max(1, -(-len(blocks) // 8))
    shown = [b for b in blocks if (b - blocks[0]) % step == 0]
    # A block's number so near to a name would be written over it.
    shown = [b for b in shown if all(abs(b - p) > len(places) / 14 for p in loose)]
    ticks = {**{float(b): str(b) for b in shown}, **{p: _short(s) for p, s in loose.items()}}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("block" if blocks else "site")
    if len(loose) > 4:
        axes.tick_params(axis="x", labelrotation=60)


def _short(site: str, limit: int = 18) -> str:
    return site if len(site) <= limit else "…" + site[-(limit - 1) :]


def _span(rows: Sequence[SiteMetrics]) -> str:
    known = [(r.auroc.value, r.site) for r in rows if r.auroc]
    if not known:
        return "no figure"
    (best, high), (worst, low) = max(known), min(known)

    return f"highest {decimal(best)} at {high}, lowest {decimal(worst)} at {low}"


def _edges(groups: Sequence[Array]) -> Array:
    """Bins over the bulk of the scores, as fine as the smallest group bears."""
    values = np.concatenate(groups)
    bins = int(np.clip(3 * np.sqrt(min(len(g) for g in groups)), 10, 40))
    low, high = np.quantile(values, [0.002, 0.99])
    if not high > low:
        low, high = values.min() - 0.5, values.max() + 0.5

    return np.linspace(low, high, bins + 1)
