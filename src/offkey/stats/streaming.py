"""Statistics of rows as they stream past: moments, and a sample.

Any split of the work gives the same: sums are taken in blocks of a fixed size, and what is drawn
depends on ids or on a seed and a name, not on the order in which rows come.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch, NonFinite, NotEnoughData, check_choice

__all__ = ["Moments", "Sample", "Statistic", "dense_rows", "named_rng", "unit_rows"]

T = TypeVar("T")

_PANEL = 256
"""Narrowest strip of the scatter matrix that one product fills."""


class Statistic(ABC):
    """A mergeable summary of rows: fed batch by batch, merged shard by shard.

    Several scores that ask for the same ``spec`` share one statistic, so that six of them cost
    little more than one. Merging is associative up to float64 rounding; merged in the same order,
    the result is bitwise the same.
    """

    spec: str
    """Names what is kept; equal specs keep equal things."""

    @abstractmethod
    def update(self, x: Float[Tensor, "n d"], ids: Sequence[str]) -> None:
        """Takes in rows; ``ids`` are their prompts' ids."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Takes in another statistic of the same spec."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many rows were taken in."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The statistic that :meth:`state` described."""


class Moments(Statistic):
    r"""Count, mean and scatter of rows, centred throughout and in float64.

    Rows are taken in blocks of a fixed size, whatever the batches were, so how a stream was cut
    into batches changes nothing. Each block is centred on its own mean and joined by the pairwise
    update of Chan et al.; raw second moments are never summed. With
    :math:`y = x - \text{shift}`, the sums :math:`\sum \lVert y \rVert^2 y` and
    :math:`\sum \lVert y \rVert^4` are kept beside it, which is what Ledoit and Wolf's shrinkage
    needs.

    Args:
        transform: ``"l2"`` scales every row to length 1 first.
        diagonal: keep the variance of each dimension only, and no sums of higher order.

    References:
        Chan, Golub, LeVeque, 1983, eq. 2.1: Algorithms for computing the sample variance.
    """

    def __init__(
        self, *, transform: Literal["none", "l2"] = "none", diagonal: bool = False
    ) -> None:
        check_choice("transform", transform, ("none", "l2"))
        self.transform: Literal["none", "l2"] = transform
        self.diagonal = diagonal
        self.spec = "moments" + ":l2" * (transform == "l2") + ":diagonal" * diagonal
        self._taken = 0
        self._held = 0
        self._block = 0
        self._buffer = torch.empty(0, 0)
        self._mean = self._shift = self._third = torch.empty(0, dtype=torch.float64)
        self._scatter = torch.empty(0, 0, dtype=torch.float64)
        self._fourth = torch.zeros((), dtype=torch.float64)
        self._is_whole = False
        self._derived: dict[str, Any] = {}

    @property
    def count(self) -> int:
        """How many rows were taken in."""
        return self._taken + self._held

    @property
    def dimensions(self) -> int:
        """Width of a row; 0 before the first one."""
        return self._mean.numel()

    def update(self, x: Float[Tensor, "n d"], ids: Sequence[str]) -> None:
        """Takes in rows.

        Args:
            x: rows of any floating dtype, dense or sparse; they are copied.
            ids: ids of their prompts, to name a row that is not finite.

        Raises:
            NonFinite: a row holds NaN or infinity.
            Mismatch: rows of another width than before.
        """
        x = dense_rows(x, ids)
        if not len(x):
            return
        self._open(x)
        self._derived = {}
        start = 0
        while start < len(x):
            rows = x[start : start + self._block - self._held]
            start += len(rows)
            if len(rows) == self._block:
                self._absorb(rows)
            else:
                self._hold(rows)

    def merge(self, other: Self) -> None:
        """Takes in another statistic of the same spec.

        Raises:
            Mismatch: it keeps something else, or rows of another width.
        """
        if other.spec != self.spec:
            raise Mismatch(f"cannot merge {other.spec} into {self.spec}", where="Moments")
        self._flush()
        other._flush()
        if not other._taken:
            return
        self._derived = {}
        if not self._taken:
            self._load({name: value.clone() for name, value in other.state().items()})
            return
        if other.dimensions != self.dimensions:
            raise Mismatch(
                f"cannot merge rows of width {other.dimensions} into rows of width "
                f"{self.dimensions}",
                where="Moments",
            )
        self._join(other)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors."""
        self._flush()
        state = {
            "count": torch.tensor(self._taken),
            "l2": torch.tensor(self.transform == "l2"),
            "diagonal": torch.tensor(self.diagonal),
            "mean": self._mean,
            "shift": self._shift,
            "scatter": self._whole(),
        }
        if not self.diagonal:
            state |= {"third": self._third, "fourth": self._fourth}

        return {name: value.to("cpu", copy=True) for name, value in state.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The statistic that :meth:`state` described."""
        moments = cls(
            transform="l2" if bool(state["l2"]) else "none", diagonal=bool(state["diagonal"])
        )
        moments._load(state)

        return moments

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the rows.

        Raises:
            NotEnoughData: no row was taken in.
        """
        self._need(1)

        return self._mean.clone()

    def scatter(self) -> Float[Tensor, "d d"]:
        """Sum over rows of the outer product of the centred row with itself."""
        self._need(1)
        self._refuse_diagonal("scatter")

        return self._whole().clone()

    def covariance(self, ddof: Literal[0, 1] = 0) -> Float[Tensor, "d d"]:
        """Scatter over ``count - ddof``.

        Raises:
            NotEnoughData: no more than ``ddof`` rows.
        """
        self._need(1 + ddof)
        self._refuse_diagonal("covariance")

        return self._whole() / (self._taken - ddof)

    def variance(self, ddof: Literal[0, 1] = 0) -> Float[Tensor, " d"]:
        """Variance of each dimension.

        Raises:
            NotEnoughData: no more than ``ddof`` rows.
        """
        self._need(1 + ddof)
        sums = self._scatter if self.diagonal else self._scatter.diagonal()

        return sums / (self._taken - ddof)

    @property
    def eigh(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Eigenvalues of ``covariance(ddof=0)``, rising, and its eigenvectors as columns.

        Computed once and kept until more rows come.
        """
        self._need(1)
        return self.derived("eigh", self._decomposed)

    def derived(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` computes from the sums, computed once for a name until more rows come."""
        if name not in self._derived:
            self._derived[name] = make()
        value: T = self._derived[name]

        return value

    def _decomposed(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance())

        return values, vectors

    def higher(self) -> tuple[Float[Tensor, " d"], Float[Tensor, ""]]:
        r"""Sums over rows of :math:`\lVert c \rVert^2 c` and :math:`\lVert c \rVert^4`.

        :math:`c` is the row less the mean of all rows.
        """
        self._need(1)
        self._refuse_diagonal("sums of higher order")

        return self._shifted(self._shift - self._mean)

    def _need(self, rows: int) -> None:
        self._flush()
        if self._taken < rows:
            raise NotEnoughData(
                f"{self._taken} rows where at least {rows} are needed", where="Moments"
            )

    def _refuse_diagonal(self, what: str) -> None:
        if self.diagonal:
            raise BadValue(
                f"diagonal moments keep no {what}", where="Moments", mend="Use diagonal=False"
            )

    def _open(self, x: Tensor) -> None:
        """Makes room at the first rows; later ones must fit."""
        width = x.shape[1]
        if not self._mean.numel():
            device = x.device if x.device.type != "mps" else torch.device("cpu")
            zeros = torch.zeros(width, dtype=torch.float64, device=device)
            self._mean, self._shift, self._third = zeros, zeros.clone(), zeros.clone()
            self._fourth = zeros.new_zeros(())
            self._scatter = zeros.clone() if self.diagonal else zeros.new_zeros(width, width)
        elif width != self.dimensions:
            raise Mismatch(
                f"rows of width {width} after rows of width {self.dimensions}", where="Moments"
            )
        self._block = max(256, width // 4)

    def _hold(self, rows: Tensor) -> None:
        """Keeps rows until a block is full."""
        old = self._buffer[: self._held]
        dtype = torch.promote_types(rows.dtype, old.dtype) if self._held else rows.dtype
        if self._buffer.dtype != dtype or len(self._buffer) != self._block:
            shape = (self._block, self.dimensions)
            self._buffer = torch.empty(shape, dtype=dtype, device=self._mean.device)
            if self._held:
                self._buffer[: self._held] = old
        self._buffer[self._held : self._held + len(rows)] = rows
        self._held += len(rows)
        if self._held == self._block:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, 0
            self._absorb(self._buffer[:held])

    def _absorb(self, rows: Float[Tensor, "n d"]) -> None:
        """Joins one block of rows to the sums."""
        y = rows.to(device=self._mean.device, dtype=torch.float64)
        if self.transform == "l2":
            y = unit_rows(y)
        if not self._taken:
            self._shift = y.mean(dim=0)
        y = y - self._shift
        if not self.diagonal:
            squares = torch.linalg.vecdot(y, y)
            self._third += squares @ y
            self._fourth += squares @ squares
        n, total = len(y), self._taken + len(y)
        mean = y.mean(dim=0)
        y -= mean
        gap = mean + (self._shift - self._mean)
        weight = self._taken * n / total
        if self.diagonal:
            self._scatter += torch.linalg.vecdot(y, y, dim=0) + weight * gap.square()
        else:
            if self._taken:
                y = torch.cat([y, (weight**0.5 * gap)[None]])
            self._accumulate(y)
        self._mean = self._mean + gap * (n / total)
        self._taken = total

    def _accumulate(self, y: Float[Tensor, "n d"]) -> None:
        """Adds the strips of yᵀy that reach from the diagonal to the right."""
        width = y.shape[1]
        panel = max(_PANEL, -(-width // 8))
        for start in range(0, width, panel):
            strip = self._scatter[start : start + panel, start:]
            strip.addmm_(y[:, start : start + panel].T, y[:, start:])
        self._is_whole = False

    def _whole(self) -> Tensor:
        """The scatter with its lower triangle mirrored from the upper one."""
        if not self.diagonal and not self._is_whole:
            self._scatter.triu_()
            self._scatter += self._scatter.triu(1).T
            self._is_whole = True

        return self._scatter

    def _shifted(self, step: Float[Tensor, " d"]) -> tuple[Tensor, Tensor]:
        """Sums of ‖y + step‖²(y + step) and ‖y + step‖⁴ over all rows, y = x - shift."""
        scatter, total = self._whole(), self._taken
        mean = self._mean - self._shift
        along, square = step @ mean, step @ step
        trace = scatter.trace() + total * mean @ mean
        lean = scatter @ step + total * along * mean
        third = (
            self._third
            + trace * step
            + 2 * lean
            + total * (2 * along * step + square * (mean + step))
        )
        fourth = (
            self._fourth
            + 4 * step @ self._third
            + 4 * step @ lean
            + 2 * square * trace
            + total * square * (4 * along + square)
        )

        return third, fourth

    def _join(self, other: Self) -> None:
        device = self._mean.device
        if not self.diagonal:
            third, fourth = other._shifted(other._shift - self._shift.to(other._mean.device))
            self._third = self._third + third.to(device)
            self._fourth = self._fourth + fourth.to(device)
        total = self._taken + other._taken
        gap = other._mean.to(device) - self._mean
        weight = self._taken * other._taken / total
        self._scatter = self._whole() + other._whole().to(device)
        if self.diagonal:
            self._scatter += weight * gap.square()
        else:
            self._scatter.addr_(gap, gap, alpha=weight)
        self._mean = self._mean + gap * (other._taken / total)
        self._taken = total

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._taken = int(state["count"])
        self._mean, self._shift = state["mean"].clone(), state["shift"].clone()
        self._scatter, self._is_whole = state["scatter"].clone(), True
        if not self.diagonal:
            self._third, self._fourth = state["third"].clone(), state["fourth"].clone()


class Sample(Statistic):
    """A uniform sample without replacement: the rows whose prompts' ids hash lowest.

    Which rows are kept, and their order, depends on the ids alone: not on the order in which
    rows came, how they were cut into batches, or how many workers there were. Rows that share an
    id are ordered by their bytes.

    Args:
        size: how many rows are kept at most; ``None`` keeps every row.
    """

    def __init__(self, size: int | None) -> None:
        if size is not None and size < 1:
            raise BadValue(
                f"a sample of {size} rows",
                where="Sample",
                mend="Use at least 1, or None for all rows",
            )
        self.size = size
        self.spec = f"sample:{'all' if size is None else size}"
        self._count = 0
        self._ids: list[str] = []
        self._chunks: list[Tensor] = []
        self._limit: int | None = None
        self._is_sorted = True

    @property
    def count(self) -> int:
        """How many rows were taken in; see ``len`` for how many were kept."""
        return self._count

    def __len__(self) -> int:
        self._settle()

        return len(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the kept rows, in the order of their hashes."""
        self._settle()

        return tuple(self._ids)

    @property
    def rows(self) -> Float[Tensor, "kept d"]:
        """The kept rows, in the order of their ids' hashes; on the CPU, in the dtype given."""
        self._settle()

        return self._chunks[0] if self._chunks else torch.empty(0, 0)

    def update(self, x: Float[Tensor, "n d"], ids: Sequence[str]) -> None:
        """Takes in rows; ``ids`` are their prompts' ids.

        Raises:
            NonFinite: a row that would be kept holds NaN or infinity.
            Mismatch: rows of another width than before.
        """
        x = x.detach() if x.layout == torch.strided else x.detach().to_dense()
        if x.ndim != 2 or len(ids) != len(x):
            raise ValueError(f"{len(ids)} ids for rows of shape {tuple(x.shape)}")
        self._count += len(x)
        limit = self._limit
        kept = [i for i, name in enumerate(ids) if limit is None or _key(name) <= limit]
        if not kept:
            return
        rows = x.to("cpu", copy=True) if len(kept) == len(x) else x[kept].cpu()
        names = [ids[i] for i in kept]
        _check_finite(rows, names)
        self._add(rows.contiguous(), names)

    def merge(self, other: Self) -> None:
        """Takes in another sample of the same size.

        Raises:
            Mismatch: it has another size, or rows of another width.
        """
        if other.spec != self.spec:
            raise Mismatch(f"cannot merge {other.spec} into {self.spec}", where="Sample")
        self._count += other._count
        if len(other):
            self._add(other.rows.clone(), list(other.ids))

    def state(self) -> dict[str, Tensor]:
        """The kept rows and their ids, as UTF-8 bytes and where each begins."""
        codes = [name.encode() for name in self.ids]
        offsets = np.concatenate([[0], np.cumsum([len(code) for code in codes], dtype=np.int64)])
        joined = np.frombuffer(bytearray(b"".join(codes)), dtype=np.uint8)

        return {
            "count": torch.tensor(self._count),
            "size": torch.tensor(-1 if self.size is None else self.size),
            "rows": self.rows.clone(),
            "ids": torch.from_numpy(joined.copy()),
            "offsets": torch.from_numpy(offsets.astype(np.int64)),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The sample that :meth:`state` described."""
        size, offsets = int(state["size"]), state["offsets"].tolist()
        sample = cls(None if size < 0 else size)
        sample._count = int(state["count"])
        if len(state["rows"]):
            joined = state["ids"].numpy().tobytes()
            ids = [joined[a:b].decode() for a, b in zip(offsets, offsets[1:], strict=False)]
            sample._add(state["rows"].clone(), ids)

        return sample

    def _add(self, rows: Tensor, ids: list[str]) -> None:
        if self._chunks and rows.shape[1] != self._chunks[0].shape[1]:
            raise Mismatch(
                f"rows of width {rows.shape[1]} after rows of width {self._chunks[0].shape[1]}",
                where="Sample",
            )
        self._chunks.append(rows)
        self._ids.extend(ids)
        self._is_sorted = False
        if self.size is not None and len(self._ids) >= 2 * self.size + 1024:
            self._settle()

    def _settle(self) -> None:
        """Sorts what is held and drops what is past the size."""
        if self._is_sorted:
            return
        rows = self._chunks[0] if len(self._chunks) == 1 else torch.cat(self._chunks)
        keys = [_key(name) for name in self._ids]
        order = sorted(range(len(keys)), key=lambda i: (keys[i], self._ids[i]))
        order = self._order_twins(order, rows)[: self.size]
        self._chunks, self._ids = [rows[order]], [self._ids[i] for i in order]
        if self.size is not None and len(order) == self.size:
            self._limit = keys[order[-1]]
        self._is_sorted = True

    def _order_twins(self, order: list[int], rows: Tensor) -> list[int]:
        """Puts rows that share an id in the order of their bytes."""
        if len(set(self._ids)) == len(self._ids):
            return order
        place = {
            name: rank for rank, name in enumerate(dict.fromkeys(self._ids[i] for i in order))
        }
        codes = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in rows]

        return sorted(order, key=lambda i: (place[self._ids[i]], codes[i]))


def named_rng(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on one seed and on what it is for, and on nothing else."""
    digest = blake2b("\0".join(names).encode(), digest_size=16).digest()

    return np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows scaled to Euclidean length 1; rows of zeros stay zeros."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    return x / torch.where(length > 0, length, torch.ones_like(length))


def dense_rows(x: Float[Tensor, "n d"], ids: Sequence[str]) -> Float[Tensor, "n d"]:
    """Rows, dense or sparse, as a dense tensor without gradients; all of them finite.

    Raises:
        NonFinite: a row holds NaN or infinity; names its prompt.
    """
    x = x.detach() if x.layout == torch.strided else x.detach().to_dense()
    if x.ndim != 2 or len(ids) != len(x):
        raise ValueError(f"{len(ids)} ids for rows of shape {tuple(x.shape)}")
    _check_finite(x, ids)

    return x


def _check_finite(x: Float[Tensor, "n d"], ids: Sequence[str]) -> None:
    """Refuses rows that hold NaN or infinity, and names the first one's prompt."""
    if not x.isfinite().all():
        bad = int((~x.isfinite().all(dim=1)).nonzero()[0, 0])
        raise NonFinite("NaN or infinity among the values", where=f"prompt {ids[bad]}")


@lru_cache(maxsize=1 << 17)
def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8, key=b"offkey.sample").digest())
