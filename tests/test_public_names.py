import subprocess
import sys

import pytest

import offkey


def test_every_public_name_is_loaded_on_first_use():
    for name in offkey.__all__:
        value = getattr(offkey, name)
        assert name == "__version__" or value.__module__.startswith("offkey.")
    assert dir(offkey) == offkey.__all__
    with pytest.raises(AttributeError, match="no attribute 'detector'"):
        offkey.detector  # noqa: B018


def test_importing_the_package_loads_no_library():
    heavy = "import sys, offkey; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True)
    assert done.stdout.strip() == b"[]"
