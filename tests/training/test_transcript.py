"""Lines that cannot be printed are in the log."""

import errno
import io
import threading
from pathlib import Path

import pytest

from tinkersmith.training.transcript import Transcript


class Output:
    """Standard output that cannot be written to after its first line."""

    def __init__(self, number: int) -> None:
        self.number, self.text = number, ""

    def write(self, text: str) -> int:
        if "\n" in self.text:
            raise OSError(self.number, "it failed")
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def say_three(monkeypatch: pytest.MonkeyPatch, log: Path, number: int) -> Output:
    output = Output(number)
    monkeypatch.setattr("sys.stdout", output)
    transcript = Transcript()
    transcript.say("one")
    transcript.attach(log)
    transcript.say("two")
    transcript.say("three")
    return output


def test_a_full_disk_behind_the_output_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = say_three(monkeypatch, tmp_path / "log", errno.ENOSPC)
    assert output.text == "one\n"
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"
    assert capsys.readouterr().err.count("The output cannot be written (it failed).") == 1


def test_a_terminal_that_is_gone_is_not_spoken_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_three(monkeypatch, tmp_path / "log", errno.EIO)
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"
    assert capsys.readouterr().err == ""


def test_a_reader_that_is_gone_ends_the_work_once_in_its_own_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdout", Output(errno.EPIPE))
    transcript = Transcript()
    transcript.attach(tmp_path / "log")
    transcript.say("one")
    other = threading.Thread(target=transcript.say, args=["two"])
    other.start()
    other.join()
    with pytest.raises(BrokenPipeError):
        transcript.say("three")
    transcript.say("four")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nfour\n"


def test_the_log_has_no_colours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transcript = Transcript()
    transcript.say("\x1b[1;32mone\x1b[0m")
    transcript.attach(tmp_path / "log")
    transcript.say("\x1b[38;5;22mtwo\x1b[0m")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert "\x1b[38;5;22mtwo" in capsys.readouterr().out


def test_what_an_output_cannot_show_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", output)
    transcript = Transcript()
    transcript.attach(tmp_path / "log")
    transcript.say("是 \udcff")
    assert output.buffer.getvalue() == b"? ?\n"  # type: ignore[attr-defined]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "是 \\udcff\n"
    assert capsys.readouterr().err == ""
