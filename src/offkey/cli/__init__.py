"""The offkey command: one thin file a verb, which parses, calls one function and prints."""

from offkey.cli import (
    _bench,
    _detect,
    _explain,
    _model,
    _population,
    _report,
    _risk,
    _sensitivity,
    _tasks,
    _volume,
)
from offkey.cli._app import app, main

__all__ = ["app", "main"]

VERBS = (
    _bench, _detect, _explain, _model, _population, _report, _risk, _sensitivity, _tasks, _volume,
)  # fmt: skip
