"""Explanations on the page of a run."""

import json

import pytest

from offkey.errors import Damaged, Mismatch
from offkey.report import write_report
from tests.report.conftest import HOSTILE

TOKEN = {"token": "</td>\u202e<b>", "probability": 0.75}


def explanation(text):
    shares = [2.0, -1.0, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    return {
        "id": "t0001",
        "text": text,
        "detector": "activations/mahalanobis",
        "combine": "mean",
        "score": 3.0,
        "p_value": 0.02,
        "flagged": True,
        "sites": [
            {"site": f"resid_post.{n}", "standardised": 8.0 * share, "share": share}
            for n, share in enumerate(shares)
        ],
        "heads": [{"site": "z.3", "head": 2, "effect": -1.5, "usual": 0.1, "standardised": None}],
        "latents": [
            {
                "site": "resid_post.1",
                "latent": 9,
                "activation": 4.0,
                "trusted": 0.01,
                "promotes": [" <i>"],
            }
        ],
        "read_outs": [{"site": "resid_post.1", "tokens": [TOKEN], "beside": [[TOKEN], [TOKEN]]}],
        "nearest": [{"id": "<u>", "text": text, "distance": 1.5}],
        "swaps": [
            {"words": text[:40], "instead": ["", "b"], "score": 0.5, "share": 2.5},
            {"words": "c", "instead": ["d"], "score": 9.0, "share": -6.0},
        ],
        "notes": {"sites": "<why>"},
    }


WORD = {"word": "<w>", "prompts": 5, "flagged": 4, "score": 2.5, "others": 0.25, "p_value": 0.004}


def put(folder, **changes):
    content = {"format": 1, "prompts": [explanation(HOSTILE[0])], "words": [WORD], **changes}
    (folder / "explanations.json").write_text(json.dumps(content))
    return folder


def test_texts_and_tokens_stay_texts(make_run):
    page = write_report(put(make_run())).read_text()
    part = page[page.index('id="why"') : page.index('id="made"')]

    for tag in ("<script", "<img", "<i>", "<b>", "<u>", "<why>", "<w>"):
        assert tag not in part, tag
    assert "&lt;/td&gt;‹U+202E›&lt;b&gt;" in part
    assert "␣&lt;i&gt;" in part
    assert "75 %" in part


def test_figures_are_those_of_the_file(make_run):
    page = write_report(put(make_run())).read_text()
    part = page[page.index('id="why"') : page.index('id="made"')]

    assert part.count("<rect") == 6
    assert part.count('class="lowers"') == 1
    assert "the other 2 sites add 0.125" in part
    assert "z.3 head 2" in part
    assert "on 1 %" in part
    # A swap that raises the score explains nothing.
    assert "“c”" not in part
    assert "→ nothing / “b”" in part


def test_redacted_pages_quote_nothing(make_run):
    page = write_report(put(make_run()), redact=True).read_text()
    assert "pwned" not in page
    assert "&lt;w&gt;" not in page
    assert "texts are redacted" in page


def test_a_page_without_explanations_has_no_such_part(make_run):
    page = write_report(make_run()).read_text()
    assert 'id="why"' not in page
    assert 'href="#why"' not in page


def test_a_file_that_was_edited_or_is_later_is_refused(make_run):
    with pytest.raises(Damaged, match=r"explanations\.json: prompts"):
        write_report(put(make_run("a"), prompts=[{"id": "x"}]))
    with pytest.raises(Mismatch, match="later than this version"):
        write_report(put(make_run("b"), format=2))
