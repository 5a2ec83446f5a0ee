"""math-verify runs beside us: it is killed when it hangs, restarted, and ends with us."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import eventually, is_gone
from tinkersmith.grading.comparison import Comparison
from tinkersmith.grading.formulas import second_opinion
from tinkersmith.grading.mathematics import compare_mathematics

PATIENCE = 60  # seconds that a loaded machine may need


@pytest.fixture(autouse=True)
def _warm() -> None:
    assert second_opinion.warm_up()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine may take longer than the limit for what takes 0.1 s on a quiet one."""
    monkeypatch.setattr(second_opinion, "LONGEST_WAIT", PATIENCE)
    second_opinion._remembered.clear()


def test_it_decides_what_our_parser_cannot_read(patient: None) -> None:
    assert second_opinion.ask(r"\int_0^1 x\,dx", r"\frac{1}{2}") is True
    assert second_opinion.ask(r"\int_0^1 x\,dx", r"\frac{1}{3}") is False
    comparison = compare_mathematics(r"\int_0^1 x\,dx", r"\frac12")
    assert comparison == Comparison(True, "expression", "math-verify")


def test_sympy_stays_out_of_this_process() -> None:
    code = (
        "import sys; from tinkersmith.grading.mathematics import compare_mathematics as c;"
        r"c('\\int_0^1 x dx', '1/2'); c('x+1', '1+x'); print('sympy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE * 2
    )
    assert result.stdout.strip() == "False", result.stderr


def test_a_pair_that_hangs_costs_its_limit_and_the_next_one_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = time.monotonic()
    pair = "9^{9^{9^{9}}}+x", "3^{3^{3^{3^{3}}}}+x"
    assert second_opinion.ask(*pair) == second_opinion.TIMED_OUT
    assert time.monotonic() - start < PATIENCE / 2  # the limit is 1.5 s, but the machine is loaded
    monkeypatch.setattr(second_opinion, "LONGEST_WAIT", PATIENCE)
    assert second_opinion.ask(r"\gcd(12,18)", "6") is True


def test_all_pairs_of_one_answer_share_their_time() -> None:
    second_opinion._remembered.clear()
    start, timeouts = time.monotonic(), second_opinion.timeouts()
    with second_opinion.one_answer():
        for power in range(20, 50):
            opinion = second_opinion.ask(f"9^{{9^{{9^{power}}}}}+x", "3^{3^{3^{3^3}}}+x")
            assert opinion == second_opinion.TIMED_OUT
    assert second_opinion.timeouts() == timeouts + 30
    assert time.monotonic() - start < PATIENCE / 2  # 30 pairs of 1.5 s would take 45 s


def test_a_killed_worker_is_replaced(patient: None) -> None:
    worker = second_opinion._worker
    assert worker is not None
    worker.process.kill()
    worker.process.wait(timeout=PATIENCE)
    assert second_opinion.ask(r"\gcd(4,6)", "2") is None
    assert second_opinion.ask(r"\gcd(4,10)", "2") is True


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (r"\frac{\partial f}{\partial x}", r"\frac{\partial f}{\partial y}"),
        (r"\frac{dy}{dx}=2x", r"\frac{dy}{dx}=3x"),
        (r"\lim_{x\to 0} x", "0 km"),
        (r"\overline{AB}", r"\overline{BA}"),
        (r"\vec{a}", r"\vec{b}"),
        (r"\int 2x\,dx", "7:3"),
        (r"\int 2x\,dx", "50%"),
        (r"\int 2x\,dx", "1010_2"),
        (r"\int_0^1 x dx", "x = 1/2 cm"),
    ],
)
def test_it_is_not_asked_where_it_is_wrong(
    expected: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_nevertheless(*_: str) -> bool:
        raise AssertionError((expected, given))

    monkeypatch.setattr("tinkersmith.grading.mathematics.second_opinion_of", asked_nevertheless)
    for pair in ((expected, given), (given, expected)):
        comparison = compare_mathematics(*pair)
        assert comparison is None or not comparison.equal


def test_the_worker_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from tinkersmith.grading.formulas import second_opinion as s;"
        "s.warm_up(); print(s._worker.process.pid, flush=True); time.sleep(600)"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    worker = int(program.stdout.readline())
    program.kill()
    program.wait(timeout=PATIENCE)
    program.stdout.close()
    assert eventually(lambda: is_gone(worker)), "the worker outlives its program"


def test_a_missing_math_verify_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    second_opinion._drop()
    monkeypatch.setattr(second_opinion, "_complained", False)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert not second_opinion.warm_up()
    assert second_opinion.ask("x", r"\int y") is None
    assert capfd.readouterr().err.count("math-verify does not start") == 1
