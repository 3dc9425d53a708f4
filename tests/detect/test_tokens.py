"""Responses token by token: each token as if the text ended there."""

import numpy as np
import pytest

from offkey.data import Prompts, encode
from offkey.detect import Detector, score_tokens
from offkey.errors import BadInput, BadValue, Mismatch
from offkey.models import Model
from tests.cli.conftest import rows
from tests.data.conftest import _trained
from tests.models import tiny

RESPONSES = (" the answer is Yes", " No", None, " the user is True No True False Yes", " False")


@pytest.fixture(scope="module")
def model():
    tokenizer = _trained(bos=False)
    return Model(tiny.llama(vocab_size=len(tokenizer)), tokenizer=tokenizer, name="tiny")


def _prompts(made):
    return Prompts({name: [row[name] for row in made] for name in made[0]})


@pytest.fixture(scope="module")
def detector(model):
    return Detector(sites="resid_post.*").fit(model, _prompts(rows(120, name="t")))


@pytest.fixture(scope="module")
def answered():
    made = rows(len(RESPONSES), name="r", response=lambda i: RESPONSES[i])
    return _prompts(made)


def test_each_token_scores_as_a_prompt_that_ends_there(model, detector, answered):
    tokens = score_tokens(detector, model, answered).to_pylist()

    for row, whole in zip(answered, encode(answered, model.tokenizer), strict=True):
        mine = [r for r in tokens if r["id"] == row["id"]]
        if row["response"] is None:
            assert not mine
            continue
        start = len(whole) - len(mine)
        assert [r["position"] for r in mine] == list(range(len(mine)))
        words = model.tokenizer.convert_ids_to_tokens(whole.tokens)
        assert [r["token"] for r in mine] == words[start:]
        for place, found in enumerate(mine):
            text = "".join(words[: start + place + 1]).replace("Ġ", " ")
            cut = Prompts({"id": ["cut"], "prompt": [text]})
            assert encode(cut, model.tokenizer)[0].tokens == whole.tokens[: start + place + 1]
            [expected] = detector.score(model, cut)
            assert found["score"] == pytest.approx(expected["score"], rel=1e-4)
            assert found["p_value"] == pytest.approx(expected["p_value"], abs=0.05)
            assert found["worst_site"] == expected["worst_site"]


def test_the_last_token_scores_as_the_whole_text(model, detector, answered):
    """The published use: prompt and response as one text that ends with the response."""
    tokens = score_tokens(detector, model, answered).to_pylist()
    kept = [row for row in answered if row["response"] is not None]
    joined = Prompts(
        {
            "id": [row["id"] for row in kept],
            "prompt": [row["prompt"] + row["response"] for row in kept],
        }
    )
    last = {row["id"]: row["score"] for row in tokens}

    expected = {row["id"]: row["score"] for row in detector.score(model, joined)}

    assert list(last) == list(expected)
    assert np.allclose(list(last.values()), list(expected.values()), rtol=1e-4)


def test_one_token_a_response_gives_one_row_a_prompt(model, detector, answered):
    nothing = answered.with_columns(response=[" No"] * len(answered))
    table = score_tokens(detector, model, nothing)

    assert table.num_rows == len(answered)
    assert table.column_names == [
        "id",
        "position",
        "token",
        "score",
        "p_value",
        "flagged",
        "worst_site",
    ]


def test_what_cannot_be_scored_by_token_is_refused(model, detector, answered):
    with pytest.raises(BadInput, match="no column 'response'"):
        score_tokens(detector, model, answered.without("response"))
    entropy = Detector("entropy").fit(model, _prompts(rows(120, name="t")))
    with pytest.raises(BadValue, match="detector entropy/mahalanobis: only detectors of"):
        score_tokens(entropy, model, answered)
    other = Model(tiny.llama(seed=5, vocab_size=297), tokenizer=model.tokenizer, name="other")
    with pytest.raises(Mismatch, match="fitted on the model"):
        score_tokens(detector, other, answered)
