from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.data import Prompts, check_disjoint, split_by_source
from offkey.errors import BadInput, BadValue, NotEnoughData


def of_sources(sources, where=""):
    return Prompts(
        {
            "prompt": [f"p{i}" for i in range(len(sources))],
            "id": [f"i{i}" for i in range(len(sources))],
            "source": [f"s{source}" for source in sources],
        },
        where=where,
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60),
    st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.5), (0.3, 0.2), (1.0,)]),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_sources_stay_together_whatever_the_order(sources, fractions, seed, random):
    prompts = of_sources(sources)
    try:
        parts = split_by_source(prompts, fractions, seed)
    except NotEnoughData:
        assert len(set(sources)) < 30
        return

    order = list(range(len(prompts)))
    random.shuffle(order)
    shuffled = split_by_source(prompts.take(order), fractions, seed)
    for part, other in zip(parts, shuffled, strict=True):
        assert set(part.ids) == set(other.ids)
        assert list(part.ids) == [i for i in prompts.ids if i in set(part.ids)]
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            check_disjoint(part, other)
    largest = max(Counter(sources).values())
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(prompts)) <= largest + 1
    if sum(fractions) == 1:
        assert sum(map(len, parts)) == len(prompts)


@pytest.mark.parametrize("count", [10, 100, 1001])
def test_sizes_are_the_fractions(count):
    parts = split_by_source(of_sources(range(count)), (0.6, 0.2, 0.2), seed=0)

    assert [len(part) for part in parts] == [
        round(0.6 * count),
        round(0.8 * count) - round(0.6 * count),
        count - round(0.8 * count),
    ]


def test_seeds_give_other_splits_and_the_same_again():
    prompts = of_sources(range(100))
    a, b, c = (split_by_source(prompts, (0.5, 0.5), seed)[0] for seed in (0, 0, 1))

    assert a == b
    assert 10 < len(set(a.ids) & set(c.ids)) < 40


def test_split_is_the_same_in_every_process():
    assert split_by_source(of_sources(range(6)), (0.5, 0.5), 0)[0].ids == ("i2", "i3", "i4")


def test_membership_does_not_depend_on_labels():
    prompts = of_sources(range(50))
    labelled = prompts.with_columns(label=[i % 2 for i in range(50)])

    assert [p.ids for p in split_by_source(prompts, (0.5, 0.5), 0)] == [
        p.ids for p in split_by_source(labelled, (0.5, 0.5), 0)
    ]


def test_bad_splits_are_told_in_one_line():
    with pytest.raises(BadValue) as caught:
        split_by_source(of_sources([1, 2]), (0.9, 0.2), 0)
    assert str(caught.value) == (
        "fractions: fractions (0.9, 0.2) are not positive numbers that sum to at most 1. Use for "
        "example (0.6, 0.2, 0.2)."
    )
    with pytest.raises(NotEnoughData) as caught:
        split_by_source(of_sources([1, 1, 1]), (0.6, 0.2, 0.2), 0)
    assert str(caught.value) == (
        "3 prompts of 1 sources leave a part empty when split into 3. Give more prompts of other "
        "sources."
    )


def test_shared_sources_are_refused():
    a, b = of_sources([1, 2]), of_sources([2, 3])

    check_disjoint(a.take([0]), b)
    with pytest.raises(BadInput) as caught:
        check_disjoint(a, of_sources([2, 3], where="x.jsonl"))
    assert str(caught.value) == (
        "x.jsonl row 1: source 's2' is in both the trusted and the test prompts (1 shared). "
        "Keep all rows made from one item in one of the sets."
    )
