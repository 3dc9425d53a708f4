"""Detectors whose score sees all sites at once."""

import numpy as np
import pytest
import torch
from torch import nn

from offkey.data import TensorPrompts
from offkey.detect import Detector, Session
from offkey.errors import NotEnoughData
from offkey.models import Model
from offkey.stats import auroc

WIDTH = 5
SITES = "module:block0, module:block1, module:block2, module:block3"
NAMES = ["lcf", "mahalanobis-concatenated", "ted", "trajectory"]


class Swapping(nn.Module):
    """Blocks that pass a state on; past 2, input 0 makes the last two turn it round.

    Trusted states are as likely as those turned round, so that no block by itself is odd.
    """

    def __init__(self) -> None:
        super().__init__()
        for n in range(4):
            setattr(self, f"block{n}", nn.Identity())
        self.dead = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = x[:, :1] > 2
        x = x[:, 1:]
        for n in range(4):
            x = getattr(self, f"block{n}")(torch.where(turned & (n > 1), -x, x) + 0.1 * n)
        return self.dead(torch.zeros_like(x)) + x


def prompts(count: int, *, seed: int, anomalous: float = 0.0) -> TensorPrompts:
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < anomalous).astype(int)
    x = np.concatenate([3.0 * label[:, None], rng.normal(size=(count, WIDTH))], axis=1)
    return TensorPrompts(
        {"x": torch.tensor(x, dtype=torch.float32)},
        {"id": [f"{seed}-{i}" for i in range(count)], "label": label.tolist()},
    )


@pytest.fixture(scope="module")
def model():
    return Model(Swapping(), name="swapping")


@pytest.fixture(scope="module")
def trusted():
    return prompts(400, seed=1)


@pytest.fixture(scope="module")
def test_prompts():
    return prompts(200, seed=2, anomalous=0.5)


def test_fits_scores_and_comes_back_from_disk(model, trusted, test_prompts, tmp_path):
    detectors = [Detector("activations", name, sites=SITES) for name in NAMES]
    session = Session(model)
    session.fit(detectors, trusted)
    for detector, scores in zip(detectors, session.score(detectors, test_prompts), strict=True):
        assert scores.sites == ("all sites",)
        assert np.isfinite(scores.score).all()
        detector.save(tmp_path / detector.name)
        again = Detector.load(tmp_path / detector.name).score(model, test_prompts)
        np.testing.assert_array_equal(again.score, scores.score)
        np.testing.assert_array_equal(again.p_value, scores.p_value)


def test_a_turn_halfway_is_seen_though_no_site_is_odd(model, trusted, test_prompts):
    labels = test_prompts["label"]

    def found(score: str) -> float:
        detector = Detector("activations", score, sites=SITES).fit(model, trusted)
        return float(auroc(detector.score(model, test_prompts).score, labels).value)

    assert found("mahalanobis") < 0.65
    assert found("ted") > 0.95
    assert found("mahalanobis-concatenated") > 0.95


def test_a_site_that_never_varies_is_left_out(model, trusted):
    detector = Detector("activations", "ted", sites=f"{SITES}, module:dead")
    detector.fit(model, trusted)
    assert "module:dead" in detector.fitted.left_out
    assert len(detector.fitted.sites) == 4
    with pytest.raises(NotEnoughData, match="1 sites that vary"):
        Detector("activations", "ted", sites="module:block0, module:dead").fit(model, trusted)
