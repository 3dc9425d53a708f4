"""Curves and their comparison from the command line."""

import json

import numpy as np
import pytest

from offkey.sensitivity import Curve
from tests.cli.conftest import rows, write_rows


@pytest.fixture
def asked(home, tmp_path):
    return write_rows(tmp_path / "asked.jsonl", rows(6, name="s"))


def test_activations(home, asked, tmp_path, offkey):
    common = ["-m", home / "model", "--prompts", asked, "--site", "resid_post.0"]
    ran = offkey(
        "sensitivity", *common, "--norm", 2, "--draws", 2, "--out", tmp_path / "c", "--json"
    )
    curve = Curve.load(tmp_path / "c")

    assert ran.status == 0
    assert ran.json["kl"] == pytest.approx(curve.mean("kl").tolist())
    assert curve.norms.shape == (21, 2)
    assert "curve:" in offkey("sensitivity", *common, "--norm", 2, "--out", tmp_path / "c").out


def test_the_norm_of_a_contrast(home, tmp_path, offkey):
    sides = [
        write_rows(tmp_path / f"{name}.jsonl", rows(4, name=name, source=str))
        for name in ("clean", "critical")
    ]
    ran = offkey(
        "sensitivity",
        "-m",
        home / "model",
        "--prompts",
        sides[0],
        "--preset",
        "poser",
        "--site",
        "resid_post.1",
        "--clean",
        sides[0],
        "--critical",
        sides[1],
        "--out",
        tmp_path / "c",
    )

    assert ran.status == 0
    about = Curve.load(tmp_path / "c").about
    assert (about["shape"], about["draws"]) == ("uniform01", 1)
    assert about["norm"] > 0


def test_weights_and_comparison(home, asked, tmp_path, offkey):
    names = {"a": 1, "b": 1, "c": 0, "d": 0}
    for place, name in enumerate(names):
        model = home / ("model" if place < 2 else "other")
        ran = offkey(
            "sensitivity",
            "-m",
            model,
            "--prompts",
            asked,
            "--params",
            "*",
            "--radii",
            "0.5,1",
            "--draws",
            1,
            "--out",
            tmp_path / name,
        )
        assert ran.status == 0
    (tmp_path / "labels.json").write_text(json.dumps(names))
    folders = [tmp_path / name for name in names]
    common = ["sensitivity", "compare", *folders, "--labels", tmp_path / "labels.json"]
    told = offkey(*common, "--json").json
    height = {name: Curve.load(tmp_path / name).mean("kl").mean() for name in names}

    assert told["auroc"] == float(height["a"] > height["c"])
    assert told["pairs"] == 4
    assert told["smallest_detectable"] == 1.0
    assert told["scores"] == pytest.approx({n: float(np.mean(height[n])) for n in names})
    drawn = offkey(*common, "--out", tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "sensitivity-compared.svg",
        "sensitivity-roc.svg",
    }
    assert "sensitivity-roc.svg" in drawn.out


def test_prompts_of_unlike_choices_and_some_without_a_target(home, tmp_path, offkey):
    """Each metric is the mean over the prompts that have it, and the others are counted."""
    two = rows(3, name="a", choices=[" Yes", " No"], target=lambda i: i % 2)
    three = rows(3, name="b", choices=[" True", " False", " user"], target=lambda i: i)
    asked = write_rows(tmp_path / "asked.jsonl", [*two, *three, *rows(3, name="c")])
    common = ["-m", home / "model", "--prompts", asked]
    for noise in (["--site", "resid_post.0", "--norm", 5], ["--params", "*", "--radii", 0.1]):
        ran = offkey(
            "sensitivity", *common, *noise, "--draws", 1, "--out", tmp_path / "c", "--json"
        )
        values = Curve.load(tmp_path / "c").values["right"]
        known = [not name.startswith("c") for name in Curve.load(tmp_path / "c").ids]

        assert ran.status == 0, ran.err
        assert ran.json["missing"] == {"right": 3}
        assert np.isnan(values).all((0, 1)).tolist() == [not has for has in known]
        assert ran.json["right"] == pytest.approx(values[:, :, known].mean((1, 2)).tolist())
        said = offkey("sensitivity", *common, *noise, "--draws", 1, "--out", tmp_path / "c").out
        assert "right: without 3 of 9 prompts" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--norm", "0"], "not positive"),
        ([], "needs a length"),
        (["--norm", "1", "--preset", "posr"], "unknown preset 'posr'"),
        (["--norm", "1", "--site", "resid_post.99"], "resid_post.99"),
        (["--radii", "1"], "--params"),
        (["--params", "*", "--radii", "one"], "are not numbers"),
        (["--params", "nosuch*", "--radii", "1"], "nosuch"),
        (["--params", "*"], "radii or target_kl"),
    ],
)
def test_bad_settings_are_one_line(words, said, home, asked, tmp_path, offkey):
    settings = ["--site", "resid_post.0"] if "--site" not in words else []
    ran = offkey(
        "sensitivity",
        "-m",
        home / "model",
        "--prompts",
        asked,
        *settings,
        *words,
        "--out",
        tmp_path / "c",
    )

    assert ran.status == 2
    assert said in ran.err
    assert not (tmp_path / "c").exists()


def test_two_curves_of_one_name_are_refused(tmp_path, offkey):
    ran = offkey(
        "sensitivity", "compare", tmp_path / "x" / "a", tmp_path / "y" / "a", "--labels", tmp_path
    )

    assert ran.status == 2
    assert "two folders are named 'a'" in ran.err


def test_labels_that_cannot_be(tmp_path, offkey):
    (tmp_path / "labels.json").write_text('{"a": 2}')
    ran = offkey("sensitivity", "compare", tmp_path / "a", "--labels", tmp_path / "labels.json")

    assert ran.status == 2
