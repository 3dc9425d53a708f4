"""Measures the structure of the package: how much a call crosses, and how files hang together.

Run it on two checkouts to compare them::

    python -m benchmarks.structure --before PATH/TO/OLD/CHECKOUT --out docs/results/structure.json

A call's *files* are the distinct files of the package that it enters; its *frames* are the most
frames of the package that stand on the stack at once. Both are counted by the interpreter's
profile hook, on the bundled model, in a process of its own, in which the call was made once before
on another copy of the model: what is imported on the way does not count.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offkey.storage import write_results

__all__ = ["calls", "files", "main"]

HERE = Path(__file__).resolve()
OUT = Path("docs/results/structure.json")
PACKAGE = "offkey"
COMMAND = "python -m benchmarks.structure --before PATH"
CALLS = ("Model.read", "Model.generate", "Detector.fit", "offkey detect")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures this checkout, and another one beside it where one is given."""
    options = _parser().parse_args(arguments)
    if options.trace is not None:
        print(json.dumps(_trace(options.trace, Path(options.folder))))
        return 0

    checkouts = {"after": HERE.parents[1]}
    if options.before is not None:
        checkouts = {"before": options.before.resolve(), **checkouts}
    measured = {
        name: {**files(path / "src" / PACKAGE), **calls(path / "src")}
        for name, path in checkouts.items()
    }
    rows = [
        {"measure": measure, **{name: values[measure] for name, values in measured.items()}}
        for measure in next(iter(measured.values()))
    ]
    for row in rows:
        print(f"{row['measure']:48}", *(f"{row[name]:>8}" for name in checkouts))
    if options.out is not None:
        write_results(options.out, rows, command=COMMAND, seeds=())

    return 0


def calls(source: Path) -> dict[str, int]:
    """Files and frames of each call, on the package that lies in ``source``."""
    measured: dict[str, int] = {}
    for name in CALLS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(HERE), "--trace", name, "--folder", folder]
            environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
        counted = json.loads(done.stdout.splitlines()[-1])
        measured[f"{name}: files"] = counted["files"]
        measured[f"{name}: frames"] = counted["frames"]

    return measured


def files(package: Path) -> dict[str, int]:
    """Counts of a package's files, lines, names, importers and import circles."""
    trees = {_module(path, package): ast.parse(path.read_text()) for path in _sources(package)}
    imports = {module: _imports(tree, module, trees) for module, tree in trees.items()}
    importers: dict[str, set[str]] = defaultdict(set)
    for module, imported in imports.items():
        for each in imported:
            if _is_inner(module, package):
                importers[each].add(module)
    inner = [module for module in trees if _is_inner(module, package)]
    lines = [len(path.read_text().splitlines()) for path in _sources(package)]
    classes = Counter(
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    text = "\n".join(path.read_text() for path in _sources(package))

    return {
        "files": len(trees),
        "lines": sum(lines),
        "lines of the median file": sorted(lines)[len(lines) // 2],
        "public names of rooms": sum(len(_public(trees, module)) for module in _rooms(trees)),
        "modules with a single importer": sum(len(importers[module]) == 1 for module in inner),
        "modules in import circles": sum(len(circle) for circle in _circles(imports)),
        "class names that stand twice": sum(count > 1 for count in classes.values()),
        "lines kept from the formatter": text.count("# fmt: skip"),
    }


def _sources(package: Path) -> Iterator[Path]:
    yield from sorted(package.rglob("*.py"))


def _module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_inner(module: str, package: Path) -> bool:
    """Whether a module is no package of its own, such as a room."""
    return not (package.parent.joinpath(*module.split(".")) / "__init__.py").exists()


def _rooms(trees: Mapping[str, ast.Module]) -> list[str]:
    """Packages, and modules at the top."""
    return [
        module
        for module in trees
        if module.count(".") == 1 or any(other.startswith(f"{module}.") for other in trees)
    ]


def _public(trees: Mapping[str, ast.Module], module: str) -> list[str]:
    """What ``__all__`` lists."""
    for node in trees[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [ast.unparse(each) for each in getattr(node.value, "elts", [])]
    return []


def _imports(tree: ast.Module, module: str, known: Mapping[str, ast.Module]) -> set[str]:
    """Modules of the package that a module imports, wherever the statement stands.

    A name that a room's ``__init__`` gathers counts as an import of the module that defines it.
    """
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {_home(node.module, alias.name, known) for alias in node.names}

    return {name for name in imported if name in known and name != module}


def _home(module: str, name: str, known: Mapping[str, ast.Module]) -> str:
    """The module that ``from module import name`` ends at."""
    if f"{module}.{name}" in known:
        return f"{module}.{name}"
    for node in known[module].body if module in known else ():
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if any((alias.asname or alias.name) == name for alias in node.names):
                return _home(node.module, name, known)
    return module


def _circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, directly or through others (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            place = stack.index(module)
            circle, stack[place:] = stack[place:], []
            if len(circle) > 1:
                circles.append(circle)

    sys.setrecursionlimit(10_000)
    for module in sorted(imports):
        if module not in index:
            visit(module)

    return circles


class _Counter:
    """Counts files and frames of the package while a call runs."""

    def __init__(self, package: str) -> None:
        self.package, self.files, self.depth, self.deepest = package, set[str](), 0, 0

    def __call__(self, frame: Any, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if not path.startswith(self.package) or frame.f_code.co_name == "<module>":
            return
        if event == "call":
            self.files.add(path)
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
        elif event == "return":
            self.depth -= 1

    def during(self, call: Callable[[], object]) -> dict[str, int]:
        """What a call crosses."""
        sys.setprofile(self)
        try:
            call()
        finally:
            sys.setprofile(None)
        return {"files": len(self.files), "frames": self.deepest}


def _trace(name: str, folder: Path) -> dict[str, int]:
    """Runs one call under the profile hook; only what both checkouts have is used."""
    import offkey
    from offkey.data import Prompts, pack

    counter = _Counter(str(Path(offkey.__file__).parent))
    texts = [f"The number {n} comes after {n - 1} and before" for n in range(120)]
    prompts = Prompts({"prompt": texts})
    for role, rows in (("trusted", range(100)), ("test", range(100, 120))):
        prompts.take(rows).to_jsonl(folder / f"{role}.jsonl")

    def prepared(number: int) -> Callable[[], object]:
        if name == "offkey detect":
            return lambda: _detect(folder, folder / f"run-{number}")
        model = offkey.load("smollm2-135m-instruct")
        (batch, *_) = pack(prompts.take(range(4)), model.tokenizer)
        detector = offkey.Detector("activations")
        return {
            "Model.read": lambda: model.read(batch, "resid_post.*"),
            "Model.generate": lambda: model.generate(batch, max_new_tokens=3),
            "Detector.fit": lambda: detector.fit(model, prompts),
        }[name]

    prepared(0)()
    return counter.during(prepared(1))


def _detect(prompts: Path, out: Path) -> None:
    """The command line, in this process; what it prints goes to standard error."""
    from offkey.cli import main as command

    sys.argv = [
        *("offkey", "detect", "--model", "smollm2-135m-instruct"),
        *("--trusted", str(prompts / "trusted.jsonl"), "--test", str(prompts / "test.jsonl")),
        *("--out", str(out)),
    ]
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        command()
    finally:
        sys.stdout = stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--out", type=Path, help=f"results file, such as {OUT}")
    parser.add_argument("--trace", choices=CALLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)

    return parser


if __name__ == "__main__":
    sys.exit(main())
