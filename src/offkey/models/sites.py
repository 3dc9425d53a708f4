"""Sites: named places inside a model, and the names and ranges that stand for them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from torch import nn

from offkey.errors import BadValue, UnknownName, UnmappedModel

__all__ = [
    "BLOCK_KINDS",
    "GLOBAL_KINDS",
    "HEAD_KINDS",
    "Site",
    "SiteMap",
    "block_numbers",
    "resolve",
]

HEAD_KINDS = ("q", "k", "v", "z", "pattern", "head_out")
RESIDUAL_KINDS = ("resid_pre", "resid_mid", "resid_post")
SUBLAYER_KINDS = ("attn_out", "mlp_out", "attn_in", "mlp_in", "mlp_act")
BLOCK_KINDS = (*RESIDUAL_KINDS, *SUBLAYER_KINDS, *HEAD_KINDS)
GLOBAL_KINDS = ("embed", "final", "logits")


@dataclass(frozen=True, order=True)
class Site:
    """A place inside a model and the shape of what passes there.

    Two sites are equal when they name the same place; the shape is what one model has there.

    Attributes:
        kind: one of :data:`BLOCK_KINDS` or :data:`GLOBAL_KINDS`, or ``"module"``.
        block: number of the block, for kinds that live in one.
        path: dotted module path, for ``module`` sites.
        side: whether a ``module`` site is the module's output or its first input.
        shape: shape per token, such as ``(576,)`` or ``(heads, d_head)``; empty when unknown.
    """

    kind: str
    block: int | None = None
    path: str | None = None
    side: Literal["out", "in"] = "out"
    shape: tuple[int, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The name a user types: ``resid_post.3``, ``final``, ``module:layers.0:in``."""
        if self.kind == "module":
            return f"module:{self.path}" + (":in" if self.side == "in" else "")
        return self.kind if self.block is None else f"{self.kind}.{self.block}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads one site's name; ranges are resolved by :meth:`offkey.models.Model.sites_at`.

        Raises:
            UnknownName: no such kind of site.
            BadValue: a block number is missing, or stands where there is none.
        """
        if name.startswith("module:"):
            path = name.removeprefix("module:")
            side: Literal["out", "in"] = "in" if path.endswith(":in") else "out"
            return cls("module", path=path.removesuffix(":in"), side=side)
        kind, dot, number = name.partition(".")
        if kind not in (*BLOCK_KINDS, *GLOBAL_KINDS):
            raise UnknownName("site", name, [*GLOBAL_KINDS, *(f"{k}.0" for k in BLOCK_KINDS)])
        if kind in GLOBAL_KINDS:
            if dot:
                raise BadValue(f"{kind} takes no block number", where=f"site {name}")
            return cls(kind)
        if not re.fullmatch(r"\d+", number):
            raise BadValue(
                "a block number is missing",
                where=f"site {name}",
                mend=f"Write {kind}.0, or {kind}.* for all blocks",
            )
        return cls(kind, block=int(number))


class SiteMap(Protocol):
    """The named sites that a model has."""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of site that every block has."""

    @property
    def global_kinds(self) -> tuple[str, ...]:
        """The kinds of site that the model has once."""

    def site(self, kind: str, block: int | None = None) -> Site:
        """The site with its shape."""


def resolve(
    patterns: str | Site | Sequence[str | Site],
    named: SiteMap | None,
    roots: Sequence[nn.Module],
    unmapped: UnmappedModel | None = None,
) -> tuple[Site, ...]:
    """The sites that names and ranges stand for, each once, in the order given.

    Args:
        patterns: names, ranges such as ``resid_post.*``, ``resid_post.4-12``,
            ``resid_post.::4``, ``resid_post.later``, ``resid_post.last-quarter``,
            ``module:PATH``; a string may hold several, separated by commas.
        named: the named sites of the model, if it has any.
        roots: the modules from which ``module:`` paths start; the first that has the path counts.
        unmapped: why a language model has no named sites.
    """
    if isinstance(patterns, str | Site):
        patterns = [patterns]
    pieces = [
        piece
        for pattern in patterns
        for piece in (pattern.split(",") if isinstance(pattern, str) else [pattern])
    ]
    chosen: dict[Site, None] = {}
    for piece in pieces:
        name = piece.name if isinstance(piece, Site) else piece.strip()
        if name.startswith("module:"):
            sites = [_module_site(Site.parse(name), roots)]
        elif named is not None:
            sites = _named(name, named)
        else:
            sites = [_plain(name, roots, unmapped)]
        chosen.update(dict.fromkeys(sites))

    return tuple(chosen)


def block_numbers(selection: str, n_blocks: int, where: str) -> list[int]:
    """The block numbers of a range: ``*``, ``4``, ``4-12``, ``::4``, ``later``, ``last-quarter``.

    Raises:
        BadValue: it is not a range, or it holds no block of the model.
    """
    if selection == "*":
        return list(range(n_blocks))
    if selection == "later":
        return list(range(n_blocks // 2, n_blocks))
    if selection == "last-quarter":
        return list(range(n_blocks - max(1, n_blocks // 4), n_blocks))
    if re.fullmatch(r"\d+", selection):
        return [int(selection)]
    if span := re.fullmatch(r"(\d+)-(\d+)", selection):
        first, last = int(span[1]), int(span[2])
        numbers = list(range(first, last + 1))
    elif re.fullmatch(r"-?\d*:-?\d*(:[1-9]\d*)?", selection):
        bounds = [int(part) if part else None for part in selection.split(":")]
        numbers = list(range(n_blocks))[slice(*bounds)]
    else:
        raise BadValue(
            f"{selection!r} is not a range of blocks",
            where=where,
            mend="Write a number, *, 4-12, ::4, later or last-quarter",
        )
    if not numbers:
        raise BadValue(
            f"the range holds no block; this model has blocks 0-{n_blocks - 1}", where=where
        )

    return numbers


def _named(name: str, named: SiteMap) -> list[Site]:
    kind, dot, selection = name.partition(".")
    if kind in GLOBAL_KINDS or not dot:
        _check_kind(kind, name, named)
        return [named.site(Site.parse(name).kind)]
    _check_kind(kind, name, named)
    sites = []
    for number in block_numbers(selection, named.n_blocks, f"site {name}"):
        sites.append(named.site(kind, number))

    return sites


def _check_kind(kind: str, name: str, named: SiteMap) -> None:
    if kind in BLOCK_KINDS or kind in GLOBAL_KINDS:
        return
    selection = name.partition(".")[2] or "0"
    known = [*named.global_kinds, *(f"{each}.{selection}" for each in named.kinds)]
    raise UnknownName("site", name, known)


def _plain(name: str, roots: Sequence[nn.Module], unmapped: UnmappedModel | None) -> Site:
    if name == "logits":
        return Site("logits")
    if unmapped is not None:
        raise unmapped
    known = [f"module:{path}" for path, _ in roots[0].named_modules() if path]
    if name.partition(".")[0] in (*BLOCK_KINDS, *GLOBAL_KINDS):
        raise BadValue(
            "a plain module has no named sites",
            where=f"site {name}",
            mend="Use module paths such as " + ", ".join(known[:5]),
        )
    raise UnknownName("site", f"module:{name}", known)


def _module_site(site: Site, roots: Sequence[nn.Module]) -> Site:
    for root in roots:
        if site.path in dict(root.named_modules()):
            return site
    known = [f"module:{path}" for path, _ in roots[0].named_modules() if path]
    raise UnknownName("site", f"module:{site.path}", known)
