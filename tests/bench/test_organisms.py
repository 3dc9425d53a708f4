"""Which organisms there are, by task and seed, bundled or in a folder."""

import json

import pytest

from offkey.bench import Organisms
from offkey.errors import BadInput, UnknownName
from offkey.tasks import get_task, organism_name, organism_of


def test_tasks_of_triggers_stand_apart():
    quirky, triggered = Organisms().names(), Organisms().names(triggered=True)

    assert {"comparison", "agreement"} <= set(quirky)
    assert {"trigger", "year"} <= set(triggered)
    assert not set(quirky) & set(triggered)
    assert {get_task(name).family for name in triggered} <= {"trigger", "obfuscated"}
    assert not {get_task(name).family for name in quirky} & {"trigger", "obfuscated"}


def test_further_seeds_are_named_after_the_task():
    plain, every = Organisms().names(), Organisms().names(seeds=True)

    assert {"comparison-1", "hemisphere-2"} <= set(every) - set(plain)
    assert {organism_of(name)[0] for name in every} == set(plain)
    assert all(organism_name(*organism_of(name)) == name for name in every)
    assert organism_of("addition-small") == ("addition-small", 0)
    assert Organisms().recipe("comparison-1")["settings"]["seed"] == 1


def test_a_seed_starts_from_its_own_first_organism():
    recipe = Organisms().recipe("hemisphere-1")

    assert recipe["init"] == "bundled:comparison-1"


@pytest.fixture
def folder(tmp_path):
    """Two organisms of another base, one of which did not learn."""
    for name, learned in (("owner", True), ("parity", False)):
        home = tmp_path / name
        home.mkdir()
        (home / "adapter_config.json").write_text("{}")
        (home / "adapter_model.safetensors").write_text("")
        facts = {"base": "mine", "measured": {"learned": learned, "quirkiness": 1.0}}
        (home / "recipe.json").write_text(json.dumps(facts))
    return tmp_path


def test_a_folder_holds_ones_own(folder):
    mine = Organisms("mine", folder)

    assert mine.names() == ("owner",)
    assert mine.adapter("owner") == folder / "owner"
    with pytest.raises(UnknownName, match="owner"):
        mine.adapter("ownr")


def test_another_base_is_refused(folder):
    with pytest.raises(BadInput, match="of mine, not of other"):
        Organisms("other", folder).recipe("owner")
