"""The ``offkey`` command: one thin file for each verb, which parses, makes one call and prints."""

from offkey.cli import (
    _detect,
    _explain,
    _risk,
    _sensitivity,
    _volume,
    bench,
    model,
    report,
    tasks,
)
from offkey.cli.application import app, main

__all__ = ["app", "main"]

VERBS = [
    bench,
    _detect,
    _explain,
    model,
    report,
    _risk,
    _sensitivity,
    tasks,
    _volume,
]
