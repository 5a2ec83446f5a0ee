"""How many threads compute: as requested, or by the model and by what else the machine does."""

from dataclasses import dataclass

import pytest

from tinkersmith.engine.hardware.threads import (
    READ_LOAD_EVERY,
    ThreadChoice,
    requested_threads,
    wait_passively,
)


@dataclass
class Machine:
    """A machine of 8 cores whose load and clock the test sets."""

    load: float = 0.0
    now: float = 0.0
    used: float = 0.0  # CPU seconds of the engine

    def choice(self, requested: int = 0, cores: int = 8) -> ThreadChoice:
        return ThreadChoice(
            requested, cores, 8, lambda: self.load, lambda: self.now, lambda: self.used
        )

    def pass_time(self, load: float, own: float = 0.0) -> None:
        """Let time pass with this load, in which the engine itself kept `own` cores busy."""
        self.now += READ_LOAD_EVERY
        self.used += own * READ_LOAD_EVERY
        self.load = load


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
    machine.now += READ_LOAD_EVERY / 2
    assert number(choice) == 8
    machine.now += READ_LOAD_EVERY / 2
    assert number(choice) == 2
