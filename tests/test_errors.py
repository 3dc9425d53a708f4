import math

import pytest

from offkey.errors import (
    BadInput,
    BadValue,
    check,
    check_at_least,
    check_choice,
    check_positive,
)


def test_a_condition_that_holds_raises_nothing():
    check(True, "wrong")


def test_a_condition_that_fails_says_what_where_and_the_mend():
    with pytest.raises(BadInput) as caught:
        check(False, "it is empty", where="prompts.jsonl:3", mend="Fill it", error=BadInput)
    assert str(caught.value) == "prompts.jsonl:3: it is empty. Fill it."


def test_a_choice_is_one_of_those_named():
    check_choice("tokens", "all", ("all", "last"))
    with pytest.raises(BadValue) as caught:
        check_choice("tokens", "first", ("all", "last"))
    assert str(caught.value) == "tokens: 'first' is not allowed. Use 'all' or 'last'."


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_zero_negative_numbers_and_nan_are_not_positive(value):
    check_positive("norm", 0.1)
    with pytest.raises(BadValue, match="norm: .* is not positive"):
        check_positive("norm", value)


def test_a_number_is_at_least_the_least():
    check_at_least("draws", 1, 1)
    with pytest.raises(BadValue, match="draws: 0 is less than 1"):
        check_at_least("draws", 0, 1)
    with pytest.raises(BadValue):
        check_at_least("draws", math.nan, 1)
