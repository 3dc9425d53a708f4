"""The ``offkey`` command: one thin file for each verb, which parses, makes one call and prints."""

from offkey.cli import (
    _detect,
    _explain,
    _model,
    _population,
    _risk,
    _sensitivity,
    _tasks,
    _volume,
    bench,
    report,
)
from offkey.cli.application import app, main

__all__ = ["app", "main"]

VERBS = [
    bench,
    _detect,
    _explain,
    _model,
    _population,
    report,
    _risk,
    _sensitivity,
    _tasks,
    _volume,
]
