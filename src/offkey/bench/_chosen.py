"""Some of the recorded rows, of one set of prompts or of several."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from offkey.passes import Rows, ShardRows

__all__ = ["Chosen"]


@dataclass(frozen=True)
class Chosen(Rows):
    """Some rows of several sets of prompts."""

    parts: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Rows], ids: frozenset[str]) -> Self:
        """The rows of these ids."""
        kept = tuple(id for part in parts for id in part.ids if id in ids)

        return cls(parts[0].store, kept, max(1, len(kept)), tuple(parts))

    def shards(self) -> Iterator[ShardRows]:
        """The shards of each set, without the rows that are not wanted."""
        wanted = set(self.ids)
        for part in self.parts:
            for shard in part.shards():
                rows = [n for n, id in enumerate(shard.ids) if id in wanted]
                if rows:
                    ids = tuple(shard.ids[n] for n in rows)
                    yield ShardRows(ids, _Some(shard.values, rows))


class _Some(Mapping[str, Tensor]):
    """Some rows of every tensor, taken when it is asked for."""

    def __init__(self, values: Mapping[str, Tensor], rows: list[int]) -> None:
        self._values, self._rows = values, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
