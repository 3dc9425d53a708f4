"""The table of organisms that hide: means over seeds, and what stands where there is one."""

import pytest

from benchmarks import hidden


def row(task, value, detector="lof"):
    return {"task": task, "detector": detector, "auroc": value, "low": value and value - 0.1,
            "high": value and value + 0.1, "kind": "internal", "mode": "online",
            "published": False, "forwards": 1, "backwards": 0, "seconds": 1.0, "memory_mib": 0.1,
            "agrees": None, "disagrees": None, "clean": 0.5, "excess": 0.2,
            "tpr_at_1pct_fpr": None, "flagged_normal": 0.1, "flagged_anomalous": 0.2,
            "reason": ""}  # fmt: skip


def test_seeds_are_averaged_and_one_organism_keeps_its_own_interval():
    told = hidden.table(
        [row("year", 0.9), row("obfuscated", 0.5), row("obfuscated-1", 0.6),
         row("obfuscated-2", 0.7), row("obfuscated-attribution", None),
         row("obfuscated", 0.8, "knn")]
    )  # fmt: skip
    assert [r["detector"] for r in told] == ["knn", "lof"]
    _, lof = told
    assert (lof["year"], lof["year_low"], lof["year_high"]) == pytest.approx((0.9, 0.8, 1.0))
    assert lof["obfuscated"] == pytest.approx(0.6)
    half = 4.302653 * 0.1 / 3**0.5
    assert lof["obfuscated_low"] == pytest.approx(0.6 - half)
    assert lof["obfuscated_high"] == pytest.approx(0.6 + half)
    assert lof["attribution"] is lof["everywhere"] is None
    assert lof["clean"] == 0.5


def test_layers_are_those_of_one_detector():
    sites = [{"task": task, "detector": detector, "site": f"resid_post.{block}", "auroc": value}
             for task, detector, block, value in (
                 ("year", "activations LOF", 3, 1.0), ("obfuscated", "activations LOF", 3, 0.5),
                 ("obfuscated-1", "activations LOF", 3, 0.7), ("year", "other", 3, 0.2),
                 ("year", "activations LOF", 4, None))]  # fmt: skip
    assert hidden.layers(sites) == [
        {"organism": "year", "layer": 3, "auroc": 1.0, "organisms": 1},
        {"organism": "obfuscated", "layer": 3, "auroc": pytest.approx(0.6), "organisms": 2},
    ]
