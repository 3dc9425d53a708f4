import pytest

from offkey.data import PromptPairs, Prompts
from offkey.errors import BadInput, UnknownName


def made(texts, sources, where="t"):
    return Prompts({"prompt": texts, "source": sources}, where=where)


def test_match_by_source_in_the_order_of_clean():
    pairs = PromptPairs.match(made(["a", "b"], ["1", "2"]), made(["y", "x"], ["2", "1"]))

    assert len(pairs) == 2
    assert pairs.clean["prompt"] == ("a", "b")
    assert pairs.corrupt["prompt"] == ("x", "y")


def test_match_by_a_column():
    clean = Prompts({"prompt": ["a", "b"], "pair": [1, 2]})
    corrupt = Prompts({"prompt": ["y", "x"], "pair": [2, 1]})

    assert PromptPairs.match(clean, corrupt, by="pair").corrupt["prompt"] == ("x", "y")
    with pytest.raises(UnknownName):
        PromptPairs.match(clean, corrupt, by="twin")


@pytest.mark.parametrize(
    ("clean", "corrupt", "message"),
    [
        (["1", "2"], ["1", "3"], "c row 2: no corrupt prompt has source '2'."),
        (["1"], ["1", "3"], "d row 2: no clean prompt has source '3'."),
        (
            ["1", "1"],
            ["1"],
            "c row 2: source '1' occurs twice in the clean prompts. Give each pair its own value.",
        ),
        (
            ["1"],
            ["1", "1"],
            "d row 2: source '1' occurs twice in the corrupt prompts. Give each pair its own "
            "value.",
        ),
    ],
)
def test_bad_pairs_are_told_in_one_line(clean, corrupt, message):
    with pytest.raises(BadInput) as caught:
        PromptPairs.match(
            made([f"a{i}" for i in range(len(clean))], clean, "c"),
            made([f"b{i}" for i in range(len(corrupt))], corrupt, "d"),
        )

    assert str(caught.value) == message


def test_unequal_numbers():
    with pytest.raises(BadInput, match="2 clean prompts cannot be paired with 1"):
        PromptPairs(made(["a", "b"], ["1", "2"]), made(["x"], ["1"]))


def test_alignment_counts_tokens(tokenizer):
    pairs = PromptPairs.match(made(["z", "zzz"], ["1", "2"]), made(["y", "yyyy"], ["1", "2"]))

    assert pairs.misaligned(tokenizer) == [1]
    with pytest.raises(BadInput) as caught:
        pairs.check_aligned(tokenizer)
    one, other = pairs.clean.ids[1], pairs.corrupt.ids[1]
    assert str(caught.value) == (
        f"t row 2: prompt {one!r} has 3 tokens and its pair {other!r} has 4. Change words for "
        "others with as many tokens."
    )
    PromptPairs(pairs.clean.take([0]), pairs.corrupt.take([0])).check_aligned(tokenizer)
