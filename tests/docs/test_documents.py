import re
import shlex
import subprocess
import sys

import pytest
import typer

from offkey.cli import app, main
from offkey.errors import OffkeyError
from offkey.scores import score_names
from tests.docs.blocks import ROOT, blocks, documents

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from fill import DOCUMENTS, filled
from methods import feature_rows, score_rows, task_rows
from public_names import undocumented
from verbs import options_of, verbs

PAGES = {str(path.relative_to(ROOT)): path for path in documents()}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
# CONTRIBUTING.md is run by test_contributing.py.
RUN = [
    name
    for name, path in PAGES.items()
    if name != "CONTRIBUTING.md" and any(b.language == "python" or b.run for b in blocks(path))
]
COMMANDS = [
    pytest.param(command, id=f"{name}:{block.line}: {command[:40]}")
    for name, path in PAGES.items()
    for block in blocks(path)
    for command in block.commands
]
LAUNCHERS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:torchrun [^-]*(?:--nproc-per-node \d+ )?-m )?")


def arguments(command: str) -> list[str]:
    """What ``offkey`` is given in a command line, whoever launches it."""
    words = shlex.split(LAUNCHERS.sub("", command))

    return words[1:] if words[0] in ("offkey", ".venv/bin/offkey") else []


@pytest.mark.real
@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_runs(name, desk, capsys):
    space = {"__name__": "__main__"}
    for block in blocks(PAGES[name]):
        if block.language == "python":
            # Lines are counted as in the document, so that a traceback points into it.
            padded = "\n" * (block.line - 1) + block.text
            exec(compile(padded, name, "exec"), space)
        elif block.run:
            for command in block.commands:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", ["offkey"])
                    assert run_command(arguments(command)) == 0, command


def run_command(words: list[str]) -> int:
    """Exit status of a command, run in this process."""
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)

    return 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_given(command):
    first = LAUNCHERS.sub("", command).split()[0]
    if first == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert command.split()[1] in targets
    elif first in ("offkey", ".venv/bin/offkey"):
        parsed(typer.main.get_command(app), arguments(command))
    else:
        assert command.split()[:4] == ["python", "-m", "pip", "install"], command


def parsed(command, words: list[str]) -> None:
    """Parses words down the tree of verbs, as the command line would, and runs nothing."""
    while hasattr(command, "commands"):
        if words[0] == "--help":
            return
        if words[0] not in command.commands and hasattr(command, "default"):
            words = [command.default, *words]
        assert words[0] in command.commands, f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


@pytest.mark.parametrize("words", ["detect --modle x", "score", "sing"])
def test_a_wrong_command_is_not_taken(words):
    usage_error = typer.BadParameter.__mro__[1]
    with pytest.raises((usage_error, AssertionError)):
        parsed(typer.main.get_command(app), words.split())


def test_verbs_named_in_texts_exist_and_all_are_described():
    spoken = set(re.findall(r"`offkey ([a-z]+)", "".join(TEXTS.values())))
    described = {words[0] for words, _ in verbs()}
    assert described == set(typer.main.get_command(app).commands)
    assert spoken <= described
    options = {option for words, verb in verbs() for option, _, _ in options_of(verb)}
    assert {"--trusted", "--alpha", "--redact"} <= options


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_and_pictures_of_a_root_document_exist(name):
    found = re.findall(r'(?:\]\(|srcset="|src=")([^)":#]+)[)"#]', TEXTS[name])
    for target in found:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_pictures_are_small():
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size < 300_000, path.name


def test_the_short_example_of_the_readme_is_ten_lines():
    (block,) = (b for b in blocks(PAGES["README.md"]) if b.language == "python")
    assert len([line for line in block.text.splitlines() if line]) <= 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_of_results_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert filled(text) == text, "run python docs/_ext/fill.py"


def test_a_marked_table_is_made_anew(tmp_path):
    (tmp_path / "speed.json").write_text('{"rows": [{"job": "read", "ratio": 0.9, "peer": "x"}]}')
    text = "a\n<!-- results: speed job, ratio -->\nold\n<!-- end -->\nb\n"
    assert "| read | 0.900 |" in filled(text, tmp_path)
    assert "old" not in filled(text, tmp_path)
    assert "Not measured yet" in filled(text.replace("speed", "other"), tmp_path)


def test_method_tables_hold_every_method():
    assert [row["score"] for row in score_rows()] == list(score_names())
    passes = {row["feature"]: row["passes"] for row in feature_rows()}
    assert passes["bag-of-words"] == "none"
    assert passes["activations"] == "the shared forward"
    sees = {row["feature"]: row["sees"] for row in feature_rows()}
    assert (sees["length"], sees["entropy"], sees["activations"]) == (
        "the input",
        "the output",
        "the inside",
    )
    pools = {row["score"] for row in score_rows() if row["pool"] == "needed"}
    assert pools == {"que", "spectral", "likelihood-ratio"}
    assert all(row["Bob says yes if"] for hub in (True, False) for row in task_rows(hub=hub))


def test_columns_of_a_run_are_those_described(tmp_path):
    from offkey.detect import DetectionRun, Detector
    from tests.detect.planted import model, prompts

    detector = Detector("activations", "mahalanobis", sites="module:route")
    run = DetectionRun(
        model(), [detector], prompts(200, seed=1), prompts(40, seed=2, name="q"), quiet=True
    )
    run.run(tmp_path / "run")
    page = TEXTS["docs/reference/run-folder.md"]
    import pyarrow.parquet as pq

    for name in ("scores", "site_scores"):
        part = page.split(f"## {name}.parquet")[1].split("\n## ")[0]
        described = re.findall(r"^\| `(\w+)` \| (\w+) \|", part, re.MULTILINE)
        schema = pq.read_schema(tmp_path / "run" / f"{name}.parquet")
        words = {"string": "text", "double": "float64"}
        real = [(f.name, words.get(str(f.type), str(f.type))) for f in schema]
        assert described == real
    for file in ("run.json", "metrics.json"):
        import json

        part = page.split(f"## {file}")[1].split("\n## ")[0]
        for key in json.loads((tmp_path / "run" / file).read_text()):
            assert f"`{key}`" in part, (file, key)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_shows_every_public_name(tmp_path):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "--quiet",
            "--fail-on-warning",
            "--keep-going",
            "-t",
            "check",
            "-b",
            "dirhtml",
            ROOT / "docs",
            tmp_path,
        ],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "objects.inv").open("rb") as file:
        shown = InventoryFile.load(file, "", lambda base, uri: uri)
    names = [name for kind, part in shown.items() if kind.startswith("py:") for name in part]
    assert undocumented(names) == []


def test_errors_named_in_documents_exist():
    import offkey.errors

    for text in TEXTS.values():
        for name in re.findall(r"`offkey\.errors\.(\w+)`", text):
            assert issubclass(getattr(offkey.errors, name), OffkeyError)
