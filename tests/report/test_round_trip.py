"""Every field that the page reads is written by the run, and shown."""

import json
import re

import pyarrow.parquet as pq
import pytest

from offkey.bench import compare, default_detector
from offkey.detect import (
    ControlMetrics,
    DetectorMetrics,
    DriftCheck,
    RunMetrics,
    SiteMetrics,
    read_metrics,
)
from offkey.report import write_report
from offkey.report._folders import _SCORE_COLUMNS, _SITE_COLUMNS, RunData
from offkey.storage import RunRecord, read_run
from tests.bench import planted


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of an organism, compared with its clean model."""
    out = tmp_path_factory.mktemp("compared")
    compare(planted.task_models(), [default_detector()], out, quiet=True)
    return out / "organism"


def _written(rows, kind):
    """The keys that every one of some JSON objects has, beside the fields of their record."""
    assert rows
    return set.intersection(*map(set, rows)), set(kind.model_fields)


def test_every_field_of_the_metrics_is_in_the_file(run):
    stored = json.loads((run / "metrics.json").read_text())
    for rows, kind in (
        ([stored], RunMetrics),
        (stored["detectors"], DetectorMetrics),
        (stored["controls"][1:], ControlMetrics),
        (stored["sites"], SiteMetrics),
        (stored["drift"], DriftCheck),
    ):
        written, fields = _written(rows, kind)
        assert fields <= written, kind


def test_every_field_of_the_record_is_in_the_file(run):
    stored = json.loads((run / "run.json").read_text())
    assert set(RunRecord.model_fields) - {"error"} <= set(stored)


def test_every_column_that_the_page_needs_is_written(run):
    assert set(_SCORE_COLUMNS) <= set(pq.read_schema(run / "scores.parquet").names)
    assert set(_SITE_COLUMNS) <= set(pq.read_schema(run / "site_scores.parquet").names)


def test_what_is_read_is_what_was_written(run):
    data = RunData.read(run)
    assert data.metrics == read_metrics(run)
    assert data.record == read_run(run).record


def test_the_page_shows_when_the_run_started_and_finished(run):
    page = write_report(run).read_text()
    page = page[page.index('id="made"') :]
    times = dict(re.findall(r"<dt>(started|finished)</dt><dd>([^<]+)</dd>", page))
    assert set(times) == {"started", "finished"}
    for time in times.values():
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", time)
    stages = re.findall(r"<dt>(read \w+|fit|score)</dt><dd>([^<]+)</dd>", page)
    assert {name for name, _ in stages} >= {"read trusted", "read test", "fit", "score"}
    assert all(re.fullmatch(r"[\d.]+ s", time) for _, time in stages)
