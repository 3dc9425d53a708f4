"""The ``offkey`` command: one thin file for each verb, which parses, makes one call and prints."""

from offkey.cli import (
    _detect,
    _explain,
    _model,
    _population,
    _risk,
    _tasks,
    bench,
    report,
    sensitivity,
    volume,
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
    sensitivity,
    _tasks,
    volume,
]
