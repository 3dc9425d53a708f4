"""The suites as another package uses them: in a process that knows nothing of these tests."""

import os
import subprocess
import sys

FILE = '''
import pytest

from offkey.scores import score_class
from offkey.testing import FAMILY_CONTRACT, ScoreContract, padded_batch, random_model

Mahalanobis = score_class("mahalanobis")


class TestGood(ScoreContract):
    @pytest.fixture
    def make(self):
        return Mahalanobis


class Centred(Mahalanobis):
    """A score of a row less the mean of those beside it."""

    def __call__(self, x):
        return super().__call__(x) - super().__call__(x).mean()


class TestBad(ScoreContract):
    @pytest.fixture
    def make(self):
        return Centred


@pytest.mark.parametrize("check", FAMILY_CONTRACT, ids=lambda check: check.__name__)
def test_family(check):
    check(random_model("qwen2"), padded_batch())
'''


def _run(folder, *arguments):
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_they_run_in_another_package_and_name_what_fails(tmp_path):
    (tmp_path / "test_mine.py").write_text(FILE)
    done = _run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rf", "--tb=short")

    lines = done.stdout.splitlines()
    failed = {line.split("::", 1)[1].split(" ")[0] for line in lines if line.startswith("FAILED")}
    assert "TestBad::test_a_row_does_not_depend_on_its_neighbours" in failed, done.stdout
    assert all(name.startswith("TestBad::") for name in failed)
    assert "where " in done.stdout  # asserts show their values, as in a test file of one's own


def test_only_this_room_needs_pytest_and_says_how_to_get_it(tmp_path):
    script = """if True:
        import sys

        sys.modules["pytest"] = None
        import offkey.bench, offkey.cli, offkey.report

        print("imported")
        import offkey.testing
    """
    done = _run(tmp_path, "-c", script)

    assert done.stdout.split() == ["imported"]
    assert "Run pip install 'offkey[testing]'" in done.stderr.splitlines()[-1]
