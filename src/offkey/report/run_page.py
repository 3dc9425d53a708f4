"""The page of a run: the verdict, its table, its figures and the most anomalous prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offkey.detect import ControlMetrics, DetectorMetrics, DriftCheck, RunMetrics
from offkey.report._explained import explanation_cards, word_rows
from offkey.report._folders import RunData, ScoreRows, SiteScores, is_bench
from offkey.report._format import (
    Notes,
    Strip,
    TableCell,
    count,
    decimal,
    flat,
    p_value,
    plain_text,
    ranges,
    render,
    significant,
    strip_of,
)
from offkey.report.bench_page import bench_report
from offkey.report.figures import run_figures
from offkey.stats import flag_count
from offkey.storage import write_text

__all__ = ["Verdict", "drift_sentence", "flag_range", "verdict", "write_report"]

_LABELLED = ("auroc", "agrees", "disagrees", "average_precision", "tpr_at_1pct_fpr")
_NEGATIVES = 300
_LONGEST = 20_000
_HEIGHT = 44.0


def write_report(folder: str | Path, *, redact: bool = False, most: int = 20) -> Path:
    """Writes ``report.html`` into the folder of a run or bench: one file that needs no network.

    The same folder gives the same bytes.

    Args:
        folder: a run folder with ``run.json``, ``metrics.json``, ``scores.parquet`` and, for what
            drove the score of a prompt, ``site_scores.parquet`` and ``explanations.json``; or a
            bench folder, see :func:`bench_report`.
        redact: keep the texts of prompts out of the page; ids stay.
        most: how many of the most anomalous prompts are shown.

    Returns:
        The path of the page.

    Raises:
        BadInput: no such folder or file, or a run that has not ended.
        Damaged: a file was truncated or edited, or two files disagree.
        Unwritable: the folder cannot be written.
    """
    if is_bench(folder):
        return bench_report(folder)
    run = RunData.read(folder, redact=redact)
    page = run.folder / "report.html"
    write_text(page, render("run.html.jinja", **_context(run, redact, most)))

    return page


def _context(run: RunData, redact: bool, most: int) -> dict[str, Any]:
    """What the template shows."""
    notes = Notes()
    detectors, controls = detector_rows(run, notes), control_rows(run, notes)
    figures = run_figures(run)

    return {
        "subject": _subject(run),
        "record": run.record,
        "metrics": run.metrics,
        "verdict": verdict(run),
        "detectors": detectors,
        "controls": controls,
        "notes": notes.pairs,
        "has_labels": any(row.auroc for row in run.metrics.detectors),
        "figures": {d.name: d for d in figures if not d.name.startswith("scores-")},
        "histograms": [d for d in figures if d.name.startswith("scores-")],
        "prompts": top_prompts(run, most),
        "explained": explanation_cards(run.folder, redact=redact),
        "words": [] if redact else word_rows(run.folder),
        "unscored": unscored(run),
        "redacted": redact or "text" not in run.scores.column_names,
        "settings": flat(run.record.config),
        "versions": flat(run.record.versions),
    }


def _subject(run: RunData) -> str:
    model, adapter = (run.record.config.get(key) for key in ("model", "adapter"))

    return " + ".join(str(part) for part in (model, adapter) if part) or "a run"


@dataclass(frozen=True)
class Verdict:
    """What the page says first.

    Attributes:
        tone: ``more``, ``chance`` or ``fewer`` flags than if nothing were anomalous; ``ranked``
            where the mode gives no p-values.
        label: two or three words.
        sentence: the verdict in plain words.
        details: sentences that put it in context.
        warnings: why it may mislead.
    """

    tone: Literal["more", "chance", "fewer", "ranked"]
    label: str
    sentence: str
    details: tuple[str, ...]
    warnings: tuple[str, ...]


def flag_range(n_calibration: int, n_test: int, alpha: float) -> tuple[int, int]:
    r"""How many prompts are flagged in 95 % of runs if they are like the trusted ones.

    With :math:`k = \lfloor\alpha(n+1)\rfloor` the count is beta-binomial,
    :math:`\mathrm{BB}(m, k, n + 1 - k)`: the calibration prompts are themselves a sample.

    Args:
        n_calibration: :math:`n`, calibration prompts with a score.
        n_test: :math:`m`, test prompts with a p-value.
        alpha: level at which prompts are flagged.

    References:
        Vovk, 2012, "Conditional validity of inductive conformal predictors", Prop. 2a.
    """
    if n_calibration + 1 < 1 / alpha:
        return (0, 0)
    if alpha >= 1:
        return (n_test, n_test)
    expected = flag_count(n_calibration, n_test, alpha)

    return (expected.low, expected.high)


def verdict(run: RunData) -> Verdict:
    """The verdict of the run's first detector."""
    row, metrics = run.metrics.detectors[0], run.metrics
    test = run.rows(row.detector, "test")
    m = int(np.sum(~np.isnan(test.p_value)))
    warnings = (*(drift_sentence(d) for d in metrics.drift if d.warn), *metrics.warnings)
    details = (*_other_detectors(metrics), *_credit(row, metrics), *_normal(test))
    if m == 0:
        sentence = (
            f"{count(len(test.scores_of()))} prompts were ranked and none flagged: "
            f"in {row.mode} mode there are no p-values."
        )
        return Verdict("ranked", "Ranked only", sentence, details, warnings)
    k = int(np.nansum(test.flagged))
    expected = row.expected if row.expected is not None else metrics.alpha * m
    n = len(run.rows(row.detector, "calibration").scores_of())
    low, high = flag_range(n, m, metrics.alpha)
    if_nothing = (
        f"if nothing were anomalous, about {count(expected)} would be "
        f"(95 % range {count(low)}–{count(high)})"
    )
    head = f"{count(k)} of {count(m)} prompts {'was' if k == 1 else 'were'} flagged"
    if k > high:
        return Verdict("more", "More than chance", f"{head}; {if_nothing}.", details, warnings)
    if k < low:
        sentence = f"Only {head}; {if_nothing}."
        return Verdict("fewer", "Fewer than chance", sentence, details, warnings)
    sentence = f"{head}, no more than by chance: {if_nothing}."

    return Verdict("chance", "As by chance", sentence, details, warnings)


def drift_sentence(drift: DriftCheck) -> str:
    """A warning about test prompts that differ from the trusted ones in something plain."""
    medians = ", ".join(
        f"{name} {significant(value)}"
        for name, value in (("trusted", drift.trusted), ("test", drift.test))
        if value is not None
    )
    tests = [f"p {_equals(drift.p_value)}"] if drift.p_value is not None else []
    tests += [f"effect {significant(drift.effect)}"] if drift.effect is not None else []
    figures = "; ".join(part for part in (medians, ", ".join(tests)) if part)

    return (
        f"The {drift.what} of the test prompts has drifted from the trusted set"
        + (f" ({figures})" if figures else "")
        + f": high scores may tell of {drift.what}, not of how the model works."
    )


def _other_detectors(metrics: RunMetrics) -> tuple[str, ...]:
    others = [row.flagged for row in metrics.detectors[1:] if row.flagged is not None]
    if not others:
        return ()
    if len(others) == 1:
        return (f"The other detector flagged {count(others[0])}.",)

    return (
        f"The other {len(others)} detectors flagged between {count(min(others))} and "
        f"{count(max(others))}.",
    )


def _normal(test: ScoreRows) -> tuple[str, ...]:
    flags = test.flagged[(test.label == 0) & ~np.isnan(test.flagged)]
    if not flags.size or np.isnan(test.label).all():
        return ()

    return (
        f"Of the {count(flags.size)} prompts labelled normal {count(int(flags.sum()))} were "
        "flagged; a rate is promised only for prompts like the trusted ones.",
    )


def _credit(row: DetectorMetrics, metrics: RunMetrics) -> tuple[str, ...]:
    if row.auroc is None:
        return ()
    head = f"On the labelled prompts its AUROC is {decimal(row.auroc.value)}"
    if row.auroc.low is not None and row.auroc.high is not None:
        head += f" (95 % interval {decimal(row.auroc.low)}–{decimal(row.auroc.high)})"
    best = metrics.best_control
    if best is None or best.auroc is None:
        return (f"{head}; no control was run beside it.",)
    gap = row.auroc.value - max(0.5, best.auroc.value)
    side = "above" if gap >= 0 else "below"
    against = f"the best control, {best.control}, which has {decimal(best.auroc.value)}"
    if best.auroc.value < 0.5:
        against = f"chance; no control does better ({best.control}: {decimal(best.auroc.value)})"

    return (f"{head}: {decimal(abs(gap))} {side} {against}.",)


def _equals(value: float) -> str:
    text = p_value(value)

    return text if text.startswith("<") else f"= {text}"


@dataclass(frozen=True)
class PageRow:
    """A line of the page's table: a detector or a control."""

    name: str
    about: str
    cells: dict[str, TableCell]
    strip: Strip | None
    row: DetectorMetrics | ControlMetrics


def detector_rows(run: RunData, notes: Notes) -> list[PageRow]:
    """The table's lines for the detectors; reasons for missing figures become notes."""
    labelled = any(row.auroc for row in run.metrics.detectors)
    best = run.metrics.best_control
    control = best.auroc.value if best and best.auroc else None
    start = _start(run)
    lines = []
    for row in run.metrics.detectors:
        test = run.rows(row.detector, "test")
        cells = {
            name: notes.cell(
                getattr(row, name), row.reasons.get(name) or _why_missing(name, row, test)
            )
            for name in (_LABELLED if labelled else ())
        }
        for name in ("flagged", "expected"):
            reason = row.reasons.get(name) or f"no p-values in {row.mode} mode"
            cells[name] = notes.count(getattr(row, name), reason)
        parts = [", ".join(ranges(row.sites)), f"combined by {row.combine}"]
        about = " · ".join(part for part in parts if part)
        strip = strip_of(row.auroc, start, control)
        lines.append(PageRow(row.detector, about, cells, strip, row))

    return lines


def control_rows(run: RunData, notes: Notes) -> list[PageRow]:
    """The table's lines for the controls; reasons for missing figures become notes."""
    kinds = {
        "clean": "same detector, model without the anomaly",
        "input": "sees the prompt only",
        "output": "sees the answer only",
    }
    start = _start(run)
    lines = []
    for row in run.metrics.controls:
        shown = ["auroc"]
        if row.kind == "clean" or row.excess is not None:
            shown.append("excess")
        missing = f"not computed for {row.control}"
        cells = {
            name: notes.cell(getattr(row, name), row.reasons.get(name) or missing)
            for name in shown
        }
        strip = strip_of(row.auroc, start, None)
        lines.append(PageRow(row.control, kinds[row.kind], cells, strip, row))

    return lines


def _start(run: RunData) -> float:
    """Where the line begins on which AUROCs are drawn."""
    intervals = [row.auroc for row in run.metrics.detectors]
    intervals += [row.auroc for row in run.metrics.controls]
    known = [a.value if a.low is None else a.low for a in intervals if a is not None]

    return 0.4 if min(known, default=1.0) >= 0.4 else 0.0


def _why_missing(name: str, row: DetectorMetrics, test: ScoreRows) -> str:
    normal, anomalous = len(test.scores_of(0)), len(test.scores_of(1))
    if normal + anomalous == 0:
        return "the scored test prompts carry no labels"
    if not test.is_labelled:
        return "all labelled test prompts are of one class"
    if name == "tpr_at_1pct_fpr" and normal < _NEGATIVES:
        return f"needs {_NEGATIVES} normal prompts; there are {normal}"
    if name in ("agrees", "disagrees"):
        return f"no prompts of both classes where the answers {name.removesuffix('s')}"

    return f"not computed for {row.detector}"


@dataclass(frozen=True)
class Bar:
    """One site's bar, in the units of a drawing 44 high and 8 wide a site."""

    x: int
    y: float
    height: float
    is_worst: bool
    says: str


@dataclass(frozen=True)
class PromptCard:
    """One prompt as the page shows it."""

    rank: int
    id: str
    text: str | None
    score: float
    p_value: float | None
    flagged: bool | None
    label: int | None
    agrees: bool | None
    length: int | None
    worst_site: str | None
    votes: str
    bars: tuple[Bar, ...]
    zero: float
    three: float | None
    ends: tuple[str, str]


@dataclass(frozen=True)
class Unscored:
    """A number of prompts that a detector gave no score, and why."""

    detector: str
    count: int
    status: str
    reason: str


def top_prompts(run: RunData, number: int = 20) -> list[PromptCard]:
    """The test prompts that the first detector scored highest, highest first."""
    detector = run.metrics.detectors[0].detector
    test = run.rows(detector, "test")
    # A stable sort of ids first: prompts of equal score keep one order.
    ids = test.table["id"].to_pylist()
    order = [i for i in np.lexsort((ids, -test.score)) if not np.isnan(test.score[i])][:number]
    chosen = [ids[i] for i in order]
    sites = run.site_scores(detector, "test", chosen)
    votes = _votes(run, chosen)
    rows = test.table.take(order).to_pylist()

    return [_card(rank, row, sites, votes) for rank, row in enumerate(rows, 1)]


def unscored(run: RunData) -> list[Unscored]:
    """Test prompts without a score, counted by detector and reason."""
    table = run.scores.filter(
        pc.and_(pc.equal(run.scores["role"], "test"), pc.not_equal(run.scores["status"], "ok"))
    )
    counts: dict[tuple[str, str, str], int] = {}
    for row in table.select(["detector", "status", "reason"]).to_pylist():
        key = (row["detector"], row["status"], row["reason"] or "no reason given")
        counts[key] = counts.get(key, 0) + 1

    return [Unscored(d, n, status, reason) for (d, status, reason), n in sorted(counts.items())]


def _card(
    rank: int, row: dict[str, Any], sites: SiteScores, votes: dict[str, tuple[int, int]]
) -> PromptCard:
    z = sites.of_prompt(row["id"])
    bars, zero, three = _bars(z, row["worst_site"])
    text = row.get("text")
    yes, of = votes[row["id"]]

    return PromptCard(
        rank=rank,
        id=row["id"],
        text=None if text is None else plain_text(text, _LONGEST),
        score=row["score"],
        p_value=row["p_value"],
        flagged=row["flagged"],
        label=row["label"],
        agrees=row["agrees"],
        length=row["length"],
        worst_site=row["worst_site"],
        votes=f"flagged by {yes} of {of}" if of > 1 else "",
        bars=bars,
        zero=zero,
        three=three,
        ends=(next(iter(z)), list(z)[-1]) if z else ("", ""),
    )


def _votes(run: RunData, ids: list[str]) -> dict[str, tuple[int, int]]:
    """How many detectors flagged each prompt, of those that have a p-value for it."""
    keep = pc.and_(
        pc.equal(run.scores["role"], "test"),
        pc.is_in(run.scores["id"], value_set=pa.array(ids, pa.string())),
    )
    votes = dict.fromkeys(ids, (0, 0))
    for row in run.scores.filter(keep).select(["id", "flagged"]).to_pylist():
        if row["flagged"] is not None:
            yes, of = votes[row["id"]]
            votes[row["id"]] = (yes + row["flagged"], of + 1)

    return votes


def _bars(z: dict[str, float], worst: str | None) -> tuple[tuple[Bar, ...], float, float | None]:
    """Bars of one prompt, and the heights of the lines at 0 and, where it fits, at 3."""
    if not z:
        return (), _HEIGHT, None
    top, bottom = max(3.0, *z.values()), min(0.0, *z.values())
    unit = _HEIGHT / (top - bottom)
    zero = round(top * unit, 2)
    bars = tuple(
        Bar(
            x=8 * i,
            y=round((top - max(v, 0.0)) * unit, 2),
            height=round(max(abs(v) * unit, 0.5), 2),
            is_worst=site == worst,
            says=f"{site}: {significant(v)}",
        )
        for i, (site, v) in enumerate(z.items())
    )

    return bars, zero, round((top - 3.0) * unit, 2)
