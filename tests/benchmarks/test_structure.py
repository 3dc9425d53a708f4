"""Counts of a small package whose structure is known."""

import pytest

from benchmarks.structure import files, main

MODULES = {
    "__init__.py": '__all__ = ["load"]\n',
    "ground/__init__.py": 'from offkey.ground.stone import Stone\n\n__all__ = ["Stone"]\n',
    "ground/stone.py": "class Stone:\n    pass\n",
    "house/__init__.py": '__all__ = ["A", "B"]\n',
    "house/a.py": "from offkey.ground import Stone\nfrom offkey.house.b import B\n\nA = 1\n",
    "house/b.py": "def f():\n    from offkey.house.a import A\n\nclass B:\n    pass\n",
    "house/c.py": "import offkey.house.a\n\nclass B:\n    pass\n\nx = (1, 2)  # fmt: skip\n",
}


@pytest.fixture
def package(tmp_path):
    for name, text in MODULES.items():
        path = tmp_path / "offkey" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return tmp_path / "offkey"


def test_counts_a_package_by_hand(package):
    assert files(package) == {
        "files": 7,
        "lines": sum(text.count("\n") for text in MODULES.values()),
        "lines of the median file": 3,
        "public names of rooms": 4,  # load, Stone, A and B
        # stone is used by house.a through its room, b by a alone; a by b and c; c by nobody.
        "modules with a single importer": 2,
        "modules in import circles": 2,  # a and b, one of them inside a function
        "class names that stand twice": 1,  # B
        "lines kept from the formatter": 1,
    }


def test_a_call_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--trace", "Model.reed"])
    assert "invalid choice" in capsys.readouterr().err
