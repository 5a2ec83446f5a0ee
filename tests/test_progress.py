"""What takes long is said in time, without a flood of lines; all clocks are the tests' own."""

import io
import itertools
import threading

import pytest

from tests.support.clocks import Lines, hurried_clock
from tests.support.processes import PATIENCE
from tinkersmith.progress import Progress, allowed_silence, watched


class Watch:
    """A clock that the test sets, and the lines with the second in which each was said."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.lines: list[tuple[float, str]] = []
        self.progress = Progress(self.say, clock=lambda: self.seconds)

    def say(self, text: str) -> None:
        self.lines.append((self.seconds, text))

    def wait(self, seconds: float) -> None:
        """Let time pass; `look` is called five times a second, as it is in a run."""
        for _ in range(round(seconds * 5)):
            self.seconds = round(self.seconds + 0.2, 1)
            self.progress.look()

    def times(self) -> list[float]:
        return [seconds for seconds, _ in self.lines]


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_work_of_less_than_two_seconds_is_silent(watch: Watch) -> None:
    for _ in range(20):
        with watch.progress.doing("connecting"):
            watch.wait(1.8)
        watch.wait(1.2)
    assert watch.lines == []


def test_short_tasks_that_follow_each_other_at_once_are_one_wait(watch: Watch) -> None:
    for what in ("starting the engine", "loading the tinker SDK", "connecting", "connecting"):
        with watch.progress.doing(what):
            watch.wait(1.4)
    assert watch.lines == [
        (2.0, "  Now loading the tinker SDK"),
        (4.0, "  Still connecting (1 s)"),
    ]


def test_what_takes_long_is_said_after_two_seconds_and_less_often_later(watch: Watch) -> None:
    with watch.progress.doing("starting the engine"):
        watch.wait(200)
    assert watch.lines[0] == (2.0, "  Still starting the engine (2 s)")
    assert watch.times()[:5] == [2, 4, 6, 8, 10]
    gaps = [after - before for before, after in itertools.pairwise(watch.times())]
    assert max(gaps) <= 30 and gaps == sorted(gaps)
    assert len(watch.lines) < 20


def test_nothing_is_said_when_nothing_is_under_way(watch: Watch) -> None:
    with watch.progress.doing("connecting"):
        pass
    watch.wait(60)
    assert watch.lines == []


def test_a_line_of_any_kind_breaks_the_silence(watch: Watch) -> None:
    with watch.progress.doing("connecting"):
        watch.wait(1)
        watch.progress.say("hello")
        watch.wait(1.8)
        assert watch.times() == [1]
        watch.wait(0.4)
    assert watch.times() == [1, 3]


def test_quick_steps_show_how_far_they_are_and_never_that_one_is_under_way(watch: Watch) -> None:
    with watch.progress.doing("training") as task:
        for step in range(1, 301):
            with watch.progress.doing(f"training step {step} of 300"):
                watch.wait(0.4)
            watch.progress.reached(task, f"step {step}/300", step / 300)
    assert all(text.startswith("  step ") for _, text in watch.lines)
    assert watch.times()[0] <= 2.4
    assert max(b - a for a, b in itertools.pairwise(watch.times())) <= 30.4
    assert len(watch.lines) < 20


@pytest.mark.parametrize("seconds", [8, 14, 40])
def test_slow_steps_show_their_losses_and_that_they_are_under_way(
    watch: Watch, seconds: int
) -> None:
    with watch.progress.doing("training") as task:
        for step in range(1, 21):
            with watch.progress.doing(f"training step {step} of 20"):
                watch.wait(seconds)
            watch.progress.reached(task, f"step {step}/20", step / 20)
    assert watch.lines[0] == (2.0, "  Still training step 1 of 20 (2 s)")
    losses = [time for time, text in watch.lines if text.startswith("  step ")]
    assert losses[0] == seconds
    assert max(b - a for a, b in itertools.pairwise(losses)) <= 30 + seconds
    assert max(b - a for a, b in itertools.pairwise(watch.times())) <= 30 + seconds
    assert len(watch.lines) <= 10 + watch.seconds / 10


def test_a_task_within_a_long_one_has_its_own_two_seconds(watch: Watch) -> None:
    with watch.progress.doing("training"):
        watch.wait(600)
        watch.lines.clear()
        with (
            watch.progress.doing("saving the checkpoint of step 400"),
            watch.progress.doing("waiting for the server"),
        ):
            watch.wait(3)
    assert watch.lines == [(602, "  Still waiting for the server (2 s)")]


def test_the_share_of_a_task_is_its_own_whatever_goes_on_within_it(watch: Watch) -> None:
    progress = watch.progress
    assert progress.share_of("training") is None
    with progress.doing("training") as training:
        progress.reached(training, "step 1/4", 0.25)
        with progress.doing("asking") as asking:
            progress.reached(asking, "9/10", 0.9)
            assert progress.share_of("training") == 0.25
            assert progress.state()[1] == 0.9
    assert progress.share_of("training") is None


def test_a_terminal_has_one_live_line_and_no_others() -> None:
    seconds, said, terminal = 0.0, [], io.StringIO()
    progress = Progress(said.append, clock=lambda: seconds, terminal=terminal)

    def look() -> str:
        terminal.seek(0)
        terminal.truncate()
        progress.look()
        return terminal.getvalue()

    with progress.doing("training") as task:
        assert look() == ""
        seconds = 3.0
        assert look() == "\r\x1b[2Ktraining (3 s)"
        progress.reached(task, "step 1/2  loss 0.5", 0.5)
        assert "━" * 12 + "─" * 12 + "  step 1/2  loss 0.5" in look()
        with progress.doing("training step 2 of 2"):
            seconds = 8.0
            assert look().endswith("step 1/2  loss 0.5  training step 2 of 2 (5 s)")
            terminal.truncate(0)
            progress.say("a line")
            assert terminal.getvalue().endswith("\r\x1b[2K"), "the live line must go first"
            look()
        look()
    assert terminal.getvalue().endswith("\r\x1b[2K"), "no live line is left behind"
    assert said == ["a line"]


def test_the_live_line_is_cut_to_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = io.StringIO()
    seconds = itertools.count(0, 5)
    progress = Progress(print, clock=lambda: float(next(seconds)), terminal=terminal)
    with progress.doing("x" * 100):
        progress.look()
    assert terminal.getvalue().startswith("\r\x1b[2K" + "x" * 19 + "\r")


def test_a_thread_looks_while_the_work_blocks() -> None:
    said = Lines()
    with (
        watched(said.say, clock=hurried_clock(), look_every=0.001) as progress,
        progress.doing("reading the data"),
    ):
        assert said.wait_for("Still")
    assert said.texts[0].startswith("  Still reading the data (")
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_an_output_that_is_gone_ends_the_looking_and_not_the_work() -> None:
    tried = threading.Event()

    def say(text: str) -> None:
        tried.set()
        raise BrokenPipeError

    with (
        watched(say, clock=hurried_clock(), look_every=0.001) as progress,
        progress.doing("reading the data"),
    ):
        assert tried.wait(PATIENCE)
        with pytest.raises(BrokenPipeError):
            progress.say("a line")


def test_the_allowed_silence_grows_and_is_bounded() -> None:
    assert [allowed_silence(seconds) for seconds in (0, 9, 10, 59, 60, 1e6)] == [
        *(2, 2, 10, 10, 30, 30)
    ]
