import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offkey.errors import BadInput, Damaged, Mismatch, OffkeyError, Unwritable
from offkey.report import bench_report, write_report

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr", "source", "base", "col"}
SELF_CLOSED = {"path", "line", "circle", "rect", "use", "polyline"}


class Page(HTMLParser):
    """A page as a browser's parser sees it: tags well nested, texts unescaped."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.stack, self.tags, self.attributes, self.ids = [], [], [], []
        self.texts, self.current = [], []
        self.cells, self.prompts = [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.stack.append((tag, dict(attrs).get("class", "")))
        if tag in {"td", "th"}:
            self.cells.append("")
        if tag == "div" and dict(attrs).get("class") == "text":
            self.prompts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.stack, tag
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        open_tags = [t for t, _ in self.stack]
        if "style" not in open_tags:
            self.texts.append(data)
        if {"td", "th"} & set(open_tags):
            self.cells[-1] += data
        if ("div", "text") in self.stack:
            self.prompts[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def page(path):
    return Page(path.read_text(encoding="utf-8"))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(params=["run", "bare", "bench"])
def any_page(request, pages):
    if request.param == "bare":
        return pages("run", mode="transductive", labelled=False, detectors=1)
    return pages(request.param)


def test_page_is_well_formed_and_every_id_is_its_own(any_page):
    found = page(any_page)
    assert found.tags[0] == "html"
    assert len(found.ids) == len(set(found.ids))
    targets = [v[1:] for _, k, v in found.attributes if k == "href"]
    targets += re.findall(r"url\(#([^)]+)\)", any_page.read_text())
    targets += [i for _, k, v in found.attributes if k == "aria-labelledby" for i in v.split()]
    assert targets
    assert set(targets) <= set(found.ids)


def test_page_loads_nothing_and_runs_nothing(any_page):
    found = page(any_page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    for tag, key, value in found.attributes:
        assert not key.startswith("on"), (tag, key)
        assert key not in {"src", "style", "srcset", "xlink:href"}, (tag, key)
        if key == "href":
            assert value.startswith("#")
    policy = next(v for t, k, v in found.attributes if k == "content" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    html = any_page.read_text()
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_policy_allows_exactly_the_style_sheet_of_the_page(any_page):
    import base64
    import hashlib

    html = any_page.read_text()
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in html.replace("&#39;", "'")
    assert html.count("<style") == 1


def test_hostile_texts_stay_texts(pages):
    folder = pages("run").parent
    found = page(folder / "report.html")
    shown = found.prompts
    assert "<script>alert('pwned')</script><img src=x onerror=alert(1)>" in shown
    assert "</div></li></ol></style><style>body{display:none}</style>" in shown
    assert "Line one\nLine two\n\n\tindented after a blank line" in shown
    assert "هل هذا الرقم أكبر؟ 42 > 17 — שלום עולם" in shown
    assert any("{{ 7*7 }} {% raw %}" in text for text in shown)
    assert any("‹U+202E›gnits" in t and "‹U+E0041›" in t and "‹U+0000›" in t for t in shown)
    assert "$\\frac{1}{2}$ & &amp; &#60;b&#62; 日本語 🐈‍⬛" in shown
    longest = max(shown, key=len)
    assert len(longest) < 21_000
    assert "(20,000 more characters)" in longest
    assert "site q.3 is absent in <this> model" in found.text
    assert "– the text is empty" in found.text


def test_numbers_are_those_of_the_tables(pages):
    folder = pages("run").parent
    metrics = json.loads((folder / "metrics.json").read_text())
    found = page(folder / "report.html")
    cells = [" ".join(c.split()) for c in found.cells]
    for row in metrics["detectors"]:
        for name in ("auroc", "agrees", "disagrees"):
            v = row[name]
            assert f"{v['value']:.3f} {v['low']:.3f}–{v['high']:.3f}" in cells
        assert f"{row['average_precision']:.3f}" in cells
    for row in metrics["controls"]:
        v = row["auroc"]
        assert f"{v['value']:.3f} {v['low']:.3f}–{v['high']:.3f}" in cells
    assert "excess over it 0.401 0.380–0.418" in cells
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    first = metrics["detectors"][0]["detector"]
    test = [r for r in table if r["detector"] == first and r["role"] == "test"]
    flagged = sum(bool(r["flagged"]) for r in test)
    assert f"{flagged} of {len(test)} prompts were flagged" in found.text
    top = sorted(test, key=lambda r: -r["score"])[:20]
    ids = re.findall(r'<bdi class="id">([^<]+)</bdi>', (folder / "report.html").read_text())
    assert ids == [r["id"] for r in top]
    scores = re.findall(r"<dt>score</dt><dd>([\d.]+)</dd>", (folder / "report.html").read_text())
    assert [float(s) for s in scores] == pytest.approx([r["score"] for r in top], rel=1e-3)


def test_bars_show_the_site_scores_and_mark_the_worst(pages):
    folder = pages("run").parent
    html = (folder / "report.html").read_text()
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    first = rows[0]["detector"]
    test = [r for r in rows if r["detector"] == first and r["role"] == "test"]
    top = max(test, key=lambda r: r["score"])
    z = {
        r["site"]: r["score"]
        for r in pq.read_table(folder / "site_scores.parquet").to_pylist()
        if (r["id"], r["detector"]) == (top["id"], first)
    }
    bars = re.search(r'<svg class="bars".*?</svg>', html, re.DOTALL)[0]
    rects = re.findall(
        r'y="([\d.]+)" width="6" height="([\d.]+)"( class="worst")?><title>([^:]+): ([^<]+)<', bars
    )
    assert [r[3] for r in rects] == list(z)
    assert [r[3] for r in rects if r[2]] == [top["worst_site"]]
    assert [float(r[4].replace("−", "-")) for r in rects] == pytest.approx(
        list(z.values()), rel=5e-3
    )
    heights = np.array([float(r[1]) for r in rects])
    sizes = np.abs(list(z.values()))
    big = sizes > 0.2
    ratio = heights[big] / sizes[big]
    assert ratio == pytest.approx(np.full(len(ratio), ratio[0]), rel=0.03)


def test_missing_figures_are_dashes_with_their_reason(pages):
    found = page(pages("run"))
    assert "needs 300 normal prompts; there are 84" in found.text
    cells = [" ".join(c.split()) for c in found.cells]
    assert cells.count("–a") == 4
    assert not {"nan", "None", "inf", "0.000"} & set(cells)


def test_unlabelled_run_has_no_auroc_but_a_verdict_and_prompts(pages):
    found = page(pages("run", labelled=False, detectors=2))
    assert "ROC curves" not in found.text
    assert "No AUROC and no ROC: the test prompts carry no labels" in found.text
    assert "prompts were flagged" in found.text
    assert "Standardised score by layer" in found.text
    assert len(found.prompts) >= 15
    assert "test, no labels" in found.text


def test_transductive_run_is_ranked_only(pages):
    found = page(pages("run", mode="transductive", labelled=False, detectors=1))
    assert "120 prompts were ranked and none flagged" in found.text
    assert "no p-values in transductive mode" in found.text
    assert " transductive " in found.text


def test_drift_is_a_warning_only_where_it_warns(pages):
    loud = page(pages("run"))
    quiet = page(pages("run", drift=False, labelled=False, detectors=1))
    assert "The length of the test prompts has drifted" in loud.text
    assert "trusted 10.5, test 23.2" in loud.text
    assert "has drifted" not in quiet.text
    assert "topic of the test prompts has drifted" not in loud.text


def test_the_page_says_how_the_run_was_made(pages):
    found = page(pages("run"))
    for text in (
        *("9f2c41d07be8a3566a1b", "sha256:77aa01", "sha256:5be2f0", "bundled:comparison"),
        *("2.13.0", "2025-01-02 03:04:05 UTC", "2025-01-02 03:05:47 UTC", "1 min 0 s", "robust z"),
    ):
        assert text in found.text


@pytest.mark.parametrize("kept", [True, False])
def test_redacted_page_holds_no_prompt_text(make_run, kept):
    folder = make_run(text=kept, detectors=1)
    html = write_report(folder, redact=True).read_text()
    texts = [r["text"] for r in pq.read_table(make_run("texts") / "scores.parquet").to_pylist()]
    shown = {t for t in texts if t}
    assert len(shown) > 100
    assert not [t for t in shown if t in html or t.split("\n")[0][:18] in html]
    assert "greater than" not in html
    assert "text redacted" in html
    assert "t0004" in html


def test_same_folder_gives_the_same_bytes(make_run, make_bench, pages):
    folder = make_run()
    assert write_report(folder).read_bytes() == pages("run").read_bytes()
    assert bench_report(make_bench()).read_bytes() == pages("bench").read_bytes()
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_page_does_not_change_matplotlib(make_run):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(make_run(detectors=1))
    assert dict(mpl.rcParams) == before


def _drop(name):
    return lambda folder: (folder / name).unlink()


def _cut(name):
    def cut(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def _change(name, **changes):
    return lambda folder: edit_json(folder / name, **changes)


def _nan(folder):
    path = folder / "scores.parquet"
    table = pq.read_table(path)
    scores = table["score"].to_pylist()
    scores[5] = float("nan")
    place = table.column_names.index("score")
    pq.write_table(table.set_column(place, "score", pa.array(scores)), path)


def _column(folder):
    path = folder / "scores.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["p_value"]), path)


def _other_name(folder):
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["detectors"][0]["detector"] = "other"
    path.write_text(json.dumps(metrics))


def _other_count(folder):
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["detectors"][0]["flagged"] += 1
    path.write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("harm", "kind", "says"),
    [
        (_drop("run.json"), BadInput, "no run.json"),
        (_drop("metrics.json"), BadInput, "no metrics.json"),
        (_drop("scores.parquet"), BadInput, "no scores.parquet"),
        (_cut("metrics.json"), Damaged, "metrics.json"),
        (_cut("scores.parquet"), Damaged, "scores.parquet"),
        (_cut("site_scores.parquet"), Damaged, "site_scores.parquet"),
        (_change("run.json", status="cancelled"), BadInput, "'cancelled'"),
        (_change("run.json", format=2), Mismatch, "format 2"),
        (_change("metrics.json", alpha=float("nan")), Damaged, "NaN is not a number"),
        (_change("metrics.json", detectors=[]), Damaged, "detectors"),
        (_change("metrics.json", detectors=[{"detector": "other"}]), Damaged, "auroc: field"),
        (_other_name, Damaged, "'other'"),
        (_nan, Damaged, "'score' holds NaN"),
        (_column, Damaged, "'p_value' is missing"),
        (_other_count, Damaged, "in metrics.json"),
    ],
)
def test_damaged_folder_is_one_line_and_leaves_nothing(make_run, harm, kind, says):
    folder = make_run(detectors=2)
    harm(folder)
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(kind) as error:
        write_report(folder)
    assert isinstance(error.value, OffkeyError)
    assert says in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == before


def test_missing_folder(tmp_path):
    for write in (write_report, bench_report):
        with pytest.raises(BadInput, match="no such folder"):
            write(tmp_path / "nowhere")


def test_page_that_cannot_be_written(make_run):
    folder = make_run(detectors=1)
    (folder / "report.html").mkdir()
    with pytest.raises(Unwritable, match=re.escape("report.html")):
        write_report(folder)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_without_site_scores_the_page_lacks_only_the_bars(make_run):
    folder = make_run(detectors=1)
    (folder / "site_scores.parquet").unlink()
    html = write_report(folder).read_text()
    assert '<svg class="bars"' not in html
    assert "worst site" in html
