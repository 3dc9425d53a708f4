import json

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from offkey.data import TensorPrompts, split_by_source
from offkey.detect import Detector, Session, TrustedSplit, fit_rows
from offkey.errors import BadValue, Damaged, Mismatch, NotEnoughData, UnknownName
from offkey.scores.mahalanobis import Mahalanobis

from . import planted

SITES = "module:first, module:route"


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.fixture(scope="module")
def trusted():
    return planted.prompts(400, seed=1)


@pytest.fixture(scope="module")
def test_prompts():
    return planted.prompts(300, seed=2, anomalous=0.5)


def hidden(model, prompts, site):
    net, x = model.module, prompts.arrays["x"]
    first = net.first(x)
    if site == "module:first":
        return first.numpy()
    return torch.cat([first, 8.0 * (x[:, :1] > 2.0)], dim=1).numpy()


def test_scores_equal_the_definition_written_out(model, trusted, test_prompts):
    detector = Detector("activations", "mahalanobis", sites="module:first").fit(model, trusted)
    scores = detector.score(model, test_prompts)

    fit, standardise, calibrate = split_by_source(trusted, (0.6, 0.2, 0.2), 0)
    gaussian = LedoitWolf().fit(hidden(model, fit, "module:first").astype(np.float64))

    def distance(part):
        return gaussian.mahalanobis(hidden(model, part, "module:first").astype(np.float64))

    centre = np.median(distance(standardise))
    spread = 1.4826 * np.median(np.abs(distance(standardise) - centre))
    expected = (distance(test_prompts) - centre) / spread
    kept = (distance(calibrate) - centre) / spread
    p_values = [(1 + (kept >= s).sum()) / (1 + len(kept)) for s in expected]

    np.testing.assert_allclose(scores.score, expected, rtol=1e-5, atol=1e-5)  # float32 model
    np.testing.assert_allclose(scores.p_value, p_values)
    assert (scores.flagged == (np.array(p_values) <= 0.05)).all()


def test_finds_the_hidden_route_and_says_where(model, trusted, test_prompts):
    # the switch never moves on trusted prompts, so that full covariance sees it as a new direction
    noisy = [planted.prompts(400, seed=1), planted.prompts(8, seed=9, anomalous=1.0)]
    detector = Detector("activations", "mahalanobis", sites=SITES)
    detector.fit(model, TensorPrompts.concat(noisy))
    scores = detector.score(model, test_prompts)
    labels = np.array(test_prompts["label"])

    assert scores.score[labels == 1].min() > np.median(scores.score[labels == 0])
    worst = np.array(scores.worst_site)[labels == 1]
    assert (worst == "module:route").mean() > 0.9


def test_a_site_without_variation_is_left_out(model, trusted, test_prompts):
    constant = TensorPrompts(
        {"x": torch.ones_like(trusted.arrays["x"])}, {"id": list(trusted.ids)}
    )
    with pytest.raises(NotEnoughData, match="none of its 1 sites varies"):
        Detector(sites="module:first").fit(model, constant)


class Flat(Mahalanobis):
    """Finds every row alike."""

    name = "flat"

    def _score(self, x):
        return torch.zeros(len(x), dtype=torch.float64)


def test_a_detector_that_finds_all_alike_does_not_stop_the_others(model, trusted, tmp_path):
    detectors = [Detector("activations", score, sites=SITES) for score in (Flat(), "lof")]
    rows = Session(model, tmp_path).record_features(detectors, trusted, "trusted")
    split = TrustedSplit.of(trusted, None, 0)
    with pytest.raises(NotEnoughData, match="same for every trusted prompt"):
        fit_rows(detectors, rows, model, split)
    fit_rows(detectors, rows, model, split, tolerant=True)

    assert "same for every trusted prompt" in detectors[0].fitted.reason
    assert not detectors[1].fitted.reason
    assert len(detectors[1].fitted.calibration) == len(split.calibrate)


def test_many_in_one_pass_equal_each_alone(model, trusted, test_prompts):
    names = ["mahalanobis", "lof", "knn-cosine", "mahalanobis-diagonal"]
    together = [Detector("activations", name, sites=SITES) for name in names]
    session = Session(model)
    session.fit(together, trusted)
    for detector, scores in zip(together, session.score(together, test_prompts), strict=True):
        alone = Detector("activations", detector.score_template.name, sites=SITES)
        np.testing.assert_array_equal(
            scores.score, alone.fit(model, trusted).score(model, test_prompts).score
        )


@pytest.mark.parametrize("score", ["mahalanobis", "lof", "isolation-forest", "que"])
def test_saved_and_loaded_scores_are_the_same(model, trusted, test_prompts, tmp_path, score):
    pool = planted.prompts(100, seed=5, anomalous=0.5)
    detector = Detector("activations", score, sites=SITES, combine="top-1").fit(
        model, trusted, pool=pool
    )
    detector.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector")

    before, after = (d.score(model, test_prompts) for d in (detector, loaded))
    np.testing.assert_array_equal(before.score, after.score)
    np.testing.assert_array_equal(before.p_value, after.p_value)
    assert after.mode == ("offline" if score == "que" else "online")


def test_labels_are_out_of_reach_of_fit(model, trusted):
    flipped = trusted.with_columns(label=[1] * len(trusted), agrees=[0] * len(trusted))
    fitted = [Detector(sites=SITES).fit(model, part).fitted for part in (trusted, flipped)]
    np.testing.assert_array_equal(*(each.calibration for each in fitted))


def test_transductive_scores_have_no_p_values(model, trusted, test_prompts):
    detector = Detector("activations", "que", sites=SITES).fit(model, trusted, pool=test_prompts)
    scores = detector.score(model, test_prompts)

    assert scores.mode == "transductive"
    assert all(row["p_value"] is None and row["flagged"] is None for row in scores)
    assert all(row["score"] is not None for row in scores)
    with pytest.raises(Mismatch, match="10 of 20 prompts were in its pool"):
        detector.score(
            model,
            TensorPrompts.concat([test_prompts.take(range(10)), planted.prompts(10, seed=7)]),
        )


def test_bad_requests_say_what_and_how(model, trusted, test_prompts):
    with pytest.raises(UnknownName, match="Did you mean mahalanobis"):
        Detector("activations", "mahalanobi")
    with pytest.raises(BadValue, match="combine"):
        Detector(combine="top-0")
    with pytest.raises(BadValue, match="not fitted yet"):
        Detector().score(model, test_prompts)
    with pytest.raises(NotEnoughData, match="alpha 0.001 needs 999 calibration prompts"):
        Detector(sites=SITES, alpha=0.001).fit(model, trusted)
    with pytest.raises(BadValue, match="needs a pool"):
        Detector("activations", "que", sites=SITES).fit(model, trusted)
    with pytest.raises(Mismatch, match="among the trusted ones"):
        Detector("activations", "que", sites=SITES).fit(
            model, trusted, pool=trusted.take(range(9))
        )


def test_another_model_is_refused_unless_allowed(model, trusted, test_prompts):
    detector = Detector(sites=SITES).fit(model, trusted)
    other = planted.model()
    with torch.no_grad():
        other.module.first.weight.add_(1e-3)
    with pytest.raises(Mismatch, match="fitted on the model"):
        detector.score(other, test_prompts)
    assert len(detector.score(other, test_prompts, other_model=True)) == len(test_prompts)


def test_an_edited_detector_is_refused(model, trusted, tmp_path):
    Detector(sites=SITES).fit(model, trusted).save(tmp_path / "d")
    index = tmp_path / "d" / "artefact.json"
    record = json.loads(index.read_text())
    record["settings"]["alpha"] = 0.5
    index.write_text(json.dumps(record))
    with pytest.raises(Damaged, match="edited"):
        Detector.load(tmp_path / "d")


def test_table_has_nulls_not_nans(model, trusted, test_prompts):
    scores = Detector(sites=SITES).fit(model, trusted).score(model, test_prompts)
    table = scores.table()
    assert table.column_names == [
        "id",
        "detector",
        "score",
        "p_value",
        "flagged",
        "worst_site",
        "status",
        "reason",
    ]
    assert table.num_rows == len(test_prompts)
    assert scores.site_table().num_rows == len(test_prompts) * len(scores.sites)
