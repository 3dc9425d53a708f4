"""From what a user types to sites: names, ranges, lists, module paths."""

import re
from collections.abc import Sequence

from torch import nn

from offkey.errors import BadValue, UnknownName, UnmappedModel
from offkey.models._sites import BLOCK_KINDS, GLOBAL_KINDS, Site
from offkey.models._wiring import Wiring

__all__ = ["block_numbers", "resolve"]


def resolve(
    patterns: str | Site | Sequence[str | Site],
    wiring: Wiring | None,
    roots: Sequence[nn.Module],
    unmapped: UnmappedModel | None = None,
) -> tuple[Site, ...]:
    """The sites that names and ranges stand for, each once, in the order given.

    Args:
        patterns: names, ranges such as ``resid_post.*``, ``resid_post.4-12``,
            ``resid_post.::4``, ``resid_post.later``, ``resid_post.last-quarter``,
            ``module:PATH``; a string may hold several, parted by commas.
        wiring: the named sites of the model, if it has any.
        roots: the modules from which ``module:`` paths are followed, the first that fits.
        unmapped: why the model has no named sites, where it should have had them.
    """
    if isinstance(patterns, str | Site):
        patterns = [patterns]
    pieces = [
        piece
        for pattern in patterns
        for piece in (pattern.split(",") if isinstance(pattern, str) else [pattern])
    ]
    found: dict[Site, None] = {}
    for piece in pieces:
        name = piece.name if isinstance(piece, Site) else piece.strip()
        if name.startswith("module:"):
            sites = [_module_site(Site.parse(name), roots)]
        elif wiring is not None:
            sites = _named(name, wiring)
        else:
            sites = [_plain(name, roots, unmapped)]
        found.update(dict.fromkeys(sites))

    return tuple(found)


def block_numbers(selection: str, n_blocks: int, where: str) -> list[int]:
    """The block numbers of a range: ``*``, ``4``, ``4-12``, ``::4``, ``later``, ``last-quarter``.

    Raises:
        BadValue: it is not a range, or names no block of the model.
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
            f"{selection!r} is no range of blocks",
            where=where,
            mend="Write a number, *, 4-12, ::4, later or last-quarter",
        )
    if not numbers:
        raise BadValue(
            f"the range holds no block; this model has blocks 0-{n_blocks - 1}", where=where
        )

    return numbers


def _named(name: str, wiring: Wiring) -> list[Site]:
    kind, dot, selection = name.partition(".")
    if kind in GLOBAL_KINDS or not dot:
        _check_kind(kind, name, wiring)
        return [wiring.site(Site.parse(name).kind)]
    _check_kind(kind, name, wiring)
    numbers = block_numbers(selection, len(wiring.blocks), f"site {name}")

    return [wiring.site(kind, number) for number in numbers]


def _check_kind(kind: str, name: str, wiring: Wiring) -> None:
    if kind in BLOCK_KINDS or kind in GLOBAL_KINDS:
        return
    selection = name.partition(".")[2] or "0"
    known = [*wiring.global_kinds, *(f"{each}.{selection}" for each in wiring.kinds)]
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
