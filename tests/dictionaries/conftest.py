"""A tiny model that reads texts, and texts."""

import pytest

from offkey.data import Prompts
from offkey.models import Model
from tests.dictionaries.reader import random_texts, reader


@pytest.fixture(scope="session")
def model() -> Model:
    return reader()


@pytest.fixture(scope="session")
def texts() -> Prompts:
    return random_texts()
