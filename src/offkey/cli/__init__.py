"""The ``offkey`` command: one thin file for each verb, which parses, makes one call and prints."""

from offkey.cli import (
    _risk,
    _sensitivity,
    _volume,
    bench,
    detect,
    explain,
    model,
    report,
    tasks,
)
from offkey.cli.application import app, main

__all__ = ["app", "main"]

VERBS = [
    bench,
    detect,
    explain,
    model,
    report,
    _risk,
    _sensitivity,
    tasks,
    _volume,
]
