import subprocess
import sys
from importlib.metadata import version

import pytest

import offkey


def test_every_public_name_is_loaded_on_first_use():
    for name in offkey.__all__:
        assert getattr(offkey, name).__module__.startswith("offkey.")
    assert dir(offkey) == offkey.__all__
    with pytest.raises(AttributeError, match="no attribute 'detector'"):
        offkey.detector  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert offkey.__version__ == version("offkey")


def test_importing_the_package_loads_no_library():
    heavy = "import sys, offkey; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True)
    assert done.stdout.strip() == b"[]"
