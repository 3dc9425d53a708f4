"""The table of organisms that hide: means over seeds, and what stands where there is one."""

import pytest

from benchmarks import hidden
from offkey.bench import SiteRow, TaskRow


def row(task, value, detector="lof"):
    return TaskRow(
        task=task,
        detector=detector,
        kind="internal",
        published=False,
        mode="online",
        forwards=1,
        backwards=0,
        seconds=1.0,
        memory_mib=0.1,
        auroc=value,
        agrees=None,
        disagrees=None,
        low=value and value - 0.1,
        high=value and value + 0.1,
        clean=0.5,
        excess=0.2,
        excess_low=None,
        excess_high=None,
        average_precision=None,
        tpr_at_1pct_fpr=None,
        flagged_normal=0.1,
        flagged_anomalous=0.2,
        test_prompts=10,
        reason="",
    )


def test_seeds_are_averaged_and_one_organism_keeps_its_own_interval():
    table = hidden.table(
        [
            row("year", 0.9),
            row("obfuscated", 0.5),
            row("obfuscated-1", 0.6),
            row("obfuscated-2", 0.7),
            row("obfuscated-attribution", None),
            row("obfuscated", 0.8, "knn"),
        ]
    )
    assert [r["detector"] for r in table] == ["knn", "lof"]
    _, lof = table
    assert (lof["year"], lof["year_low"], lof["year_high"]) == pytest.approx((0.9, 0.8, 1.0))
    assert lof["obfuscated"] == pytest.approx(0.6)
    half = 4.302653 * 0.1 / 3**0.5
    assert lof["obfuscated_low"] == pytest.approx(0.6 - half)
    assert lof["obfuscated_high"] == pytest.approx(0.6 + half)
    assert lof["attribution"] is lof["everywhere"] is None
    assert lof["clean"] == 0.5


def test_layers_are_those_of_one_detector():
    sites = [
        SiteRow("year", "activations LOF", "resid_post.3", 1.0),
        SiteRow("obfuscated", "activations LOF", "resid_post.3", 0.5),
        SiteRow("obfuscated-1", "activations LOF", "resid_post.3", 0.7),
        SiteRow("year", "other", "resid_post.3", 0.2),
        SiteRow("year", "activations LOF", "resid_post.4", None),
    ]
    assert hidden.layers(sites) == [
        {"organism": "year", "layer": 3, "auroc": 1.0, "organisms": 1},
        {"organism": "obfuscated", "layer": 3, "auroc": pytest.approx(0.6), "organisms": 2},
    ]
