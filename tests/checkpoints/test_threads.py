"""Threads: how many, from what, and what is said."""

import os

import pytest
import torch

from offkey.checkpoints import machine
from offkey.checkpoints.machine import choose_threads
from offkey.errors import BadValue


@pytest.fixture(autouse=True)
def _restore():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def computer(monkeypatch):
    """A machine with four cores, told how busy it is."""

    def set_up(load, **environment):
        monkeypatch.setattr(machine, "_cores", lambda: 4)
        monkeypatch.setattr(machine, "_load", lambda: load)
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_up


def test_one_thread_a_core_on_an_idle_machine(computer):
    computer(0.1)
    assert str(choose_threads()) == "4 threads (4 physical cores)"
    assert torch.get_num_threads() == 4


def test_spinning_threads_leave_busy_cores_alone(computer):
    computer(2.2)
    assert choose_threads().count == 2
    computer(9.0)
    assert choose_threads().count == 1


def test_passive_threads_need_not(computer):
    computer(2.2, OMP_WAIT_POLICY="passive")
    chosen = choose_threads()
    assert chosen.count == 4
    assert str(chosen).endswith("the machine is busy (load 2.2 on 4 cores)")


def test_the_users_number_is_kept(computer):
    torch.set_num_threads(1)
    computer(0.0, OMP_NUM_THREADS="1")
    assert str(choose_threads()) == "1 thread (OMP_NUM_THREADS)"

    computer(3.0, OMP_NUM_THREADS="1")
    said = str(choose_threads(3))
    assert said.startswith("3 threads (as asked); the machine is busy")
    assert "OMP_WAIT_POLICY=PASSIVE" in said


@pytest.mark.parametrize("threads", [0, -1, 1.5, "many"])
def test_not_a_number_of_threads(threads):
    with pytest.raises(BadValue, match="is not a number of threads"):
        choose_threads(threads)


def test_cores_here_are_no_more_than_the_processors_here():
    assert 1 <= machine._cores() <= len(os.sched_getaffinity(0))


def test_hardware_threads_of_one_core_count_once(monkeypatch, tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(machine, "_allowed", lambda: {0, 1, 2, 3})
    assert machine._cores() == 2

    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert machine._cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine._cores() == 2
