"""`tinkersmith chat` as a program: from a pipe, and in a terminal of its own."""

import json
import os
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.chat_world import GREETING, ChatWorld, chat_world
from tests.support.inference import BUNDLED

pytestmark = pytest.mark.engine
CHAT = ("--set", "PROMPT_TEMPLATE=chat")
PATIENCE = 240.0  # seconds
SHOWN_ATTACK = "<img src=x onerror=alert(1)><b>no</b> ⟨U+001B⟩[31mred⟨U+0007⟩ ⟨U+202E⟩abc"


def _command(world: ChatWorld, *options: str) -> list[str]:
    chat = [sys.executable, "-m", "tinkersmith", "chat", world.path]
    return [*chat, "--base-model", BUNDLED, "--set", "SAMPLING_MAX_TOKENS=60", *CHAT, *options]


def _environment(world: ChatWorld) -> dict[str, str]:
    return {
        **os.environ,
        **world.environment,
        "TERM": "xterm",
        "PYTHONIOENCODING": "utf-8:surrogateescape",
    }


def test_from_a_pipe_each_line_is_a_prompt_and_only_answers_are_printed(tmp_path: Path) -> None:
    world = chat_world()
    typed = [
        *("Greet.", "", "/save out.jsonl", "/new", "Attack!", "/new", "/base", "Greet."),
        *(
            "/set temperature=9",
            "Greet.",
            "/hlep",
            "/retry now",
            "/input x",
            "bad \udcff",
            "/quit",
            "Greet.",
        ),
    ]
    program = subprocess.run(
        _command(world),
        input="\n".join(typed).encode(errors="surrogateescape"),
        capture_output=True,
        cwd=tmp_path,
        env=_environment(world),
        timeout=PATIENCE,
    )
    output, errors = program.stdout.decode(), program.stderr.decode()
    lines = output.splitlines()
    assert lines[:3] == [GREETING, SHOWN_ATTACK, lines[2]], errors
    assert re.fullmatch(r"\[.+\]", lines[2]) and lines[3] == GREETING
    assert f"[{BUNDLED}]" in lines
    assert "\x1b" not in output and "\x07" not in output
    for sentence in (
        "Saved. out.jsonl has 1 record now.",
        "temperature is 9.0; it must be a number from 0 to 2.",
        "There is no command /hlep; did you mean /help?",
        "/retry takes nothing behind it.",
        "has no place for an input.",
        "not UTF-8",
    ):
        assert sentence in errors
    assert "Traceback" not in errors and program.returncode == 1
    [record] = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(record)["messages"] == [
        {"role": "user", "content": "Greet."},
        {"role": "assistant", "content": GREETING},
    ]


class _Terminal:
    """What a program has written to its terminal."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.text = ""
        self._rest = b""

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def wait_for(self, pattern: str) -> str:
        """The text up to the end of the pattern's next match, which is then taken away."""
        end = time.monotonic() + PATIENCE
        while (match := re.search(pattern, self.text)) is None:
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self._handle], [], [], 1)[0]:
                with suppress(OSError):  # the program has ended
                    self._rest += os.read(self._handle, 1 << 16)
                self.text = self._rest.decode(errors="replace")
        before = self.text[: match.end()]
        self._rest = self._rest[len(before.encode()) :]
        self.text = self.text[match.end() :]
        return before


@contextmanager
def _in_terminal(
    command: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[tuple[_Terminal, "subprocess.Popen[bytes]"]]:
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    become = "import fcntl,os,sys,termios; fcntl.ioctl(0,termios.TIOCSCTTY,0); "
    program = subprocess.Popen(
        [sys.executable, "-c", f"{become}os.execv(sys.argv[1], sys.argv[1:])", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield _Terminal(ours), program
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tmp_path: Path) -> None:
    world = chat_world()
    command = _command(world, "--set", "SAMPLING_TEMPERATURE=1")
    with _in_terminal(command, tmp_path, _environment(world)) as (terminal, program):
        terminal.wait_for(r"lists the commands[^>]*> ")
        terminal.type("/set temperature=0\r")
        terminal.wait_for(r"thinking=[^>]*> ")
        terminal.type("Greet.\r")
        assert f"{GREETING}\r\n" in terminal.wait_for(re.escape(GREETING) + r"\s+> ")
        terminal.type("/new\r")
        terminal.wait_for(r"A new conversation[^>]*> ")
        terminal.type("Attack!\r")
        attack = terminal.wait_for(r"202E⟩abc\s+> ")
        assert SHOWN_ATTACK in attack and "\x1b[31mred" not in attack and "\x07" not in attack
        terminal.type("/base\r")
        terminal.wait_for(r"beside[^>]*> ")
        terminal.type("/new\r")
        terminal.wait_for(r"A new conversation[^>]*> ")
        terminal.type("Greet.\r")
        beside = terminal.wait_for(r"\x1b\[\?25h(.|\n)*> ")
        assert f"{BUNDLED} (base)" in beside and GREETING in beside
        terminal.type("/base\r/set temperature=2\r/set max_tokens=4000\r/set stop=\r/new\r")
        terminal.wait_for(r"A new conversation[^>]*> ")
        terminal.type("Tell me a long story.\r")
        terminal.wait_for(r"story\.\r\n.{2}")  # the answer has begun
        terminal.type("\x03")
        # An answer may end first: then that is all, or what Ctrl-C means at the prompt is said.
        terminal.wait_for(r"(\(stopped\)(.|\n)*|leaves\)[^>]*|\^C\s+)> ")
        terminal.type("\x03")
        terminal.wait_for(r"Ctrl-D or /quit leaves\)[^>]*> ")
        terminal.type("\x04")
        assert program.wait(PATIENCE) == 0
        assert "Traceback" not in terminal.text
