import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from offkey.errors import Damaged
from offkey.report import bench_report
from offkey.report._folders import BenchData
from offkey.report.figures import mean_sites
from offkey.storage import write_table


def _text(path):
    return " ".join(re.sub(r"<[^>]+>", " ", path.read_text()).split())


def test_figures_are_those_of_the_table(pages):
    folder = pages("bench").parent
    html = (folder / "report.html").read_text()
    for row in pq.read_table(folder / "table.parquet").to_pylist():
        assert f">{row['auroc']:.3f}<" in html
        assert f"{row['low']:.3f}–{row['high']:.3f}" in html
        if row["column"] == "average":
            assert f">{row['excess']:.3f}<".replace("-", "−") in html
    for row in pq.read_table(folder / "tasks.parquet").to_pylist():
        if row["auroc"] is not None:
            assert f">{row['auroc']:.3f}<" in html
    assert "over 9 tasks" in html


def test_detectors_and_tasks_are_in_order(make_bench):
    bench = BenchData.read(make_bench())
    averages = [bench.table[name, "average"].auroc for name in bench.detectors]
    assert averages == sorted(averages, reverse=True)
    quirkiness = [bench.quirkiness[task] for task in bench.tasks]
    assert quirkiness == sorted(quirkiness, reverse=True)


def test_detectors_that_tie_are_all_named(make_bench):
    folder = make_bench()
    best = BenchData.read(folder).detectors[:2]
    table = pq.read_table(folder / "table.parquet").to_pylist()
    for row in table:
        row["auroc"] = 0.99 if row["detector"] in best else row["auroc"]
    write_table(folder / "table.parquet", table)
    bench_report(folder)
    text = _text(folder / "report.html")

    assert "2 detectors tie for the best: AUROC 0.990 on average over 9 tasks" in text
    assert ", ".join(sorted(best)) in text


def test_what_was_not_measured_is_a_dash(pages):
    text = _text(pages("bench"))
    assert "– a" in text
    assert "a – not measured" in text


def test_layers_are_means_over_tasks(make_bench):
    bench = BenchData.read(make_bench())
    rows = {(r.detector, r.site): r.auroc for r in mean_sites(bench.sites, bench.detectors)}
    name = bench.detectors[0]
    own = [r.auroc for r in bench.sites if (r.detector, r.site) == (name, "resid_post.4")]
    assert len(own) == 9
    assert rows[name, "resid_post.4"].value == pytest.approx(np.mean(own))
    assert rows[name, "resid_post.4"].low <= rows[name, "resid_post.4"].value


def test_few_tasks_still_make_a_page(make_bench):
    text = _text(bench_report(make_bench(tasks=2)))
    assert "– needs 4 tasks; there are 2" in text


def test_two_rows_for_one_thing_are_refused(make_bench):
    folder = make_bench()
    rows = pq.read_table(folder / "tasks.parquet").to_pylist()
    rows.append({**rows[0], "auroc": 0.123})
    write_table(folder / "tasks.parquet", rows)
    with pytest.raises(Damaged, match="two rows for comparison"):
        bench_report(folder)
