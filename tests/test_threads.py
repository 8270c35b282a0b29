"""Threads for the cores that others leave: chosen at the start, followed, never against orders."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from newllm import cores, threads
from newllm.cores import Load
from newllm.threads import FreeThreads, TrainingThreads


class Machine:
    """Four cores, of which others keep some busy; steps take as long as `pace` says."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.busy, self.threads, self.clock = 0.0, 4, 0.0
        self.said: list[str] = []
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(torch, "get_num_threads", lambda: self.threads)
        patch.setattr(torch, "set_num_threads", self.set)
        patch.setattr(threads, "usable_cores", lambda: 4)
        patch.setattr(threads.time, "sleep", lambda seconds: None)
        patch.setattr(threads.time, "monotonic", lambda: self.clock)
        patch.setattr(Load, "busy", lambda load: self.busy)

    def set(self, count: int) -> None:
        self.threads = count

    def steps(self, training: TrainingThreads, count: int, pace: Callable[[int], float]) -> None:
        """Train so many steps, which take `pace(threads)` seconds."""
        for _ in range(count):
            self.clock += pace(self.threads)
            training.after_step(pace(self.threads), 1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def starved(busy: int) -> Callable[[int], float]:
    """Seconds of a step: threads beyond the free cores make all wait."""
    return lambda count: 1 / count if count <= 4 - busy else 4.0


def test_all_cores_of_a_quiet_machine_from_start_to_end(machine: Machine) -> None:
    training = TrainingThreads(None, True, machine.said.append)
    machine.steps(training, 100, starved(0))
    assert machine.threads == 4
    assert machine.said == []


def test_what_others_use_is_left_to_them(machine: Machine) -> None:
    machine.busy = 1.1
    TrainingThreads(None, True, machine.said.append)
    assert machine.threads == 3
    assert machine.said == ["Threads 3 of 4: other programs keep 1.1 core(s) busy"]


def test_one_thread_is_always_left(machine: Machine) -> None:
    machine.busy = 9.0
    TrainingThreads(None, True)
    assert machine.threads == 1


def test_slow_steps_beside_others_take_fewer_threads_until_they_end(machine: Machine) -> None:
    training = TrainingThreads(None, True, machine.said.append)
    machine.steps(training, 20, starved(0))
    machine.busy = 2.0
    machine.steps(training, 20, starved(2))
    assert machine.threads == 2
    assert "2 thread(s) instead of 4" in machine.said[0]
    machine.busy = 0.0
    machine.steps(training, 20, starved(0))
    assert machine.threads == 4
    assert len(machine.said) == 2


def test_a_number_that_does_not_help_is_given_up(machine: Machine) -> None:
    training = TrainingThreads(None, True, machine.said.append)
    machine.steps(training, 20, starved(0))
    machine.busy = 2.0
    tried: list[int] = []

    def slower_anyway(count: int) -> float:
        tried.append(count)
        return 4.0

    machine.steps(training, 100, slower_anyway)
    assert machine.threads == 4
    assert 2 in tried
    assert machine.said == []
    assert tried.count(2) < tried.count(4)


def test_slow_steps_of_a_quiet_machine_change_nothing(machine: Machine) -> None:
    """Longer rows, or a machine that throttles itself: fewer threads would not help."""
    training = TrainingThreads(None, True, machine.said.append)
    machine.steps(training, 20, lambda count: 1.0)
    machine.steps(training, 20, lambda count: 3.0)
    assert machine.threads == 4


@pytest.mark.parametrize("order", ["--threads", "OMP_NUM_THREADS", "not to be followed"])
def test_an_order_is_an_order(
    order: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.busy = 3.0
    if order == "OMP_NUM_THREADS":
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
    training = TrainingThreads(4 if order == "--threads" else None, order != "not to be followed")
    machine.steps(training, 20, starved(3))
    if order == "OMP_NUM_THREADS":
        FreeThreads().look(0)
    assert machine.threads == 4


def test_a_resumed_run_goes_on_with_its_threads(machine: Machine) -> None:
    TrainingThreads(None, True).resume(2)
    assert machine.threads == 2
    TrainingThreads(3, True).resume(2)
    assert machine.threads == 3


def test_a_server_looks_again(machine: Machine) -> None:
    free = FreeThreads()
    machine.busy = 2.0
    free.look()
    assert machine.threads == 4  # it was looked at just now
    machine.clock += 3
    free.look()
    assert machine.threads == 2
    machine.busy, machine.clock = 0.0, machine.clock + 3
    free.look()
    assert machine.threads == 4


def test_load_is_that_of_others() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        load = Load()
        time.sleep(0.5)
        busy = load.busy()
        other.kill()
    assert busy > 0.2


def test_load_where_cores_are_numbered_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some containers /proc/stat has the container's cores alone, the affinity the machine's."""
    monkeypatch.setattr(cores, "_allowed", lambda: {500, 501})
    assert Load().busy() >= 0


@pytest.mark.parametrize(
    ("files", "cores_allowed"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_quota_of_a_container(files: dict[str, str], cores_allowed: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores._quota(tmp_path) == cores_allowed
