"""Parts of a set of prompts that share no source, and prompts in pairs."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from offkey.data.batch import encode
from offkey.data.prompts import Prompts, Table
from offkey.errors import BadInput, BadValue, NotEnoughData

__all__ = ["PromptPairs", "check_disjoint", "split_by_source"]

TableType = TypeVar("TableType", bound=Table)


def split_by_source(
    prompts: TableType, fractions: Sequence[float], seed: int
) -> tuple[TableType, ...]:
    """Parts of about these fractions of the rows; rows of one source stay together.

    Sources are ordered by a hash of seed and name and cut where the fractions of rows are
    reached, so which rows a part has does not depend on their order, which each part keeps. With
    one row a source the sizes are the rounded fractions. If the fractions sum to less than 1, the
    remaining rows are in no part.

    Raises:
        BadValue: a fraction is not positive, or they exceed 1 together.
        NotEnoughData: a part would be empty.
    """
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise BadValue(
            f"fractions {tuple(fractions)} are not positive numbers that sum to at most 1",
            where="fractions",
            mend="Use for example (0.6, 0.2, 0.2)",
        )
    sizes = Counter(prompts["source"])
    ends = [round(sum(fractions[: i + 1]) * len(prompts)) for i in range(len(fractions))]

    part_of: dict[str, int] = {}
    start = 0
    for source in sorted(sizes, key=lambda name: _hash(seed, name)):
        middle = start + sizes[source] / 2
        part_of[source] = sum(middle > end for end in ends)
        start += sizes[source]

    parts = []
    for number in range(len(fractions)):
        parts.append(prompts.select([part_of[s] == number for s in prompts["source"]]))
    if not all(len(part) for part in parts):
        raise NotEnoughData(
            f"{len(prompts)} prompts of {len(sizes)} sources leave a part empty when split into "
            f"{len(fractions)}",
            mend="Give more prompts of other sources",
        )

    return tuple(parts)


def check_disjoint(a: Table, b: Table, names: tuple[str, str] = ("trusted", "test")) -> None:
    """Refuses two sets of prompts that share a source.

    Args:
        a: a set of prompts.
        b: another.
        names: what the message calls them.

    Raises:
        BadInput: names the first source shared.
    """
    shared = sorted(set(a["source"]) & set(b["source"]))
    if shared:
        places = dict(zip(b["source"], b.places, strict=True))
        raise BadInput(
            f"source {shared[0]!r} is in both the {names[0]} and the {names[1]} prompts "
            f"({len(shared)} shared)",
            where=places[shared[0]],
            mend="Keep all rows made from one item in one of the sets",
        )


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupt prompts; row ``i`` of one belongs to row ``i`` of the other.

    Attributes:
        clean: prompts that show the behaviour.
        corrupt: the same prompts changed so that they do not.
    """

    clean: Prompts
    corrupt: Prompts

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt):
            raise BadInput(
                f"{len(self.clean)} clean prompts cannot be paired with {len(self.corrupt)}",
                mend="Use PromptPairs.match to pair them by a column",
            )

    def __len__(self) -> int:
        return len(self.clean)

    @classmethod
    def match(cls, clean: Prompts, corrupt: Prompts, by: str = "source") -> Self:
        """Pairs prompts that have the same value in a column, in the order of ``clean``.

        Raises:
            BadInput: a value is missing on one side or occurs twice.
            UnknownName: there is no such column.
        """
        row_of = _row_of(corrupt, by, "corrupt")
        _row_of(clean, by, "clean")
        for value, place in zip(clean[by], clean.places, strict=True):
            if value not in row_of:
                raise BadInput(f"no corrupt prompt has {by} {value!r}", where=place)
        unmatched = set(corrupt[by]) - set(clean[by])
        if unmatched:
            value = min(unmatched)
            raise BadInput(
                f"no clean prompt has {by} {value!r}", where=corrupt.places[row_of[value]]
            )

        return cls(clean, corrupt.take(row_of[value] for value in clean[by]))

    def misaligned(self, tokenizer: Any) -> list[int]:
        """Rows whose two prompts differ in number or roles of tokens."""
        encoded = zip(encode(self.clean, tokenizer), encode(self.corrupt, tokenizer), strict=True)

        return [row for row, (a, b) in enumerate(encoded) if a.roles != b.roles]

    def check_aligned(self, tokenizer: Any) -> None:
        """Refuses pairs whose tokens do not align.

        Raises:
            BadInput: names the first such pair.
        """
        for row in self.misaligned(tokenizer)[:1]:
            a, b = encode(self.clean.take([row]), tokenizer) + encode(
                self.corrupt.take([row]), tokenizer
            )
            raise BadInput(
                f"prompt {a.id!r} has {len(a)} tokens and its pair {b.id!r} has {len(b)}"
                + ("" if len(a) != len(b) else ", of other roles"),
                where=self.clean.places[row],
                mend="Change words for others with as many tokens",
            )


def _hash(seed: int, source: str) -> tuple[str, str]:
    return hashlib.sha256(f"{seed}\n{source}".encode()).hexdigest(), source


def _row_of(prompts: Prompts, by: str, side: str) -> dict[Any, int]:
    values: Sequence[Any] = prompts[by]
    rows: dict[Any, int] = {}
    for row, value in enumerate(values):
        if value is None or value in rows:
            problem = "is missing" if value is None else f"{value!r} occurs twice"
            raise BadInput(
                f"{by} {problem} in the {side} prompts",
                where=prompts.places[row],
                mend="Give each pair its own value",
            )
        rows[value] = row

    return rows
