"""The ``offkey`` command: one thin file for each verb, which parses, makes one call and prints."""

from offkey.cli import (
    bench,
    detect,
    explain,
    model,
    report,
    risk,
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
    risk,
    sensitivity,
    tasks,
    volume,
]
