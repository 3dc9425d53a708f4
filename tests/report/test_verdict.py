import numpy as np
import pytest

from offkey.report._folders import RunData
from offkey.report._format import (
    count,
    decimal,
    duration,
    moment,
    p_value,
    plain_text,
    significant,
)
from offkey.report.run_page import flag_range, verdict


@pytest.mark.parametrize(("n", "m", "alpha"), [(99, 120, 0.05), (200, 300, 0.05), (59, 40, 0.1)])
def test_range_against_simulated_splits(n, m, alpha):
    rng = np.random.default_rng(7)
    counts = []
    for _ in range(3000):
        calibration, test = rng.random(n), rng.random(m)
        p = (1 + (calibration[None] >= test[:, None]).sum(1)) / (n + 1)
        counts.append((p <= alpha).sum())
    low, high = flag_range(n, m, alpha)
    inside = np.mean([(low <= c) & (c <= high) for c in counts])
    # Discrete: the range holds at least 95 %, and a range one smaller at each end would not.
    assert inside >= 0.94
    assert np.mean([(low < c) & (c < high) for c in counts]) < 0.96
    assert np.mean(counts) == pytest.approx(alpha * m, rel=0.05)


def test_range_at_the_ends():
    assert flag_range(5, 100, 0.05) == (0, 0)
    assert flag_range(9, 100, 1.0) == (100, 100)


@pytest.mark.parametrize(
    ("settings", "tone"),
    [
        ({}, "more"),
        ({"labelled": False, "anomalous": 0.0}, "chance"),
        ({"mode": "transductive"}, "ranked"),
    ],
)
def test_tone(make_run, settings, tone):
    assert verdict(RunData.read(make_run(**settings))).tone == tone


def test_verdict_credits_what_is_above_the_best_control(make_run):
    run = RunData.read(make_run())
    gap = run.metrics.detectors[0].auroc.value - 0.655
    details = " ".join(verdict(run).details)
    assert f"{gap:.3f} above the best control, max probability, which has 0.655" in details


def test_numbers_in_words():
    assert decimal(None) == count(None) == p_value(None) == duration(None) == "–"
    assert moment("2025-01-02T03:04:05.678+00:00") == "2025-01-02 03:04:05 UTC"
    assert moment("yesterday") == "yesterday"
    assert decimal(-0.0412) == "−0.041"
    assert (count(12345), count(30.0), count(30.25)) == ("12,345", "30", "30.2")
    assert (p_value(0.00001), p_value(0.0123)) == ("< 0.0001", "0.012")
    assert (significant(1234567.0), significant(0.000123456)) == ("1,234,567", "0.000123")
    assert [duration(s) for s in (0.84, 41, 200, 7500)] == [
        "0.8 s",
        "41 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_the_unseen_is_shown():
    assert plain_text("a\u200bb\u2028c\x1b[2Jd") == "a‹U+200B›b‹U+2028›c‹U+001B›[2Jd"
    assert plain_text("a\r\nb\tc") == "a\nb\tc"
    assert plain_text("x" * 12, 10) == "x" * 10 + " … (2 more characters)"
