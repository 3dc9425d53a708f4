"""Figures of a population: what they say, and that the ROC is that of the saved curves."""

import numpy as np
import pytest

from offkey.errors import Damaged
from offkey.report import save_sensitivity_figures
from offkey.sensitivity import Curve


def curve(height, perturbed="activations"):
    strengths = np.array([0.0, 1.0, 2.0])
    norms = np.repeat(strengths[:, None], 2, axis=1)
    values = {"kl": np.broadcast_to(height * strengths[:, None, None], (3, 2, 4)).copy()}
    return Curve(
        strengths, norms, norms / 10, values, ("a", "b", "c", "d"), {"perturbed": perturbed}
    )


@pytest.fixture
def folders(tmp_path):
    found = {}
    for name, height in {"m1": 4.0, "m2": 1.0, "a1": 2.0, "a2": 0.5}.items():
        curve(height).save(tmp_path / name)
        found[name] = tmp_path / name
    return found


SIDES = {"m1": True, "m2": True, "a1": False, "a2": False}


def test_a_figure_for_each_perturbation_and_the_roc(folders, tmp_path):
    paths = save_sensitivity_figures({"one": folders, "two": folders}, SIDES, tmp_path / "out")

    assert set(paths) == {"sensitivity-one", "sensitivity-two", "sensitivity-roc"}
    said = paths["sensitivity-one"].read_text()
    assert "2 misaligned: median KL 5" in said
    assert "2 aligned: median KL 2.5" in said
    assert "mathdefault" not in said
    assert ">0.001<" in said
    roc = paths["sensitivity-roc"].read_text()
    assert "one: AUROC 0.750; two: AUROC 0.750" in roc
    assert "aligned models accused" in roc


def test_same_curves_give_the_same_bytes(folders, tmp_path):
    first, second = (
        save_sensitivity_figures({"one": folders}, SIDES, tmp_path / name) for name in "xy"
    )

    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes()


def test_a_damaged_curve_is_named(folders, tmp_path):
    (tmp_path / "m1" / "artefact.json").write_text("{")
    with pytest.raises(Damaged, match="m1"):
        save_sensitivity_figures({"one": folders}, SIDES, tmp_path / "out")
    assert not (tmp_path / "out").exists()
