"""Published numbers that the estimates must reproduce, one module for each section.

A module here exposes ``rows() -> list[dict[str, Any]]``: what :func:`row` or :func:`printed_row`
returned, one for each number. ``python -m benchmarks.estimate_oracles`` runs every module of this
package in alphabetical order; nothing is registered. Expected numbers are
stated as published; what is compared with them is computed when ``rows`` is called, in seconds,
with fixed seeds. A module's name is its section: ``circuits``, ``gaussian``, ``risk``.
"""

import importlib
import pkgutil
from typing import Any

__all__ = ["EXACT", "QUADRATURE", "all_rows", "printed_row", "row"]

EXACT = 1e-10
"""Relative tolerance of a closed form."""

QUADRATURE = 1e-6
"""Relative tolerance of what was integrated, or published to about as many digits."""


def row(oracle: str, expected: float, got: float, tolerance: float = EXACT) -> dict[str, Any]:
    """A published number next to the computed one.

    Args:
        oracle: description of the number; unique within its section.
        expected: the published number.
        got: the computed one.
        tolerance: largest relative error (absolute where 0 is expected). For a sampled number
            give 5 standard errors as a share of ``expected``.
    """
    off = abs(float(got) - expected)
    error = off / abs(expected) if expected else off

    return {
        "oracle": oracle,
        "expected": float(expected),
        "got": float(got),
        "relative_error": error,
        "tolerance": tolerance,
        "met": error <= tolerance,
    }


def printed_row(oracle: str, expected: str, got: float) -> dict[str, Any]:
    """One number as it was printed, such as ``"6.165"``: met if it rounds to the same digits."""
    mantissa, _, exponent = expected.lower().partition("e")
    digits = len(mantissa.partition(".")[2])
    half = 0.5000001 * 10.0 ** (int(exponent or 0) - digits)
    size = abs(float(expected))

    return row(oracle, float(expected), got, half / size if size else half)


def all_rows() -> list[dict[str, Any]]:
    """The rows of every section, each with the name of its section in front."""
    gathered = []
    for section in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        module = importlib.import_module(f"{__name__}.{section.name}")
        gathered += [{"section": section.name, **numbers} for numbers in module.rows()]

    return gathered
