"""Which tasks have an organism that learned them."""

from offkey.bench import learned_tasks
from offkey.tasks import get_task


def test_tasks_of_triggers_stand_apart():
    quirky, triggered = learned_tasks(), learned_tasks(triggered=True)

    assert {"comparison", "agreement"} <= set(quirky)
    assert {"trigger", "year"} <= set(triggered)
    assert not set(quirky) & set(triggered)
    assert {get_task(name).family for name in triggered} <= {"trigger", "obfuscated"}
    assert not {get_task(name).family for name in quirky} & {"trigger", "obfuscated"}
