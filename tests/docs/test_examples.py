import runpy
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.conftest import LIMIT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name, **settings):
    return runpy.run_path(str(ROOT / "examples" / name))["main"](**settings)


def test_a_planted_trigger_is_found_in_the_poisoned_network_only(capsys):
    found = run("digits.py")
    assert found["poisoned"] > 0.95
    assert found["clean"] < 0.7
    assert "poisoned" in capsys.readouterr().out


def test_both_triggers_of_images_are_found_in_the_poisoned_network(capsys):
    found = run("images.py")
    for mark in ("corner", "blended"):
        assert found[f"{mark} poisoned"] > found[f"{mark} clean"] + 0.1, mark
    assert found["corner poisoned"] > 0.95
    assert "fires" in capsys.readouterr().out


@pytest.mark.real
def test_the_detector_beats_its_controls(desk):
    found = run("detect.py", limit=LIMIT)
    inside = found.pop("activations/mahalanobis")
    assert inside > 0.95
    assert max(found.values()) < inside - 0.1


@pytest.mark.real
def test_own_feature_and_score_work_together(desk):
    assert run("own_parts.py", limit=LIMIT) > 0.7


def test_every_example_is_short_and_tested():
    tested = Path(__file__).read_text()
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 60, path.name
        assert f'run("{path.name}"' in tested, path.name
