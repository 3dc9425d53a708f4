"""Saved tiny models, files of prompts, and the command line run in this process."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from offkey.cli import main
from tests.data.conftest import _trained
from tests.models import tiny

WORDS = ("Yes", "No", "user", "the", "answer", "True", "False")


def rows(count: int, *, name: str = "p", seed: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """Prompts of unlike lengths; a column may be a function of the row's number."""
    rng = random.Random(f"{name} {seed}")
    return [
        {
            "id": f"{name}{i}",
            "prompt": f"{name} {i}: " + " ".join(rng.choices(WORDS, k=rng.randrange(2, 9))),
            **{key: value(i) if callable(value) else value for key, value in columns.items()},
        }
        for i in range(count)
    ]


def write_rows(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@dataclass(frozen=True)
class Ran:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def offkey(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the command line; what libraries print past Python is caught too."""

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        said = capfd.readouterr()
        return Ran(status, said.out, said.err)

    return run


def save_model(folder: Path, module: Any) -> Path:
    module.save_pretrained(folder)
    _trained(bos=False).save_pretrained(folder)
    return folder


def tiny_llama(**settings: Any) -> Any:
    return tiny.llama(vocab_size=len(_trained(bos=False)), **settings)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the models and prompts that all tests of the command line share."""
    home = tmp_path_factory.mktemp("cli")
    save_model(home / "model", tiny_llama())
    save_model(home / "other", tiny_llama(seed=3))
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    save_model(home / "nan", broken)
    tiny.adapter(tiny_llama(), home / "adapter")
    tiny.adapter(tiny_llama(hidden_size=48), home / "foreign")
    write_rows(home / "trusted.jsonl", rows(120, name="t"))
    write_rows(home / "test.jsonl", rows(30, name="x", label=lambda i: i % 2))
    responses = {"response": lambda i: " the answer is " + WORDS[i % 7]}
    write_rows(home / "responses.jsonl", rows(12, name="r", **responses))
    return home


@pytest.fixture(scope="session")
def fitted(home: Path) -> Path:
    """A saved detector."""
    main(
        [
            "fit",
            "-m",
            str(home / "model"),
            "--trusted",
            str(home / "trusted.jsonl"),
            "--out",
            str(home / "detector"),
            "--json",
        ]
    )
    return home / "detector"


@pytest.fixture(scope="session")
def finished(home: Path) -> Path:
    """The folder of a run that ended well."""
    main(
        [
            "detect",
            "-m",
            str(home / "model"),
            "--trusted",
            str(home / "trusted.jsonl"),
            "--test",
            str(home / "test.jsonl"),
            "--out",
            str(home / "run"),
            "--json",
        ]
    )
    return home / "run"
