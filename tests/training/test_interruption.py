"""Signals: the first one waits for a safe point where something is under way, the second never."""

import contextlib
import os
import signal
import threading
import time

import pytest

from tinkersmith.training.interruption import STOP_SIGNALS, Interruption, interruption


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def received(now: list[float]) -> Interruption:
    return Interruption(lambda: now[0])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["SIGTERM", "SIGHUP"]
)
def test_a_signal_ends_the_work_at_once_with_its_exit_code(
    received: Interruption, number: int, code: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        received.receive(number)
    assert ended.value.code == code


def test_ctrl_c_is_a_keyboard_interrupt(received: Interruption) -> None:
    with pytest.raises(KeyboardInterrupt):
        received.receive(signal.SIGINT)


def test_the_first_one_waits_for_a_safe_point(received: Interruption) -> None:
    with pytest.raises(SystemExit), received.held_back():
        received.check()
        received.receive(signal.SIGTERM)
        for _ in range(2):  # the first may be swallowed
            with pytest.raises(SystemExit):
                received.check()
        received.seen()
        received.check()
        raise SystemExit  # as the loop does after it has saved


def test_the_end_of_the_block_is_a_safe_point(received: Interruption) -> None:
    with pytest.raises(SystemExit), received.held_back():
        received.receive(signal.SIGTERM)


def test_an_exception_that_a_callback_swallows_comes_again(received: Interruption) -> None:
    with contextlib.suppress(SystemExit):
        received.receive(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        received.check()
    assert ended.value.code == 143


def test_the_second_one_does_not_wait(received: Interruption, now: list[float]) -> None:
    with received.held_back():
        received.receive(signal.SIGTERM)
        now[0] += 2
        with pytest.raises(KeyboardInterrupt):
            received.receive(signal.SIGINT)
        received.seen()


def test_a_closing_session_sends_one_request_in_several_signals(
    received: Interruption, now: list[float]
) -> None:
    with pytest.raises(SystemExit) as ended, received.held_back():
        received.receive(signal.SIGTERM)
        now[0] += 0.3
        received.receive(signal.SIGHUP)
        received.receive(signal.SIGHUP)
    assert ended.value.code == 143


def test_what_may_take_long_is_left_at_once(received: Interruption) -> None:
    with pytest.raises(SystemExit), received.held_back(), received.at_once():
        received.receive(signal.SIGTERM)
        pytest.fail("it waited")


def test_real_signals_arrive_and_the_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(SystemExit), interruption():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_an_inner_block_takes_over_and_gives_back() -> None:
    """The command's block is around that of `train`, which holds signals back."""
    with interruption() as outer:
        with pytest.raises(SystemExit), interruption() as inner, inner.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # held back
        outer.check()
        assert signal.getsignal(signal.SIGTERM) == outer.receive


def test_ignored_signals_and_those_of_the_program_are_left_alone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruption():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_handled() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    inside: list[object] = []

    def work() -> None:
        with interruption() as received:
            received.check()
            inside.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == before
