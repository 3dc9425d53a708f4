import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from offkey.detect import MetricInterval, SiteMetrics
from offkey.report import save_figures
from offkey.report._format import site_order
from offkey.report._svg import palette
from offkey.report.figures import draw_histogram, draw_layers, draw_roc, site_series


def _rows(sites, value=0.8):
    auroc = None if value is None else MetricInterval(value=value, low=None, high=None)
    return [SiteMetrics(detector="d", site=site, auroc=auroc) for site in sites]


def test_sites_stand_in_the_order_of_the_model():
    mixed = ["logits", "resid_post.10", "final", "mlp_out.2", "resid_post.2", "embed", "q.2"]
    assert sorted(mixed, key=site_order) == [
        "embed",
        "q.2",
        "mlp_out.2",
        "resid_post.2",
        "resid_post.10",
        "final",
        "logits",
    ]


def test_one_line_for_each_kind_of_site():
    lines = site_series(_rows(["mlp_out.0", "resid_post.0", "mlp_out.1", "final"]))
    assert [(s.label, len(s.rows)) for s in lines] == [
        ("d, mlp_out", 2),
        ("d, resid_post", 1),
        ("d, other", 1),
    ]


def test_svg_follows_the_page():
    rng = np.random.default_rng(0)
    drawn = draw_roc({"a": (rng.normal(size=50), rng.normal(1, 1, 50))}, {"a": "0.760"})
    root = ET.fromstring(drawn.svg())
    assert root.find("title").text == "ROC curves"
    assert "a: AUROC 0.760" in root.find("desc").text
    for element in root.iter():
        assert "style" not in element.attrib
        if element.tag == "text":
            assert float(element.attrib["font-size"]) > 7
        for key in ("fill", "stroke"):
            assert not element.attrib.get(key, "").startswith("#"), element.attrib
    assert "var(--s1)" in drawn.svg()
    assert "prefers-color-scheme: dark" in drawn.file()
    assert "prefers-color-scheme" not in drawn.svg()


def test_roc_goes_through_the_right_points():
    drawn = draw_roc({"a": (np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.5, 4.0]))}, {"a": "x"})
    line = next(
        e.attrib["d"]
        for e in ET.fromstring(drawn.svg()).iter("path")
        if e.attrib.get("stroke") == "var(--s1)"
    )
    points = np.array(re.findall(r"[ML] (\S+) (\S+)", line), float)
    start, end = points[0], points[-1]
    relative = (points - start) / (end - start)
    # By hand: threshold 4 finds one of two; 2.5 the other, behind one normal prompt in four.
    corners = {(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (0.25, 1.0), (1.0, 1.0)}
    assert {(round(x, 3), round(y * 1.0, 3)) for x, y in relative} == corners


def test_missing_sites_are_gaps_not_zeros():
    rows = _rows(["resid_post.0"], 0.9) + _rows(["resid_post.1"], None) + _rows(["resid_post.2"])
    drawn = draw_layers(rows)
    assert "highest 0.900 at resid_post.0, lowest 0.800 at resid_post.2" in drawn.description
    line = next(
        e.attrib["d"]
        for e in ET.fromstring(drawn.svg()).iter("path")
        if e.attrib.get("stroke") == "var(--s1)" and e.attrib.get("fill") == "none"
    )
    assert line.count("M") == 2
    assert "L" not in line


def test_module_paths_and_dollar_signs_are_plain_words():
    drawn = draw_layers(_rows(["module:net.0", "module:net.$x$", "logits"]))
    assert "module:net.$x$" in drawn.svg()


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0], [0.0, 1.0, 1e9]])
def test_histogram_of_odd_scores(values):
    drawn = draw_histogram("s", "t", {"trusted": np.array(values)}, None)
    assert f"trusted: {len(values)} prompts" in drawn.description


def test_saved_figures_are_whole_files_and_stable(make_run, make_bench, tmp_path):
    folder = make_run(detectors=2)
    paths = save_figures(folder, tmp_path / "svg")
    assert list(paths) == ["roc", "layers", "profile", "scores-1", "scores-2"]
    before = {n: p.read_bytes() for n, p in paths.items()}
    for name, path in save_figures(folder, tmp_path / "svg").items():
        assert path.read_bytes() == before[name]
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert list(save_figures(make_bench(), tmp_path / "b")) == ["layers", "quirkiness"]


def _luminance(code):
    channels = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def _contrast(a, b):
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_contrast(mode):
    block = palette().split("@media")[mode]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    pairs = """ink paper, muted paper, muted panel, muted wash, muted alarm-wash, ink warn-wash,
    warn warn-wash, alarm alarm-wash, accent wash, anomalous panel, normal panel, alarm panel"""
    for text, ground in map(str.split, pairs.split(",")):
        assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ["trusted", "normal", "anomalous", *(f"s{i}" for i in range(1, 9))]:
        assert _contrast(colours[line], colours["paper"]) >= 3, line
