"""What is shipped: two wheels that work together in an empty environment, and the citation."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import offkey

ROOT = Path(__file__).parents[1]
SHIPPED = ("adapter_config.json", "adapter_model.safetensors", "recipe.json")


def _project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def _copied(source, to, names):
    """Some files and folders of a project: a build leaves folders of its own beside them."""
    to.mkdir()
    for name in names:
        if (source / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source / name, to / name, ignore=leave)
        else:
            shutil.copy(source / name, to / name)
    return to


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Both wheels; of the organisms, which would take a minute, only two."""
    place = tmp_path_factory.mktemp("wheels")
    package = _copied(ROOT, place / "offkey", ["src", "pyproject.toml", "README.md", "LICENSE"])
    own = ["__init__.py", "pyproject.toml", "README.md", "year", "population/genie-0"]
    organisms = _copied(ROOT / "organisms", place / "organisms", own)
    build = "-m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir"
    command = [sys.executable, *build.split(), place / "out", package, organisms]
    subprocess.run(command, check=True, capture_output=True)
    return sorted((place / "out").iterdir())


@pytest.fixture(scope="module")
def python(wheels, tmp_path_factory):
    """An interpreter whose environment holds the wheels, and libraries but no checkout."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    return place / "bin" / "python"


def _run(python, script, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", script], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FOUND = """
import offkey, offkey_organisms
from offkey.checkpoints import adapter_folder, bundled_adapters
print(offkey.__file__)
print(offkey_organisms.__file__)
print(offkey.__version__)
print(*sorted(bundled_adapters()))
print(adapter_folder("bundled:year"))
"""


def test_both_wheels_are_found_in_an_empty_environment(python, tmp_path):
    package, organisms, version, names, folder = _run(python, FOUND, tmp_path)

    site = python.parents[1] / "lib"
    assert Path(package).is_relative_to(site)
    assert Path(organisms).is_relative_to(site)
    assert version == _project(ROOT)["project"]["version"]
    assert names == "agreement comparison population/genie-0 year"
    assert {path.name for path in Path(folder).iterdir()} == set(SHIPPED)


LOADED = """
import offkey
model = offkey.load("smollm2-135m-instruct", adapter="bundled:year")
print(model.adapter)
print(model.fingerprint)
"""


@pytest.mark.real
def test_an_adapter_of_the_wheel_loads(python, bundled, tmp_path):
    name, fingerprint = _run(python, LOADED, tmp_path)

    assert name == "bundled:year"
    assert fingerprint != bundled.fingerprint


def test_the_wheel_of_organisms_holds_every_adapter():
    folder = ROOT / "organisms"
    patterns = _project(folder)["tool"]["setuptools"]["package-data"]["offkey_organisms"]
    packed = {path for pattern in patterns for path in folder.glob(pattern)}

    there = {path for name in SHIPPED for path in folder.rglob(name) if "build" not in path.parts}
    assert packed == there


def test_versions_agree():
    version = _project(ROOT)["project"]["version"]

    assert _project(ROOT / "organisms")["project"]["version"] == version
    assert offkey.__version__ == metadata.version("offkey")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version


def test_the_citation_is_whole():
    """As the Citation File Format 1.2.0 wants it."""
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    citation = yaml.safe_load(text)

    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    for key in ("title", "message", "abstract", "version", "license"):
        assert isinstance(citation[key], str), key
        assert citation[key].strip(), key
    assert date.fromisoformat(citation["date-released"])
    assert citation["license"] == _project(ROOT)["project"]["license"]
    assert all(set(author) == {"name"} and author["name"] for author in citation["authors"])
    assert len(set(citation["keywords"])) == len(citation["keywords"]) > 0
