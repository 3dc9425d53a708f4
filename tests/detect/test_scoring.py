import numpy as np
import pytest

from offkey.detect.scoring import Combine, Scale
from offkey.errors import BadValue

Z = np.array([[0.0, 4.0, 1.0, 3.0], [2.0, -1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [2.0, 0.25]),
        ("max", [4.0, 2.0]),
        ("later-half", [2.0, 0.0]),
        ("top-1", [4.0, 2.0]),
        ("top-2", [3.5, 1.0]),
        ("top-9", [2.0, 0.25]),
    ],
)
def test_combines_by_hand(name, expected):
    np.testing.assert_allclose(Combine(name)(Z), expected)


@pytest.mark.parametrize("name", ["", "median", "top-", "top-0", "top--1", "top-x"])
def test_unknown_ways_are_refused(name):
    with pytest.raises(BadValue, match="Use mean, max, later-half or top-M"):
        Combine(name)


def test_missing_sites_make_the_prompt_missing():
    z = Z.copy()
    z[0, 2] = np.nan
    for name in ("mean", "max", "later-half", "top-2"):
        assert np.isnan(Combine(name)(z)[0])
        assert not np.isnan(Combine(name)(z)[1])


def test_scale_is_the_median_and_its_deviation():
    scores = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0], [100.0, 9.0]])
    scale = Scale.of(scores)
    np.testing.assert_allclose(scale.centre, [3.0, 5.0])
    np.testing.assert_allclose(scale.spread, [1.4826, np.std([5, 5, 5, 5, 9])])
    np.testing.assert_allclose(scale(scores)[:, 0], (scores[:, 0] - 3) / 1.4826)
