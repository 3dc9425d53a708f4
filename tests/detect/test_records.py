"""Records of a run folder: written once, read once, and no field that nobody writes."""

import json
import types
import typing
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from offkey import detect, explain
from offkey.data import Prompts
from offkey.detect import DetectionRun, Detector, RunMetrics, read_metrics
from offkey.detect.evaluation import drift_checks
from offkey.errors import BadInput, Damaged, Mismatch
from offkey.explain import Explanations, read_explanations
from offkey.stats import auroc
from offkey.storage import Record, read_record

from . import planted

OPTIONAL = {
    "DetectorMetrics": {"clean", "excess", "flagged_normal"},
    "ControlMetrics": {"reasons"},
}
"""What only a run with a clean model has."""

RECORDS = sorted(
    {
        value
        for room in (detect, explain)
        for value in (getattr(room, name) for name in room.__all__)
        if isinstance(value, type) and issubclass(value, Record)
    },
    key=lambda record: record.__name__,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    detectors = [
        Detector("activations", "mahalanobis", sites="module:first, module:route"),
        Detector("activations", "que", sites="module:first, module:route"),
    ]
    run = DetectionRun(
        planted.model(),
        detectors,
        planted.prompts(200, seed=1),
        planted.prompts(60, seed=2, anomalous=0.5),
        pool=planted.prompts(50, seed=3, anomalous=0.5, name="q"),
        quiet=True,
    )
    return folder, run.run(folder)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_must_be_given_or_is_known_to_be_optional(record):
    optional = {name for name, field in record.model_fields.items() if not field.is_required()}
    assert optional == OPTIONAL.get(record.__name__, set())


METRICS = [
    RunMetrics,
    detect.DetectorMetrics,
    detect.ControlMetrics,
    detect.SiteMetrics,
    detect.DriftCheck,
    detect.MetricInterval,
]


@pytest.mark.parametrize("record", METRICS, ids=lambda record: record.__name__)
def test_the_documented_run_folder_names_every_field(record):
    page = Path(__file__).parents[2] / "docs" / "reference" / "run-folder.md"
    part = page.read_text().split("## metrics.json")[1].split("\n## ")[0]
    assert [name for name in record.model_fields if f"`{name}`" not in part] == []


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_is_described(record):
    described = "\n".join(base.__doc__ or "" for base in record.__mro__ if base is not BaseModel)
    if "Attributes:" in (record.__doc__ or ""):
        assert [name for name in record.model_fields if f"{name}:" not in described] == []


def test_the_file_holds_every_field_and_reads_back_as_it_was_given(run):
    folder, metrics = run

    assert read_metrics(folder) == metrics
    assert missing_fields(RunMetrics, json.loads((folder / "metrics.json").read_text())) == set()
    stages = {"prepare", "read trusted", "read pool", "read test", "fit", "score"}
    assert set(metrics.seconds) == stages | {"score calibration"}


def test_metrics_are_those_of_the_scores(run):
    folder, metrics = run
    test = planted.prompts(60, seed=2, anomalous=0.5)
    for row in metrics.detectors:
        detector = Detector.load(folder / "detector" / row.detector.replace("/", "-"))
        scores = detector.score(planted.model(), test)
        expected = auroc(scores.score, np.array(test["label"]))
        assert (row.auroc.value, row.auroc.low) == (expected.value, expected.low)
        assert (row.mode, row.n_test) == (scores.mode, 60)
        assert row.flagged == scores.flagged.sum()
    assert [row.mode for row in metrics.detectors] == ["online", "offline"]


def missing_fields(record, value):
    """Fields of a record, or of one within it, that a JSON object lacks."""
    missing = set()
    for name, field in record.model_fields.items():
        if name not in value:
            missing |= {f"{record.__name__}.{name}"} if field.is_required() else set()
            continue
        for inner in records_in(field.annotation):
            parts = value[name] if isinstance(value[name], list) else [value[name]]
            for part in parts:
                missing |= set() if part is None else missing_fields(inner, part)
    return missing


def records_in(annotation):
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Record) else []
    return [found for part in typing.get_args(annotation) for found in records_in(part)]


def test_a_field_that_is_named_and_not_written_is_noticed(run):
    class Later(RunMetrics):
        hour: int

    folder, metrics = run
    value = json.loads((folder / "metrics.json").read_text())
    assert missing_fields(Later, value) == {"Later.hour"}
    with pytest.raises(ValidationError):
        Later(**dict(metrics))
    with pytest.raises(Damaged, match="hour: field required"):
        read_record(Later, folder / "metrics.json")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (None, BadInput, "no metrics.json in this folder"),
        ("{", Damaged, "truncated or edited"),
        ('{"alpha": NaN}', Damaged, "NaN is not a number"),
        ('{"alpha": 0.05}', Damaged, "mode: field required"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, text, error, words):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(error, match=words):
        read_metrics(tmp_path)


def test_fields_of_a_later_version_are_passed_over(run, tmp_path):
    value = {**json.loads((run[0] / "metrics.json").read_text()), "later": 1}
    (tmp_path / "metrics.json").write_text(json.dumps(value))
    assert read_metrics(tmp_path) == run[1]


def test_explanations_of_a_later_format_are_refused(tmp_path):
    assert read_explanations(tmp_path) is None
    (tmp_path / "explanations.json").write_text('{"format": 2, "prompts": [], "words": []}')
    with pytest.raises(Mismatch, match="format 2 is later"):
        read_explanations(tmp_path)
    (tmp_path / "explanations.json").write_text('{"format": 1, "prompts": [], "words": []}')
    assert read_explanations(tmp_path) == Explanations.make((), ())


def test_records_cannot_be_changed(run):
    with pytest.raises(ValidationError, match="frozen"):
        run[1].alpha = 0.5


def test_drift_of_texts_is_recorded():
    old = Prompts({"id": ["a", "b", "c"] * 1, "prompt": ["one two", "two one", "one one"]})
    checks = drift_checks(old["prompt"], ["ten " * 30] * 3, [2, 2, 2], [30, 30, 30], seed=0)
    assert [check.what for check in checks] == ["length", "topic"]
    assert (checks[0].trusted, checks[0].test, checks[1].trusted) == (2.0, 30.0, None)
    assert drift_checks([None], [None], [None], [None], seed=0) == []
