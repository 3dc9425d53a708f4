"""The activation stream: what a model computes at sites while it reads texts, block by block.

Texts are cut into windows of tokens; a block is what a few windows give, computed when it is asked
for and kept on disk if wanted. :class:`ShuffleBuffer` draws training batches from many blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offkey.data import Batch, Encoded, Prompts, Role, encode
from offkey.errors import BadValue, NotEnoughData, check, check_choice
from offkey.models import Model, Site
from offkey.passes.recording import budget_for, progress
from offkey.stats import named_rng
from offkey.storage import ShardFolder

__all__ = [
    "ActivationStream",
    "Blocks",
    "ShuffleBuffer",
    "SiteBlocks",
    "TensorBlocks",
    "Windows",
]

PER_BLOCK = 64
"""Windows whose activations make one block."""

TOGETHER = 4
"""Steps whose batches a training loop draws from the buffer at once."""


@dataclass(frozen=True)
class Windows:
    """How texts are cut, and which tokens count.

    Attributes:
        context: most tokens of a window.
        skip: first tokens of each window that do not count. Models park attention on the first
            token, whose activation is then many times as long as the others'.
        roles: ``"content"`` leaves out the tokens of a chat template and special tokens;
            ``"all"`` takes every token but padding.
    """

    context: int = 128
    skip: int = 1
    roles: Literal["content", "all"] = "content"

    def __post_init__(self) -> None:
        check(
            self.context >= 2 and 0 <= self.skip < self.context,
            f"a window of {self.context} tokens less the first {self.skip} holds nothing",
            where="windows",
        )
        check_choice("windows, roles", self.roles, ("content", "all"))

    def as_dict(self) -> dict[str, Any]:
        """The settings, as JSON has them."""
        return asdict(self)

    def counted(self, batch: Batch) -> Bool[Tensor, "batch token"]:
        """Which tokens of a batch of windows count."""
        assert batch.roles is not None
        assert batch.positions is not None
        kept = batch.roles != int(Role.PADDING)
        if self.roles == "content":
            kept &= batch.roles != int(Role.TEMPLATE)

        return kept & (batch.positions >= self.skip)


def _cut(model: Model, texts: Prompts, windows: Windows) -> list[Encoded]:
    """Windows of all texts in order; those in which no token counts are left out.

    Raises:
        NotEnoughData: nothing is left.
        BadInput: the model has no tokenizer, or a text has no tokens.
    """
    pieces: list[Encoded] = []
    for text in encode(texts, model.tokenizer):
        for start in range(0, len(text), windows.context):
            stop = start + windows.context
            roles = text.roles[start:stop]
            piece = Encoded(f"{text.id}:{start}", text.tokens[start:stop], roles)
            counts = roles[windows.skip :]
            if windows.roles == "content":
                counts = tuple(role for role in counts if role != int(Role.TEMPLATE))
            if counts and len(piece) > 1:
                pieces.append(piece)
    check(
        bool(pieces),
        "no token of the texts counts",
        where="texts",
        mend="Give longer texts",
        error=NotEnoughData,
    )

    return pieces


def _batch_of(pieces: Sequence[Encoded], pad: int = 0) -> Batch:
    """One batch of windows, padded on the left."""
    width = max(len(piece) for piece in pieces)
    tokens = torch.full((len(pieces), width), pad)
    roles = torch.full((len(pieces), width), int(Role.PADDING))
    for row, piece in enumerate(pieces):
        tokens[row, width - len(piece) :] = torch.tensor(piece.tokens)
        roles[row, width - len(piece) :] = torch.tensor(piece.roles)
    mask = roles != int(Role.PADDING)

    return Batch(
        {"input_ids": tokens},
        tuple(piece.id for piece in pieces),
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0),
        roles=roles,
    )


class Blocks(Protocol):
    """Rows in numbered blocks; a block that is asked for again is the same.

    Attributes:
        counts: rows of each block.
        width: length of a row.
    """

    @property
    def counts(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102

    def block(self, number: int) -> Float[Tensor, "row d"]:
        """One block."""


class TensorBlocks:
    """Rows that are in memory already.

    Args:
        rows: ``[n, d]``.
        size: rows a block.
    """

    def __init__(self, rows: Float[Tensor, "n d"], size: int = 8192) -> None:
        self.rows, self.size = rows, size
        self.width = rows.shape[1]
        self.counts = [min(size, len(rows) - start) for start in range(0, len(rows), size)]

    def block(self, number: int) -> Float[Tensor, "row d"]:
        """One block."""
        return self.rows[number * self.size : (number + 1) * self.size]


class ActivationStream:
    """What a model computes at sites while it reads texts, in blocks of windows.

    A block is computed when it is asked for, from its own windows alone; with a folder, all sites
    of it are kept there as they were computed and read the next time. The pass stops after the
    last of the sites.

    Args:
        model: the model that reads the texts.
        texts: plain texts or chats; long ones are cut.
        sites: names and ranges.
        windows: how texts are cut, and which tokens count.
        folder: where blocks are kept.
        token_budget: tokens a pass; chosen by the device if left out.

    Attributes:
        counts: rows of each block.

    Raises:
        BadInput: the model has no tokenizer.
        Mismatch: the folder holds the activations of another model, texts or sites.
        NotEnoughData: no token counts.
    """

    def __init__(
        self,
        model: Model,
        texts: Prompts,
        sites: str | Site | Sequence[str | Site],
        *,
        windows: Windows | None = None,
        folder: str | PathLike[str] | None = None,
        token_budget: int | None = None,
    ) -> None:
        self.model, self.windows = model, windows or Windows()
        self.sites = model.sites_at(sites)
        self._rows = max(1, (token_budget or budget_for(model.device)) // self.windows.context)
        self._pieces = _cut(model, texts, self.windows)
        self._starts = range(0, len(self._pieces), PER_BLOCK)
        self._shards = None
        if folder is not None:
            self._shards = ShardFolder(folder, self._facts(texts))
        self.counts = [
            sum(int(self.windows.counted(batch).sum()) for batch in self.batches(number))
            for number in range(len(self._starts))
        ]

    def __len__(self) -> int:
        """Tokens that count."""
        return sum(self.counts)

    def at(self, site: str | Site) -> "SiteBlocks":
        """The blocks of one site.

        Raises:
            BadValue: it is not among the sites of this stream.
        """
        wanted = self.model.site(site)
        if wanted not in self.sites:
            raise BadValue(
                "it is not read by this stream",
                where=f"site {wanted}",
                mend="Name it with the others: " + ", ".join(map(str, self.sites)),
            )

        return SiteBlocks(self, next(s for s in self.sites if s == wanted))

    def batches(self, number: int) -> list[Batch]:
        """The windows of a block, in batches for the model."""
        pieces = self._pieces[self._starts[number] : self._starts[number] + PER_BLOCK]

        return [
            _batch_of(pieces[start : start + self._rows])
            for start in range(0, len(pieces), self._rows)
        ]

    def block(self, number: int) -> Mapping[str, Tensor]:
        """Rows ``[token, d]`` by the name of their site, in the order of the texts."""
        if self._shards is None:
            return self._computed(number)
        if not self._shards.file(number).exists():
            self._shards.write(number, self._computed(number))

        return self._shards.read(number)

    def keep(self, *, quiet: bool = False) -> None:
        """Computes every block that is not in the folder yet.

        Raises:
            BadValue: there is no folder.
        """
        if self._shards is None:
            raise BadValue(
                "there is no folder to keep it in", where="activation stream", mend="Give folder="
            )
        missing = self._shards.missing(len(self._starts))
        with progress(f"{len(self)} tokens", len(missing), quiet=quiet) as advance:
            for number in missing:
                self._shards.write(number, self._computed(number))
                advance()

    def _computed(self, number: int) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {str(site): [] for site in self.sites}
        for batch in self.batches(number):
            reading = self.model.read(batch, self.sites, positions="all")
            kept = self.windows.counted(batch)
            for site in self.sites:
                parts[str(site)].append(reading[site].cpu()[kept].flatten(1))

        return {name: torch.cat(rows) for name, rows in parts.items()}

    def _facts(self, texts: Prompts) -> dict[str, Any]:
        return {
            "model": self.model.fingerprint,
            "texts": texts.digest,
            "sites": [str(site) for site in self.sites],
            "windows": self.windows.as_dict(),
            "rows": self._rows,
        }


class SiteBlocks:
    """The blocks of one site of a stream."""

    def __init__(self, stream: ActivationStream, site: Site) -> None:
        self.stream, self.site = stream, site

    @property
    def counts(self) -> Sequence[int]:
        """Rows of each block."""
        return self.stream.counts

    @property
    def width(self) -> int:
        """Length of a row."""
        width = 1
        for size in self.site.shape:
            width *= size

        return width

    def block(self, number: int) -> Float[Tensor, "row d"]:
        """One block."""
        return self.stream.block(number)[str(self.site)]


class ShuffleBuffer:
    """Batches of rows, drawn in random order from several blocks at a time.

    The batch of a step depends on the seed and the step alone, so that a run that is resumed sees
    the same rows. The training loop draws numbers of batches, not of rows, which would take a
    tenth of a step.

    Args:
        blocks: where rows come from.
        batch: rows a step.
        size: batches held in memory at a time.
        seed: of the order.
        longest: rows longer than so many times the median length are left out.
        device: where rows are wanted.

    Attributes:
        longest: rows longer than this are left out.
        step: the first of the four steps that were asked for last.

    Raises:
        NotEnoughData: fewer rows than a batch.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch: int,
        size: int = 32,
        seed: int = 0,
        longest: float = float("inf"),
        device: torch.device | str = "cpu",
    ) -> None:
        total = sum(blocks.counts)
        check(
            total >= batch,
            f"{total} rows, a batch has {batch}",
            where="blocks",
            mend="Give more text or a smaller batch",
            error=NotEnoughData,
        )
        self.blocks, self.batch, self.seed = blocks, batch, seed
        self.device = torch.device(device)
        self.step = 0
        self.longest = float("inf")
        self._fillings = min(len(blocks.counts), max(1, round(total / (size * batch))))
        batches = total // self._fillings // batch
        self._steps = max(TOGETHER, batches // TOGETHER * TOGETHER)
        self._held = -1
        self._rows: Float[Tensor, "n d"] = torch.empty(0, blocks.width)
        lengths = self.first().norm(dim=1)
        self.longest = float(lengths.median()) * longest
        self._rows = self._rows[lengths <= self.longest]

    def first(self) -> Float[Tensor, "n d"]:
        """All rows that the buffer holds first."""
        self._fill(0)

        return self._rows

    def at(self, step: int) -> range:
        """Loads the rows of a step and the next three; gives the numbers of their batches."""
        self.step = step
        filling, place = divmod(step, self._steps)
        self._fill(filling)
        count = max(1, len(self._rows) // self.batch)
        start = place if place + TOGETHER <= count else max(0, count - TOGETHER)

        return range(start, min(start + TOGETHER, count))

    def __getitem__(self, number: int) -> Float[Tensor, "n d"]:
        """One batch of the rows that are loaded."""
        return self._rows[number * self.batch : (number + 1) * self.batch]

    def _fill(self, filling: int) -> None:
        if filling == self._held:
            return
        self._held = filling
        epoch, place = divmod(filling, self._fillings)
        rng = named_rng(self.seed, "blocks", str(epoch))
        mine = rng.permutation(len(self.blocks.counts))[place :: self._fillings]
        rows = torch.cat([self.blocks.block(int(number)).float() for number in mine])
        rows = rows[rows.norm(dim=1) <= self.longest]
        order = named_rng(self.seed, "rows", str(filling)).permutation(len(rows))
        self._rows = rows[torch.from_numpy(order)].to(self.device)
