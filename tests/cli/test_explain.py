"""offkey explain."""

import json
import shutil

import pytest


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_named_prompts_are_explained_in_json_and_on_the_page(run, offkey):
    ran = offkey("explain", run, "--id", "x3", "--id", "x4", "--background", 20, "--json")

    assert (ran.status, ran.err) == (0, "")
    told = ran.json["prompts"]
    assert [row["id"] for row in told] == ["x3", "x4"]
    for row in told:
        assert sum(site["share"] for site in row["sites"]) == pytest.approx(row["score"])
        assert len(row["heads"]) == 5
        assert row["nearest"][0]["id"].startswith("t")
        assert "trained on" in row["notes"]["latents"]
    page = (run / "report.html").read_text()
    assert 'id="why"' in page
    assert page.count('class="why-card"') == 2
    assert told[0]["nearest"][0]["text"] in page


def test_explanations_of_other_prompts_stay(run, offkey):
    for id in ("x3", "x4", "x3"):
        offkey("explain", run, "--id", id, "--background", 20)
    kept = json.loads((run / "explanations.json").read_text())["prompts"]
    assert [row["id"] for row in kept] == ["x3", "x4"]


def test_the_flagged_are_explained_where_none_is_named(run, offkey):
    ran = offkey("explain", run, "--background", 20, "--json")
    scores = json.loads((run / "metrics.json").read_text())["detectors"][0]
    assert len(ran.json["prompts"]) == min(5, scores["flagged"])
    assert all(row["flagged"] for row in ran.json["prompts"])


def test_a_person_reads_sites_words_heads_and_neighbours(run, offkey):
    ran = offkey("explain", run, "--id", "x3", "--background", 20)
    assert ran.status == 0
    parts = (
        "x3: activations/knn-cosine",
        "sites ",
        "heads ",
        "lens ",
        "nearest ",
        "latents  none: it was trained on",
        f"report: {run / 'report.html'}",
    )
    for part in parts:
        assert part in ran.out, part


def test_redacted_runs_stay_so(home, offkey, tmp_path):
    out = tmp_path / "redacted"
    asked = {name: home / f"{name}.jsonl" for name in ("trusted", "test")}
    files = [part for name, path in asked.items() for part in (f"--{name}", path)]
    offkey("detect", "-m", home / "model", *files, "--out", out, "--redact")
    assert not (out / "prompts").exists()

    refused = offkey("explain", out, "--id", "x3")
    assert refused.status == 2
    assert "it was redacted" in refused.err
    ran = offkey("explain", out, "--id", "x3", "--background", 20, *files)

    assert ran.status == 0
    text = json.loads(asked["test"].read_text().splitlines()[3])["prompt"]
    for said in (
        ran.out,
        (out / "explanations.json").read_text(),
        (out / "report.html").read_text(),
    ):
        assert text not in said
    assert "texts are redacted" in ran.out


def test_a_page_redacted_later_quotes_no_explained_prompt(run, offkey):
    offkey("explain", run, "--id", "x3", "--background", 20)
    text = json.loads((run / "explanations.json").read_text())["prompts"][0]["text"]
    assert text in (run / "report.html").read_text()
    offkey("report", run, "--redact")
    page = (run / "report.html").read_text()
    assert text not in page
    assert 'class="why-card"' in page
