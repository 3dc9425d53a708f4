import io
import json
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from offkey.detect import read_metrics
from offkey.errors import BadInput, BadValue, Damaged
from offkey.report import curve_svg, forest_svg, print_table, read_results, table_markdown


def test_markdown_with_own_intervals():
    rows = [
        {"detector": "a|b", "average": 0.9, "average_low": 0.8, "average_high": 0.95, "tasks": 8},
        {"detector": "<b>", "average": None, "tasks": 1200},
    ]
    assert table_markdown(rows, headings={"average": "AUROC"}) == (
        "| detector | AUROC | tasks |\n"
        "| --- | ---: | ---: |\n"
        "| a\\|b | 0.900 [0.800, 0.950] | 8 |\n"
        "| \\<b\\> | – | 1,200 |\n"
    )


def test_markdown_with_a_bare_interval():
    rows = [{"task": "x", "alpha": 0.05, "rate": 0.041, "low": 0.01, "high": 0.07}]
    assert table_markdown(rows, digits=2).splitlines()[-1] == "| x | 0.05 | 0.04 [0.01, 0.07] |"


def test_markdown_chooses_columns():
    rows = [{"a": 1, "b": True, "c_d": "x\ny"}]
    assert table_markdown(rows, ["c_d", "b"]) == "| c d | b |\n| --- | --- |\n| x y | yes |\n"
    with pytest.raises(BadValue, match="no row has a column 'z'"):
        table_markdown(rows, ["z"])
    with pytest.raises(BadValue, match="no rows"):
        table_markdown([])


def test_results_are_read(tmp_path):
    path = tmp_path / "demo.json"
    path.write_text(json.dumps({"rows": [{"a": 1}]}))
    assert read_results(path) == [{"a": 1}]
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(BadInput, match="no rows"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(Damaged):
        read_results(path)


def test_forest_and_curve_are_stable_files():
    rows = [
        {"name": f"d{d}", "n": n, "auroc": v, "low": v and v - 0.1, "high": v and v + 0.1}
        for d in range(2)
        for n, v in ((25, 0.6), (100, None), (400, 0.9))
    ]
    forest = forest_svg(rows, label="name", value="auroc", title="T & Co", reference=0.5)
    assert forest == forest_svg(rows, label="name", value="auroc", title="T & Co", reference=0.5)
    assert "d0 –" in "".join(ET.fromstring(forest).itertext())
    curve = curve_svg(rows, x="n", y="auroc", series="name", title="t", logarithmic=True)
    words = "".join(ET.fromstring(curve).itertext())
    assert "d1: 0.6 at 25 to 0.9 at 400" in words
    with pytest.raises(BadValue, match="row 0: no column 'x'"):
        curve_svg(rows, x="x", y="auroc", title="t")


def _printed(folder, width=100, **console):
    metrics = read_metrics(folder)
    out = Console(file=io.StringIO(), width=width, highlight=False, **console)
    print_table(metrics, console=out)
    return metrics.as_json(), out.file.getvalue()


def test_console_table_fits_and_holds_the_figures(make_run):
    metrics, text = _printed(make_run())
    assert max(map(len, text.splitlines())) <= 100
    for row in metrics["detectors"]:
        v = row["auroc"]
        line = next(li for li in text.splitlines() if li.startswith(row["detector"]))
        assert f"{v['value']:.3f} {v['low']:.2f}–{v['high']:.2f}" in line
        assert f"{row['agrees']['value']:.3f}" in line
        assert f"{row['flagged']} (6)" in line
        assert "online" in line
    for row in metrics["controls"]:
        line = next(li for li in text.splitlines() if li.startswith(row["control"]))
        assert f"{row['auroc']['value']:.3f}" in line
        assert "control" in line
    assert "excess over clean model: 0.401 0.38–0.42" in text
    assert "1 backward" in " ".join(text.split())
    assert "warning: The length" in text


def test_console_table_without_labels_has_no_auroc_column(make_run):
    _, text = _printed(make_run(labelled=False))
    assert "agrees" not in text
    assert "No AUROC: the test prompts carry no labels" in text


def test_console_table_on_a_narrow_terminal(make_run):
    metrics, text = _printed(make_run(), width=80, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    row = metrics["detectors"][0]
    line = next(li for li in text.splitlines() if li.startswith("activations/mahalanobis "))
    assert f"{row['auroc']['value']:.3f}" in line
    assert "online" in line


def test_console_markup_in_names_is_plain(make_run):
    folder = make_run(detectors=1)
    warnings = ("[red]not markup[/red] \x1b[31m",)
    metrics = read_metrics(folder).model_copy(update={"warnings": warnings})
    out = Console(file=io.StringIO(), width=100)
    print_table(metrics, console=out)
    assert "[red]not markup[/red] ‹U+001B›[31m" in out.file.getvalue()


def test_console_table_of_broken_metrics(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"detectors": []}))
    with pytest.raises(Damaged, match="alpha"):
        print_table(read_metrics(tmp_path))
