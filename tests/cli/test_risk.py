"""The verb that asks how likely a rare next token is."""

import json

import pytest

from tests.cli.conftest import WORDS


@pytest.fixture
def free(home, tmp_path):
    """Two free positions of words that are single tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    single = [w for w in (f" {word}" for word in WORDS) if len(tokenizer.encode(w)) == 1]
    assert len(single) >= 3
    path = tmp_path / "free.json"
    row = {single[0]: 0.7, single[1]: 0.2, single[2]: 0.1}
    path.write_text(json.dumps([row, row]))

    return path, single


def arguments(home, free, out, *more, target=None):
    path, single = free
    return (
        "risk",
        "-m",
        home / "model",
        "--prompt",
        "user: the answer",
        "--free",
        path,
        "--target",
        target or single[0],
        "--out",
        out,
        *more,
    )


def test_every_method_is_reported_with_its_resolution(offkey, home, free, tmp_path):
    ran = offkey(*arguments(home, free, tmp_path / "risk", "--json"))

    assert ran.status == 0, ran.err
    written = json.loads((tmp_path / "risk" / "risk.json").read_text())
    assert ran.json["rows"] == written["rows"]
    assert [row["method"] for row in written["rows"]][:3] == ["naive", "itgis", "mhis"]
    assert written["inputs"] == 9
    for row in written["rows"]:
        assert row["estimate"] != 0
        assert (row["estimate"] is None) <= (row["status"] != "ok")
        assert (row["status"] == "ok") == (row["reason"] == "")


def test_python_and_the_command_line_agree(offkey, home, free, tmp_path):
    """The same report, number for number, from one call."""
    from offkey.estimate.risk import (
        RISK_METHODS,
        RiskQuestion,
        RiskReport,
        RiskSettings,
        estimate_risk,
    )
    from offkey.models import load
    from offkey.storage import read_record

    path, single = free
    ran = offkey(*arguments(home, free, tmp_path / "risk", "--seed", "3", "--json"))
    question = RiskQuestion("user: the answer", json.loads(path.read_text()), single[0])
    model = load(str(home / "model"), dtype="float32")
    report = estimate_risk(model, question, RiskSettings(seed=3))

    assert ran.status == 0, ran.err
    assert read_record(RiskReport, tmp_path / "risk" / "risk.json") == report
    assert [row.method for row in report.rows] == list(RISK_METHODS)
    assert ran.json == {"out": str(tmp_path / "risk"), **report.model_dump(mode="json")}


def test_a_report_holds_what_each_method_answers_alone(home, free):
    """Rows against the methods themselves, on the same draws."""
    from offkey.estimate.risk import (
        Draws,
        LanguageNetwork,
        RiskQuestion,
        RiskSettings,
        TokenInputs,
        estimate_risk,
        gld,
        monte_carlo,
        qld,
    )
    from offkey.models import load

    path, single = free
    model = load(str(home / "model"), dtype="float32")
    positions = json.loads(path.read_text())
    question = RiskQuestion("user: the answer", positions, single[0])
    methods = ("naive", "qld", "gld")
    report = estimate_risk(model, question, RiskSettings(methods, samples=64, seed=5))
    tokens = [{model.tokenizer.encode(t)[0]: p for t, p in row.items()} for row in positions]
    inputs = TokenInputs.of(tokens)
    network = LanguageNetwork(model, model.tokenizer("user: the answer")["input_ids"])
    draws = Draws.of(network, inputs, 64, seed=5)
    alone = [f(draws, report.target_token) for f in (monte_carlo, qld, gld)]

    assert [row.estimate for row in report.rows] == [estimate.value for estimate in alone]
    assert [row.status for row in report.rows] == [estimate.status for estimate in alone]
    assert report.inputs == 9


def test_help_names_every_method(offkey):
    from offkey.estimate.risk import RISK_METHODS

    ran = offkey("risk", "--help")

    assert [name for name in RISK_METHODS if name not in ran.out] == []


def test_a_table_for_a_person(offkey, home, free, tmp_path):
    ran = offkey(*arguments(home, free, tmp_path / "risk", "--method", "naive"))

    assert ran.status == 0, ran.err
    assert "comes next, over 9 inputs" in ran.out
    assert "naive" in ran.out
    assert "risk.json" in ran.out


def test_check_runs_nothing(offkey, home, free, tmp_path):
    ran = offkey(*arguments(home, free, tmp_path / "risk", "--check"))

    assert ran.status == 0
    assert "everything is in order" in ran.out
    assert not (tmp_path / "risk").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{" Yes": 0.5}]', "position 0: probabilities sum to 0.5, not 1"),
        ('{" Yes": 1}', "not a list of objects"),
        ("[", "cannot be read"),
        ('[{" Yes the answer": 1}]', "is not one token of the vocabulary"),
    ],
)
def test_free_positions_that_cannot_be_used(offkey, home, free, tmp_path, content, message):
    free[0].write_text(content)
    ran = offkey(*arguments(home, free, tmp_path / "risk"))

    assert ran.status == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "risk").exists()


def test_a_target_or_method_that_is_none(offkey, home, free, tmp_path):
    ran = offkey(*arguments(home, free, tmp_path / "risk", target=" the answer Yes No"))
    assert (ran.status, "target: ' the answer Yes No' is not one token" in ran.err) == (2, True)

    ran = offkey(*arguments(home, free, tmp_path / "risk", "--method", "qdl"))
    assert (ran.status, "Did you mean qld" in ran.err) == (2, True)

    ran = offkey(*arguments(home, free, tmp_path / "risk", "--samples", "10"))
    assert (ran.status, "too few for mhis" in ran.err) == (2, True)
