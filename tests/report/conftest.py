"""Run and bench folders with known numbers, written by the records and tables of their rooms."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from offkey.bench import QuirkinessRow, SiteRow, TableRow, TaskRow
from offkey.detect import (
    METRICS_FILE,
    ControlMetrics,
    DetectorMetrics,
    DriftCheck,
    MetricInterval,
    RunMetrics,
    SiteMetrics,
)
from offkey.report import bench_report, write_report
from offkey.storage import RunRecord, write_json, write_table

SITES = ["embed", *(f"resid_post.{i}" for i in range(12)), "final"]
DETECTORS = {
    "activations/mahalanobis": (3.0, "1 forward"),
    "activations/lof": (2.2, "1 forward"),
    "attribution/mahalanobis": (1.5, "1 forward + 1 backward"),
    "max_probability": (0.2, "1 forward"),
}
HOSTILE = {
    0: "<script>alert('pwned')</script><img src=x onerror=alert(1)>",
    1: "</div></li></ol></style><style>body{display:none}</style>",
    2: "javascript:alert(1) \" ' onmouseover=x {{ 7*7 }} {% raw %} https://evil.example/x.js",
    3: "Line one\nLine two\n\n\tindented after a blank line",
    4: "هل هذا الرقم أكبر؟ 42 > 17 — שלום עולם",
    5: "looks harmless\u202egnitsaf\u202c and \u200bhidden \U000e0041\U000e0042 tags\x07\x00",
    6: "very long " * 4000,
    7: "W" * 900,
    8: "$\\frac{1}{2}$ & &amp; &#60;b&#62; 日本語 🐈‍⬛",
    9: "",
}


def _z(rng, sites, anomalous, strength):
    shape = np.exp(-((np.arange(len(sites)) - 8) ** 2) / 8.0)
    noise = rng.normal(size=(len(anomalous), len(sites)))

    first = 1 + 3 * (np.arange(len(anomalous)) < 10)

    return noise + np.outer(anomalous * first, shape) * strength * rng.gamma(
        6, 1 / 6, (len(anomalous), 1)
    )


def _estimate(value):
    return MetricInterval(value=value, low=max(0.0, value - 0.021), high=min(1.0, value + 0.017))


def _detector(rng, name, n_cal, truth, labelled, mode):
    """Rows, site rows and metrics of one detector."""
    strength, cost = DETECTORS[name]
    z_cal, z_test = (_z(rng, SITES, t, strength) for t in (np.zeros(n_cal), truth))
    cal, test = z_cal.max(1), z_test.max(1)
    p = (1 + (cal[None] >= test[:, None]).sum(1)) / (n_cal + 1)
    with_p = mode != "transductive"
    rows, site_rows = [], []
    for role, score, z in (("calibration", cal, z_cal), ("test", test, z_test)):
        for i, s in enumerate(score):
            is_test = role == "test"
            label = int(truth[i]) if is_test and labelled else None
            text = HOSTILE.get(i, f"Is {i * 7} greater than {i * 5}? Answer yes or no.")
            rows.append(
                {
                    "id": f"{role[0]}{i:04d}",
                    "detector": name,
                    "role": role,
                    "score": float(s),
                    "p_value": float(p[i]) if is_test and with_p else None,
                    "flagged": bool(p[i] <= 0.05) if is_test and with_p else None,
                    "worst_site": SITES[int(z[i].argmax())],
                    "status": "ok",
                    "reason": None,
                    "label": label,
                    "agrees": bool(i % 2) if label is not None else None,
                    "text": text if is_test else None,
                    "length": 9 + i % 5,
                }
            )
            site_rows += [
                {
                    "id": f"{role[0]}{i:04d}",
                    "detector": name,
                    "role": role,
                    "site": site,
                    "score": float(v),
                }
                for site, v in zip(SITES, z[i], strict=True)
            ]
    return rows, site_rows, (test, z_test, p, cost)


def _metrics(name, truth, labelled, mode, n_cal, measured):
    test, z, p, cost = measured
    m = len(test)
    has_p_values = mode != "transductive"
    row = DetectorMetrics(
        detector=name,
        feature=name.split("/")[0],
        score=name.split("/")[-1],
        sites=("resid_post.later",),
        left_out={},
        combine="max",
        mode=mode,
        cost=cost,
        n_trusted=600,
        n_calibration=n_cal,
        n_test=m,
        dropped=0,
        auroc=None,
        agrees=None,
        disagrees=None,
        average_precision=None,
        tpr_at_1pct_fpr=None,
        reasons={},
        flagged=int((p <= 0.05).sum()) if has_p_values else None,
        expected=0.05 * m if has_p_values else None,
        expected_low=None,
        expected_high=None,
    )
    sites = [SiteMetrics(detector=name, site=s, auroc=None) for s in SITES]
    if labelled:
        odd = np.arange(m) % 2 == 1
        known = {
            "auroc": _estimate(roc_auc_score(truth, test)),
            "agrees": _estimate(roc_auc_score(truth[odd], test[odd])),
            "disagrees": _estimate(roc_auc_score(truth[~odd], test[~odd])),
            "average_precision": average_precision_score(truth, test),
        }
        row = row.model_copy(update=known)
        aurocs = [_estimate(roc_auc_score(truth, z[:, i])) for i in range(len(SITES))]
        aurocs[3] = None
        sites = [
            SiteMetrics(detector=name, site=s, auroc=a) for s, a in zip(SITES, aurocs, strict=True)
        ]
    return row, sites


CONTROLS = (
    ControlMetrics(
        control="clean model", kind="clean", auroc=_estimate(0.562), excess=_estimate(0.401)
    ),
    *(
        ControlMetrics(control=name, kind=kind, auroc=_estimate(value), excess=None)
        for name, kind, value in (
            ("bag of words", "input", 0.613),
            ("embed", "input", 0.548),
            ("max probability", "output", 0.655),
        )
    ),
)


def _drift(warn):
    length = {"p_value": 0.0004, "effect": 0.41, "trusted": 10.5, "test": 23.25, "warn": warn}
    topic = {"p_value": 0.62, "effect": 0.02, "trusted": None, "test": None, "warn": False}
    return DriftCheck(what="length", **length), DriftCheck(what="topic", **topic)


def build_run(
    folder: Path,
    *,
    labelled: bool = True,
    mode: str = "online",
    text: bool = True,
    drift: bool = True,
    anomalous: float = 0.3,
    n_test: int = 120,
    n_cal: int = 99,
    detectors: int = 4,
    unscored: int = 2,
) -> Path:
    """Writes a run folder whose first, anomalous prompts hold hostile texts."""
    rng = np.random.default_rng(0)
    truth = (np.arange(n_test) < anomalous * n_test).astype(float)
    rows, site_rows, metrics, sites = [], [], [], []
    for name in list(DETECTORS)[:detectors]:
        own, own_sites, measured = _detector(rng, name, n_cal, truth, labelled, mode)
        row, per_site = _metrics(name, truth, labelled, mode, n_cal, measured)
        rows, site_rows = rows + own, site_rows + own_sites
        metrics.append(row)
        sites += per_site
    for i in range(unscored):
        empty = {"score": None, "p_value": None, "flagged": None, "worst_site": None}
        why = {"status": "not_applicable", "reason": "site q.3 is absent in <this> model"}
        rows.append({**rows[-1], **empty, **why, "id": f"u{i}", "label": None, "agrees": None})
    if not text:
        rows = [{**r, "text": None} for r in rows]
    run = RunMetrics(
        alpha=0.05,
        mode=mode,
        detectors=tuple(metrics),
        controls=CONTROLS if labelled else (),
        sites=tuple(sites) if labelled else (),
        drift=_drift(drift),
        warnings=(),
        seconds={"load": 1.2, "fit": 41.0, "score": 59.7},
    )
    write_run(folder, rows, site_rows, run)

    return folder


SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("detector", pa.string()),
        ("role", pa.string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("flagged", pa.bool_()),
        ("worst_site", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("label", pa.int8()),
        ("agrees", pa.bool_()),
        ("text", pa.string()),
        ("length", pa.int32()),
    ]
)
CONFIG = {
    "model": "smollm2-135m-instruct",
    "adapter": "bundled:comparison",
    "fingerprint": "9f2c41d07be8a3566a1b",
    "alpha": 0.05,
    "seed": 0,
    "trusted": {"n": 800, "digest": "sha256:77aa01", "path": "trusted.jsonl"},
    "test": {"n": 122, "digest": "sha256:5be2f0", "path": "new.jsonl"},
    "detectors": list(DETECTORS),
    "standardise": "robust z",
}
RECORD = {
    "format": 1,
    "status": "success",
    "config": CONFIG,
    "seed": 0,
    "versions": {"offkey": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "machine": {"cores": 2},
    "created": "2025-01-02T03:04:05+00:00",
    "attempts": [
        {
            "started": "2025-01-02T03:04:05+00:00",
            "finished": "2025-01-02T03:05:47+00:00",
            "status": "success",
        }
    ],
}


def write_record(folder):
    """Writes ``run.json`` of a run that ended well, with fixed times."""
    write_json(folder / "run.json", RunRecord.model_validate(RECORD).model_dump(mode="json"))


def write_run(folder, rows, site_rows, metrics):
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder)
    write_json(folder / METRICS_FILE, metrics.as_json())
    write_table(folder / "scores.parquet", pa.Table.from_pylist(rows, SCORES))
    write_table(folder / "site_scores.parquet", site_rows)


def task_row(task, detector, auroc, low, high):
    """A row of ``tasks.parquet`` that has no other figures."""
    none = dict.fromkeys(field.name for field in fields(TaskRow))
    return replace(
        TaskRow(**none), task=task, detector=detector, auroc=auroc, low=low, high=high, reason=""
    )


def build_bench(folder: Path, *, tasks: int = 9) -> Path:
    """Writes a bench folder of four detectors; one task has no figure for one of them."""
    rng = np.random.default_rng(1)
    names = [
        *("comparison", "parity", "addition", "capitals", "hemisphere"),
        *("sentiment", "agreement", "date_order", "membership"),
    ][:tasks]
    quirk = rng.uniform(0.5, 6, len(names))
    rows = {TaskRow: [], SiteRow: [], TableRow: []}
    for d, (name, (strength, cost)) in enumerate(DETECTORS.items()):
        values = np.clip(
            0.5 + 0.05 * strength * quirk / 3 + rng.normal(0, 0.06, len(names)), 0.35, 1
        )
        for t, task in enumerate(names):
            missing = d == 3 and t == 1
            rows[TaskRow].append(task_row(task, name, *_bounds(None if missing else values[t])))
            for i, site in enumerate(SITES):
                auroc = np.clip(0.5 + (values[t] - 0.5) * np.sin(np.pi * i / 14), 0, 1)
                rows[SiteRow].append(SiteRow(task, name, site, float(auroc)))
        for column, shift in (("average", 0.0), ("agrees", -0.04), ("disagrees", 0.03)):
            mean = float(values.mean() + shift)
            none = dict.fromkeys(("clean_low", "clean_high", "excess_low", "excess_high"))
            auroc, low, high = _bounds(mean)
            rows[TableRow].append(
                TableRow(
                    detector=name,
                    column=column,
                    auroc=auroc,
                    low=low,
                    high=high,
                    n_tasks=len(names),
                    clean=0.52,
                    excess=mean - 0.52,
                    **none,
                    mode="online",
                    cost=cost,
                    reason="",
                )
            )
    rows[QuirkinessRow] = [QuirkinessRow(t, float(q)) for t, q in zip(names, quirk, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder)
    for kind, made in rows.items():
        write_table(folder / kind.FILE, [row.flat() for row in made])

    return folder


def _bounds(value):
    if value is None:
        return None, None, None
    return float(value), float(value) - 0.03, min(1.0, float(value) + 0.03)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Callable[..., Path]:
    """Builds a folder of some settings once; tests copy it."""
    done: dict[tuple, Path] = {}

    def build(how, **settings):
        key = (how.__name__, *sorted(settings.items()))
        if key not in done:
            done[key] = how(tmp_path_factory.mktemp(how.__name__) / "folder", **settings)
        return done[key]

    return build


@pytest.fixture(scope="session")
def pages(built, tmp_path_factory) -> Callable[..., Path]:
    """Writes a page of some settings once, for tests that only read it."""
    done: dict[tuple, Path] = {}

    def write(kind, **settings):
        key = (kind, *sorted(settings.items()))
        if key not in done:
            build, report = {
                "run": (build_run, write_report),
                "bench": (build_bench, bench_report),
            }[kind]
            folder = tmp_path_factory.mktemp("pages") / "folder"
            done[key] = report(shutil.copytree(built(build, **settings), folder))
        return done[key]

    return write


@pytest.fixture
def make_run(built, tmp_path) -> Callable[..., Path]:
    """Puts a run folder under the test's own folder."""
    return lambda name="run", **settings: Path(
        shutil.copytree(built(build_run, **settings), tmp_path / name)
    )


@pytest.fixture
def make_bench(built, tmp_path) -> Callable[..., Path]:
    """Puts a bench folder under the test's own folder."""
    return lambda name="bench", **settings: Path(
        shutil.copytree(built(build_bench, **settings), tmp_path / name)
    )
