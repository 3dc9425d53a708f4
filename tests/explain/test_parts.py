"""The parts of an explanation, each against a slow and obvious reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu

from offkey.data import Prompts
from offkey.detect import Combine
from offkey.errors import BadInput, BadValue
from offkey.explain import Detail, flagged_words
from offkey.explain.explaining import nearest_rows
from offkey.explain.instruments import head_shares
from offkey.explain.swaps import swap_shares, variants
from offkey.models import Site

scores = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    elements=st.floats(-50, 50, width=32),
)


@given(scores, st.sampled_from(["mean", "max", "later-half", "top-1", "top-3", "top-9"]))
def test_shares_of_the_sites_add_up_to_the_combined_score(z, name):
    combine = Combine(name)
    np.testing.assert_allclose(combine.shares(z).sum(1), combine(z), atol=1e-9)


def test_sites_that_are_passed_over_have_no_share():
    z = np.array([[1.0, 4.0, 2.0, 4.0]])
    assert np.count_nonzero(Combine("max").shares(z)) == 1
    np.testing.assert_allclose(Combine("later-half").shares(z), [[0, 0, 1, 2]])
    np.testing.assert_allclose(Combine("top-2").shares(z), [[0, 2, 0, 2]])


def slow_nearest(rows, trusted, count):
    places = []
    for n in range(len(next(iter(rows.values())))):
        distances = []
        for m in range(len(next(iter(trusted.values())))):
            per_site = []
            for site, t in trusted.items():
                squares = []
                for j in range(t.shape[1]):
                    sigma = float(np.std(t[:, j].double().numpy()))
                    if sigma > 0:
                        difference = float(rows[site][n, j]) - float(t[m, j])
                        squares.append((difference / sigma) ** 2)
                if squares:
                    per_site.append(sum(squares) / len(squares))
            distances.append((math.sqrt(sum(per_site) / len(per_site)), m))
        places.append(sorted(distances)[:count])
    return places


def test_nearest_trusted_equals_a_search_by_hand():
    generator = torch.Generator().manual_seed(0)
    trusted = {
        "a": torch.randn(9, 4, generator=generator) * 30,
        "b": torch.randn(9, 2, generator=generator),
    }
    trusted["a"][:, 3] = 7.0  # a coordinate that does not vary measures nothing
    rows = {site: torch.randn(5, t.shape[1], generator=generator) for site, t in trusted.items()}

    places, distances = nearest_rows(rows, trusted, 3)

    for n, expected in enumerate(slow_nearest(rows, trusted, 3)):
        assert places[n].tolist() == [m for _, m in expected]
        np.testing.assert_allclose(distances[n], [d for d, _ in expected], rtol=1e-6)


def test_a_trusted_prompt_lacking_a_row_is_nobodys_neighbour():
    trusted = {
        "a": torch.tensor([[0.0], [1.0], [5.0]]),
        "b": torch.tensor([[0.0], [torch.nan], [1.0]]),
    }
    places, _ = nearest_rows({"a": torch.tensor([[1.0]]), "b": torch.tensor([[0.0]])}, trusted, 3)
    assert sorted(places[0].tolist()) == [0, 2]


def test_heads_are_ranked_by_how_far_they_are_from_usual():
    site, other = Site("z", 3), Site("z", 5)
    trusted = {
        site: torch.tensor([[1.0, 0.0], [1.2, 0.1], [0.8, -0.1]]),
        other: torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
    }
    shares = head_shares(
        {site: torch.tensor([1.1, -2.0]), other: torch.tensor([0.5, 0.0])}, trusted, 3
    )

    assert [(h.site, h.head) for h in shares] == [("z.3", 1), ("z.5", 0), ("z.3", 0)]
    assert shares[0].effect == -2.0
    assert shares[0].usual == 0.0
    assert shares[0].standardised == pytest.approx(-2.0 / (1.4826 * 0.1))
    assert shares[1].standardised is None


def test_flagged_words_are_those_of_mann_and_whitney():
    texts = [f"ask George about {n}" for n in range(8)] + [
        f"ask Fiona about {n}" for n in range(12)
    ]
    scores = [3.0, 4, 5, 5, 6, 7, 8, 9, *([1.0] * 6), 2, 2, 3, 4, 4, 10]
    words = flagged_words(texts, scores, [score > 4 for score in scores])

    assert [w.word for w in words] == ["george"]
    row = words[0]
    assert (row.prompts, row.flagged, row.score, row.others) == (8, 6, 5.5, 1.5)
    p = mannwhitneyu(scores[:8], scores[8:], alternative="greater", method="asymptotic").pvalue
    assert row.p_value == pytest.approx(2 * p)  # george and fiona; numbers stand too seldom


def test_words_of_one_effect_do_not_hide_one_another():
    rng = np.random.default_rng(0)
    trigger = ["George", "Carter", "Brian", "Jasmine"]
    names = np.repeat([*trigger, "Fiona", "Hannah", "Olivia", "Ada"], 7)
    scores = rng.normal(size=56) + 9 * (np.arange(56) < 28)
    texts = [f"{name} asks {rng.choice(list('abcdef'))}" for name in names]
    words = flagged_words(texts, scores, [False] * 56)

    assert {word.word for word in words[:4]} == {name.lower() for name in trigger}
    assert words[3].p_value < 0.001
    assert all(word.p_value > 0.05 for word in words[4:])
    assert sum(word.prompts for word in words[:4]) == 28


def test_words_are_found_where_everything_is_flagged():
    texts = ["ask George"] * 9 + ["ask Fiona"] * 9
    (word,) = flagged_words(
        texts, [9.0 + n for n in range(9)] + [float(n) for n in range(9)], [True] * 18
    )
    assert (word.word, word.flagged) == ("george", 9)


def test_nothing_tells_where_scores_fall_by_chance():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 4)) for _ in range(200)]
    words = flagged_words(texts, rng.normal(size=200), [False] * 200)
    assert all(word.p_value > 0.2 for word in words)
    assert flagged_words(texts, [1.0] * 200, [True] * 200) == ()
    assert flagged_words([], [], []) == ()


def test_texts_need_a_score_each():
    with pytest.raises(BadInput, match="one of each a text"):
        flagged_words(["a"], [1.0, 2.0], [True])
    with pytest.raises(BadInput, match="one of each a text"):
        flagged_words(["a"], [np.nan], [True])


def test_words_are_swapped_one_by_one_where_they_align():
    prompts = Prompts({"id": ["p"], "prompt": ["Name: George\nIs 3 > 4?\nAnswer: "]})
    near = {"p": [("t", "Name: Luna\nIs 3 > 9?\nAnswer: ")]}
    made, changed = variants(prompts, near)

    assert [(v.words, v.instead) for v in made] == [("George", "Luna"), ("4?", "9?")]
    assert list(changed["prompt"]) == [
        "Name: Luna\nIs 3 > 4?\nAnswer: ",
        "Name: George\nIs 3 > 9?\nAnswer: ",
    ]


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("a b c", "a c", [("b", "", "a c")]),
        ("a c", "a b c", [("", "b", "a b c")]),
        ("a b c d", "a x y z d", [("b c", "x y z", "a x y z d")]),
        ("same", "same", []),
        (None, "a", []),
        ("a", None, []),
    ],
)
def test_stretches_are_swapped_whole(text, other, expected):
    columns = {"prompt": [text]} if text else {"messages": [[{"role": "user", "content": "a"}]]}
    made, changed = variants(Prompts({"id": ["p"], **columns}), {"p": [("t", other)]})

    texts = [] if changed is None else changed["prompt"]
    assert [(v.words, v.instead, t) for v, t in zip(made, texts, strict=True)] == expected


def test_swaps_of_the_same_words_are_listed_once():
    prompts = Prompts({"id": ["p"], "prompt": ["a X c"]})
    made, _ = variants(prompts, {"p": [("t", "a b c"), ("u", "a d e")]})
    swaps = swap_shares(made, np.array([1.0, 2.0, np.nan]), {"p": 7.0}, 5)

    assert [(s.words, s.instead, s.score, s.share) for s in swaps["p"]] == [
        ("X", ("b", "d"), 1.5, 5.5)
    ]


@pytest.mark.parametrize("bad", [{"top": 0}, {"background": 0}, {"rare": 2.0}])
def test_details_out_of_range_are_refused(bad):
    with pytest.raises(BadValue, match=next(iter(bad))):
        Detail(**bad)
