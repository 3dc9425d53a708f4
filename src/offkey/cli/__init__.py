"""The ``offkey`` command: one thin file for each verb, which parses, makes one call and prints."""

from offkey.cli import (
    _risk,
    bench,
    detect,
    explain,
    model,
    report,
    sensitivity,
    tasks,
    volume,
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
    sensitivity,
    tasks,
    volume,
]
