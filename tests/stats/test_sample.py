"""The sample depends on ids alone, and is uniform."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from offkey.errors import BadValue, Mismatch, NonFinite
from offkey.stats import Sample
from offkey.stats.streaming import _key


def table(n, d=3, prefix="p"):
    ids = [f"{prefix}{i}" for i in range(n)]
    x = torch.arange(n * d, dtype=torch.float32).reshape(n, d)
    return x, ids


def fed(x, ids, size, cuts=()):
    sample = Sample(size)
    for part in np.array_split(np.arange(len(ids)), list(cuts)):
        sample.update(x[part.tolist()], [ids[i] for i in part])
    return sample


def slow(x, ids, size):
    order = sorted(range(len(ids)), key=lambda i: (_key(ids[i]), ids[i], x[i].numpy().tobytes()))
    order = order[:size]
    return x[order], tuple(ids[i] for i in order)


def equal(sample, rows, ids):
    assert sample.ids == ids
    assert torch.equal(sample.rows, rows)


@settings(max_examples=40, deadline=None)
@given(
    st.permutations(range(40)),
    st.lists(st.integers(0, 40), max_size=4).map(sorted),
    st.sampled_from([1, 7, 40, 100, None]),
    st.integers(1, 40),
    st.booleans(),
)
def test_same_for_any_order_and_split(order, cuts, size, at, doubled):
    x, ids = table(40)
    if doubled:  # ids that occur more than once, with other rows
        ids = [f"p{i % 9}" for i in range(40)]
    rows, names = slow(x, ids, size)
    x, ids = x[list(order)], [ids[i] for i in order]
    equal(fed(x, ids, size, cuts), rows, names)
    left, right = fed(x[:at], ids[:at], size), fed(x[at:], ids[at:], size, [3])
    right.merge(left)
    equal(right, rows, names)
    assert right.count == 40


def test_many_rows_are_dropped_on_the_way():
    x, ids = table(5000)
    sample = fed(x, ids, 50, range(100, 5000, 100))
    assert len(sample._ids) < 2 * 50 + 1024
    equal(sample, *slow(x, ids, 50))
    assert len(sample) == 50
    assert sample.count == 5000


def test_uniform():
    """The kept positions of a stream are spread like uniform draws."""
    x, ids = table(20_000, 1)
    sample = fed(x, ids, 1000)
    assert kstest(sample.rows[:, 0].numpy() / 20_000, "uniform").pvalue > 0.001


@pytest.mark.parametrize("size", [5, None])
def test_state_round_trip(size):
    x, ids = table(30, prefix="früh/")
    sample = fed(x[:20], ids[:20], size)
    copy = Sample.from_state(sample.state())
    for each in (sample, copy):
        each.update(x[20:], ids[20:])
    equal(copy, sample.rows, sample.ids)
    assert copy.count == sample.count == 30
    assert copy.spec == sample.spec


def test_state_of_nothing():
    sample = Sample.from_state(Sample(3).state())
    assert sample.count == 0
    assert len(sample) == 0
    assert sample.ids == ()
    sample.merge(fed(*table(4), 3))
    assert len(sample) == 3


def test_keeps_copies_and_dtype():
    x, ids = table(6)
    x = x.bfloat16()
    sample = fed(x, ids, None)
    expected = sample.rows.clone()
    x.zero_()
    assert sample.rows.dtype == torch.bfloat16
    assert torch.equal(sample.rows, expected)


def test_errors():
    x, ids = table(4)
    with pytest.raises(BadValue):
        Sample(0)
    with pytest.raises(Mismatch):
        Sample(3).merge(Sample(4))
    sample = fed(x, ids, None)
    with pytest.raises(Mismatch, match="width"):
        sample.update(torch.zeros(1, 9), ["q"])
    with pytest.raises(NonFinite, match="prompt p2"):
        fed(torch.where(torch.arange(4)[:, None] == 2, torch.inf, x), ids, None)
    with pytest.raises(ValueError, match="1 ids"):
        sample.update(x, ["a"])
