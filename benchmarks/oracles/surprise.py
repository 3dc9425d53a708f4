"""The Boolean toy's surprise, and the scrubbing toy's."""

import itertools
import math
from typing import Any

from offkey.estimate.arithmetic import Scrubbing, bell

from ..surprise_toy import accounts, crossings
from . import printed_row, row

TABLE = {
    "none": ("49/64", ".385290", "0", "6.165", "15.412", "24.659"),
    "A": ("58/64", ".142019", "7.714", "9.987", "13.395", "16.803"),
    "B": ("1/1", "0", "14.313", "14.313", "14.313", "14.313"),
    "B and (a, not_v)": ("61/64", ".069263", "15.728", "16.836", "18.498", "20.161"),
}
"""Estimate, bits a draw, bits of the argument, totals at 16, 40 and 64 draws."""


def rows() -> list[dict[str, Any]]:
    """Numbers of section 8."""
    return boolean() + scrubbing()


def boolean() -> list[dict[str, Any]]:
    """The table, its best arguments and its crossings."""
    table = accounts()
    by_name = {row["argument"]: row for row in table}
    keys = ("bits_a_draw", "argument_bits", *(f"total_bits_at_{n}" for n in (16, 40, 64)))
    gathered = []
    for name, (share, *printed) in TABLE.items():
        top, bottom = map(int, share.split("/"))
        gathered.append(row(f"{name}: estimate", top / bottom, by_name[name]["estimate"]))
        for key, text in zip(keys, printed, strict=True):
            label = f"{name}: {key.replace('_', ' ')}"
            gathered.append(printed_row(label, text, by_name[name][key]))
    for n, name in zip((16, 40, 64), ("none", "A", "B"), strict=True):
        key = f"total_bits_at_{n}"
        least = min(by_name[other][key] for other in TABLE)
        gathered.append(
            row(f"least of the table at {n} draws is {name}'s", least, by_name[name][key])
        )
    for text, crossing in zip(("31.71", "46.46"), crossings(table), strict=True):
        gathered.append(printed_row(f"crossing, {crossing['argument']}", text, crossing["draws"]))

    return gathered


def scrubbing() -> list[dict[str, Any]]:
    """Label x₁ xor x₂ beside an irrelevant x₃; 1 - 2⁻¹⁰ on the right label."""
    inputs = list(itertools.product((0, 1), repeat=3))

    def probability(copies: tuple[tuple[int, ...], ...], x: tuple[int, ...]) -> float:
        is_right = copies[0][0] ^ copies[1][1] == x[0] ^ x[1]
        return 1 - 2.0**-10 if is_right else 2.0**-10

    toy = Scrubbing(probability, inputs, 3)
    cases = (
        ("nothing important", "5.000705", toy.argument()),
        ("paths 1 and 2 important", ".0014096", toy.argument([0, 1])),
        ("path 1 important", "5.000705", toy.argument([0])),
        ("paths 1 and 2 resampled together", "5.000705", toy.argument(blocks=[[0, 1]])),
    )
    bells = [
        row(f"partitions of {n}", count, bell(n)) for n, count in enumerate((1, 1, 2, 5, 15, 52))
    ]
    important = toy.surprise(toy.argument([0, 1]), 1000)

    return [
        *bells,
        printed_row("uniform code over 3 paths", "3.907", math.log2(bell(4))),
        *(
            printed_row(f"{name}, bits an input", text, float(toy.estimate(argument)))
            for name, text, argument in cases
        ),
        printed_row("nothing important, 1000 draws", "5000.7", important.empty_outcome),
        printed_row("paths 1 and 2 important, 1000 draws", "1.4", important.outcome),
        printed_row("paths 1 and 2 important, argument", "3.9", important.argument),
    ]
