"""Every error a user can cause: what was wrong, where, and the mend.

The text of an error is one line, ``where: what. mend``. The command line prints it after
``error:`` and exits with status 2; any other exception is a bug in offkey.
"""

import difflib
from collections.abc import Collection, Iterable

__all__ = [
    "BadInput",
    "BadValue",
    "Damaged",
    "InvalidAnchor",
    "Mismatch",
    "MissingExtra",
    "MissingMask",
    "ModelBusy",
    "NoMatchingParameters",
    "NonFinite",
    "NonFiniteCost",
    "NotEnoughData",
    "OffkeyError",
    "Offline",
    "PrecisionTooLow",
    "PriorMismatch",
    "RadiusNotFound",
    "UnknownName",
    "UnmappedModel",
    "Unwritable",
    "check",
    "check_at_least",
    "check_choice",
    "check_positive",
    "nearest",
]


class OffkeyError(Exception):
    """Base of all errors that a user can mend.

    Args:
        what: what was wrong, without a full stop.
        where: the file and line, site, prompt or parameter it concerns.
        mend: what to do about it, one sentence without a full stop.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what

        if not self.mend:
            return f"{head}."

        return f"{head}. {self.mend}" + ("" if self.mend.endswith("?") else ".")


class BadInput(OffkeyError):
    """A file, field or prompt that cannot be used as it is."""


class MissingMask(BadInput):
    """A batch of texts that does not say which tokens are padding."""


class BadValue(OffkeyError):
    """A setting outside what is allowed."""


class ModelBusy(OffkeyError):
    """A model that another thread uses in a way that does not go together with this."""


class NoMatchingParameters(BadValue):
    """A pattern that matches no parameter of the model."""


class NotEnoughData(OffkeyError):
    """Fewer prompts than the request needs."""


class NonFinite(OffkeyError):
    """NaN or infinity inside the model; names the site and the prompt."""


class NonFiniteCost(NonFinite):
    """A cost that is NaN or infinite where it must be a number."""


class InvalidAnchor(BadValue):
    """A cost that is not zero where nothing is perturbed."""


class RadiusNotFound(OffkeyError):
    """The cost crossed the cutoff on no ray; names the status of the search."""


class PrecisionTooLow(BadValue):
    """Weights so coarse that a perturbation would round away."""


class UnmappedModel(OffkeyError):
    """A model whose sites could not be found or proved; names what is missing."""


class Damaged(OffkeyError):
    """A stored artefact that was truncated or edited."""


class Mismatch(OffkeyError):
    """Two things that do not belong together: model and detector, folder and settings."""


class PriorMismatch(Mismatch):
    """A Gaussian measure without its width, or volumes of different widths, cutoffs or data."""


class Unwritable(OffkeyError):
    """An output folder or file that cannot be written."""


class Offline(OffkeyError):
    """A download was needed and the network did not answer."""


class MissingExtra(OffkeyError):
    """An optional library that the request needs is not installed."""


class UnknownName(OffkeyError):
    """A name that is not known, with the nearest ones that are.

    Args:
        kind: what the name should have been, such as ``"site"``.
        name: the name that was given.
        known: the names that exist.
        where: the file, line or option that held it.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "") -> None:
        options = sorted(known)
        close = nearest(name, options)
        if close:
            mend = "Did you mean " + " or ".join(close) + "?"
        else:
            mend = "Known: " + ", ".join(options[:12]) + (", …" if len(options) > 12 else "")
        super().__init__(f"unknown {kind} {name!r}", where=where, mend=mend)
        self.kind, self.name, self.known = kind, name, options

    def __str__(self) -> str:
        return (
            super().__str__().removesuffix(".") if self.mend.endswith("?") else super().__str__()
        )


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """The known names most like ``name``, best first; empty where none is close."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def check(
    ok: bool, what: str, *, where: str = "", mend: str = "", error: type[OffkeyError] = BadValue
) -> None:
    """Raises an error unless a condition holds.

    Args:
        ok: the condition.
        what: what is wrong where it does not hold.
        where: the file and line, site, prompt or parameter it concerns.
        mend: what to do about it.
        error: class of the error.

    Raises:
        OffkeyError: the condition does not hold.
    """
    if not ok:
        raise error(what, where=where, mend=mend)


def check_choice(where: str, value: object, choices: Collection[object]) -> None:
    """Refuses a value that is not among the choices.

    Raises:
        BadValue: names the choices.
    """
    if value not in choices:
        mend = "Use " + " or ".join(map(repr, choices))
        raise BadValue(f"{value!r} is not allowed", where=where, mend=mend)


def check_positive(where: str, value: float) -> None:
    """Refuses zero, negative numbers and NaN.

    Raises:
        BadValue: the value is not above zero.
    """
    if not value > 0:
        raise BadValue(f"{value} is not positive", where=where)


def check_at_least(where: str, value: float, least: float) -> None:
    """Refuses numbers below ``least``, and NaN.

    Raises:
        BadValue: the value is too small.
    """
    if not value >= least:
        raise BadValue(f"{value} is less than {least}", where=where)
