"""offkey volume: the table, the folder, a stopped run, and what cannot be."""

import json

import pytest

from offkey.data import pack, read_prompts
from offkey.models import load
from offkey.volume import GaussianMeasure, KLCost, estimate_volume
from tests.cli.conftest import rows, write_rows


@pytest.fixture(scope="module")
def asked(home, tmp_path_factory):
    few = write_rows(tmp_path_factory.mktemp("volume") / "few.jsonl", rows(3, name="v"))
    return ["volume", "-m", home / "model", "--prompts", few, "-n", 4, "--params", "*.1.mlp.*"]


@pytest.mark.filterwarnings("ignore::offkey.volume.LowESS")
def test_it_prints_what_the_function_gives(offkey, asked, home, tmp_path):
    ran = offkey(*asked, "--sigma", 0.3, "--eps", 0.1, "--eps", 0.01, "--out", tmp_path, "--json")
    model = load(home / "model", dtype="float32")
    batches = pack(read_prompts(asked[4]), model.tokenizer, token_budget=512)
    direct = estimate_volume(
        KLCost(model, batches), 0.01, GaussianMeasure(0.3), params="*.1.mlp.*", n=4
    )

    assert ran.status == 0, ran.err
    assert [row["eps"] for row in ran.json["rows"]] == [0.1, 0.01]
    assert ran.json["rows"][1]["log_volume_nats"] == pytest.approx(direct.log_prob, rel=1e-6)
    assert ran.json["rows"][0]["log_volume_nats"] > direct.log_prob
    assert ran.json["parameters"] == direct.meta["dimensions"]
    stored = json.loads((tmp_path / "eps-0.01" / "volume.json").read_text())
    assert stored["log_volume_nats"] == ran.json["rows"][1]["log_volume_nats"]
    for name in ("radii", "volume"):
        figure = (tmp_path / f"{name}.svg").read_text()
        assert figure.startswith("<svg")
        assert "mathdefault" not in figure
        assert "<title" in figure
    again = offkey(
        *asked, "--sigma", 0.3, "--eps", 0.1, "--eps", 0.01, "--out", tmp_path, "--json"
    )
    assert again.json["rows"] == ran.json["rows"]


def test_a_table_for_people_says_what_is_a_bound(offkey, asked, tmp_path):
    ran = offkey(*asked, "--sigma", 0.3, "--proposal", "tilted", "--out", tmp_path)

    assert ran.status == 0, ran.err
    assert "log probability in nats, 4,608 weights, 4 rays" in ran.out
    assert "≥ a bound: fewer than ten rays" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines() if "figures" not in line)
    assert "…" not in ran.out
    assert (tmp_path / "radii.svg").exists()
    assert not (tmp_path / "volume.svg").exists()
    other = offkey(*asked, "--sigma", 0.4, "--out", tmp_path)
    assert other.status == 2
    assert "sigma" in other.err or "proposal" in other.err


def test_a_check_runs_nothing(offkey, asked, tmp_path):
    ran = offkey(*asked, "--sigma", 0.3, "--check", "--json", "--out", tmp_path / "new")

    assert ran.json["dimensions"] == 4608
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((), "Gaussian measure: sigma is None"),
        (("--sigma", 0), "sigma is 0.0"),
        (("--sigma", 1, "--eps", 0), "eps: 0.0 is not a positive number"),
        (("--sigma", 1, "--eps", 0.1, "--eps", 0.1), "not different cutoffs"),
        (("--sigma", 1, "-n", 0), "n: 0 rays"),
        (("--sigma", 1, "--tokens", "first"), "tokens: 'first' is not allowed"),
        (("--sigma", 1, "--proposal", "best"), "proposal: 'best' is not allowed"),
        (("--sigma", 1, "--params", "layers.9.*"), "no parameter matches 'layers.9.*'"),
    ],
)
def test_what_cannot_be_is_one_line(offkey, asked, tmp_path, wrong, message):
    ran = offkey(*asked, *wrong, "--out", tmp_path / "none")

    assert ran.status == 2
    assert ran.out == ""
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "none" / "eps-0.01").exists()
