"""Clean prompts side by side with corrupt ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from offkey.data.batch import encode
from offkey.data.prompts import Prompts
from offkey.errors import BadInput

__all__ = ["PromptPairs"]


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
