"""How many threads compute: as requested, or by the model and by what else the machine does."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tinkersmith.engine.hardware.threads import (
    LOAD_SPAN,
    READ_USE_EVERY,
    ThreadChoice,
    machine_cpu_time,
    requested_threads,
    wait_passively,
)


@dataclass
class Machine:
    """A machine of 8 cores whose load and clock the test sets; it does not tell CPU times."""

    load: float = 0.0
    now: float = 0.0
    used: float = 0.0  # CPU seconds of the engine

    def choice(self, requested: int = 0, cores: int = 8) -> ThreadChoice:
        return ThreadChoice(
            *(requested, cores, 8, lambda: self.load, lambda: self.now, lambda: self.used),
            all_cpu_time=lambda: self.used_by_all(),
        )

    def used_by_all(self) -> float | None:
        return None

    def pass_time(self, load: float, own: float = 0.0) -> None:
        """Let time pass with this load, in which the engine itself kept `own` cores busy."""
        self.now += LOAD_SPAN / 2
        self.used += own * LOAD_SPAN / 2
        self.load = load


@dataclass
class LinuxMachine(Machine):
    """One that tells CPU times; its load average is that of the last minute's programs."""

    others: float = 0.0  # CPU seconds of other programs

    def used_by_all(self) -> float:
        return self.used + self.others

    def work(self, others: float, own: float = 0.0, seconds: float = READ_USE_EVERY) -> None:
        """Let others keep so many cores busy for a while, and the engine `own` ones."""
        self.now += seconds
        self.others += others * seconds
        self.used += own * seconds


def number(choice: ThreadChoice) -> int:
    return choice.number(small=False)


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [
        (3, "2", 3),
        (0, "2", 2),
        (0, "4,2", 4),
        (0, None, 0),
        (0, "", 0),
        (0, "many", 0),
        (0, "-1", 0),
    ],
)
def test_the_option_comes_before_the_variable_and_that_before_the_choice(
    option: int, variable: str | None, expected: int
) -> None:
    environment = {} if variable is None else {"OMP_NUM_THREADS": variable}
    assert requested_threads(option, environment) == expected


def test_threads_wait_passively_unless_the_user_chose_otherwise() -> None:
    environment: dict[str, str] = {}
    wait_passively(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive"}
    for name, value in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "1000")):
        chosen = {name: value}
        wait_passively(chosen)
        assert chosen == {name: value}


def test_a_requested_number_stays_whatever_the_machine_does() -> None:
    machine = Machine(load=40)
    assert number(machine.choice(requested=6)) == 6


def test_an_idle_machine_gives_all_cores_and_a_small_model_takes_half_of_them() -> None:
    choice = Machine().choice()
    assert number(choice) == 8
    assert choice.number(small=True) == 4
    assert number(choice) == 8


def test_a_process_on_some_of_the_cores_takes_no_more_than_those() -> None:
    assert number(Machine(load=3).choice(cores=4)) == 4


def test_a_busy_machine_gets_fewer_threads_but_at_least_one() -> None:
    assert number(Machine(load=5).choice()) == 3
    assert number(Machine(load=50).choice()) == 1


def test_work_that_is_resumed_keeps_its_number_on_a_busy_machine() -> None:
    assert Machine(load=50).choice().kept(6) == 6
    assert Machine(load=50).choice(cores=4).kept(6) == 4  # it was begun on a larger machine
    assert Machine().choice(requested=2).kept(6) == 2


def test_the_engine_does_not_give_way_to_its_own_load() -> None:
    machine = Machine()
    choice = machine.choice()
    for _ in range(5):
        machine.pass_time(load=8, own=7.8)
        assert number(choice) == 8


def test_the_number_follows_the_load_both_ways() -> None:
    machine = Machine()
    choice = machine.choice()
    machine.pass_time(load=11, own=5)
    assert number(choice) == 2
    machine.pass_time(load=2, own=2)
    assert number(choice) == 8


def test_the_number_does_not_flutter_with_a_load_that_is_nearly_the_same() -> None:
    machine = Machine(load=4)
    choice = machine.choice()
    assert number(choice) == 4
    for load in (4.7, 3.4, 4.0, 4.6):
        machine.pass_time(load=load)
        assert number(choice) == 4
    machine.pass_time(load=4.8)
    assert number(choice) == 3


def test_the_load_is_looked_at_once_in_a_while_only() -> None:
    machine = Machine()
    choice = machine.choice()
    machine.load = 6
    machine.now += LOAD_SPAN / 4
    assert number(choice) == 8
    machine.now += LOAD_SPAN / 4
    assert number(choice) == 2


def test_programs_that_have_ended_take_no_threads_although_the_load_average_shows_them() -> None:
    machine = LinuxMachine(load=8)
    choice = machine.choice()
    assert number(choice) == 1
    machine.work(others=0, own=1)
    assert number(choice) == 8


def test_a_program_that_has_just_begun_takes_threads_before_the_load_average_shows_it() -> None:
    machine = LinuxMachine()
    choice = machine.choice()
    machine.work(others=3, own=5)
    assert number(choice) == 5
    machine.work(others=3.6, own=4.4)  # no more than before, so the number does not flutter
    assert number(choice) == 5


def test_clients_that_use_a_part_of_a_core_take_no_thread() -> None:
    machine = LinuxMachine()
    choice = machine.choice()
    for _ in range(3):
        machine.work(others=0.6, own=7)
        assert number(choice) == 8


def test_after_a_long_pause_the_load_average_counts_and_not_the_mean_of_the_pause() -> None:
    machine = LinuxMachine()
    choice = machine.choice()
    machine.work(others=8, seconds=10 * LOAD_SPAN)  # and they have ended some minutes ago
    assert number(choice) == 8


def test_the_machine_is_looked_at_every_two_seconds_at_most() -> None:
    machine = LinuxMachine()
    choice = machine.choice()
    machine.work(others=7, seconds=READ_USE_EVERY / 2)
    assert number(choice) == 8
    machine.work(others=7, seconds=READ_USE_EVERY / 2)
    assert number(choice) == 1


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system tells no CPU times")
def test_the_cpu_time_of_the_machine_grows_by_what_this_process_uses() -> None:
    before, own, begun = machine_cpu_time(), time.process_time(), time.monotonic()
    while time.process_time() - own < 0.3:
        pass
    after, cores = machine_cpu_time(), os.cpu_count() or 1
    assert before is not None and after is not None
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert 0.3 - 2 * tick <= after - before <= cores * (time.monotonic() - begun + 2 * tick)
