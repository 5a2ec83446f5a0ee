"""The commands' names, and how a command ends: a user's mistake becomes one sentence."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Generator
from typing import Any

COMMANDS = {
    "init": "Make a project folder: settings, sample data and scripts.",
    "train": "Fine-tune a LoRA with the settings of config.py.",
    "sweep": "Train with every combination of some settings, and rank the runs.",
    "improve": "Train a model further on its own right answers.",
    "split": "Merge data files and split them into a training and a test set.",
    "convert": "Write data files of any kind as one JSON Lines file.",
    "models": "List the models that the server offers, and what is known of them.",
    "settings": "Show all settings with their values and where these come from.",
    "check": "Show how long samples are, and what may be wrong with them.",
    "stats": "Show only how long samples are.",
    "preview": "Show samples as the tokens that are trained on.",
    "evaluate": "Score a trained model on a test set.",
    "compare": "Compare two files of results, question by question.",
    "report": "Write a page that shows a run, its curves and its scores.",
    "chat": "Talk to a trained model, and to its base model beside it.",
    "export": "Write a trained model as a PEFT folder, a merged model or a GGUF file.",
    "dashboard": "Show all runs on a page whose curves move while training goes on.",
    "serve": "Serve trained models through OpenAI's and Anthropic's API.",
    "runs": "List the runs with their sizes, or delete what is no longer needed.",
    "engine": "Serve the Tinker API on this machine.",
}


_OUTPUT = "the output"  # the file name of an error that writing to the terminal raised


def run_entry_point(act: Callable[[], int | None]) -> int:
    """Call `act` and return the exit code; a user's mistake becomes one sentence on stderr.

    Raises:
        SystemExit: `act` raised it, as argparse does after --help.
    """
    _open_closed_streams()
    with _named_output() as errors:
        try:
            code = _exit_code(act)
        except SystemExit:
            if not _flushed():
                return 1
            if errors and errors[-1].errno != errno.EPIPE:  # argparse says nothing about it
                _complain(_sentence(errors[-1]))
                return 1
            raise
        return code if _flushed() else 1


def _exit_code(act: Callable[[], int | None]) -> int:
    from tinkersmith.errors import UserError

    try:
        _refuse_unread_constants()
        return act() or 0
    except UserError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename == _OUTPUT and error.errno == errno.EPIPE:
            return 1  # the reader of our output has gone, as in `... | head`
        _complain(_sentence(error))
        return 1


def _refuse_unread_constants() -> None:
    """Refuse what a script of a project sets, be it a key or a setting, and nothing reads.

    Raises:
        UserError: the sentence says where it belongs.
    """
    script: object = getattr(sys.modules["__main__"], "__file__", None)
    if not isinstance(script, str) or not script.endswith(".py") or "__main__" in script:
        return  # the command itself, or a program without a file
    from tinkersmith.settings.python_files import refuse_unread_constants

    refuse_unread_constants(script)


def _sentence(error: OSError) -> str:
    from tinkersmith.errors import is_of_network, network_reason, reason_of

    if error.filename == _OUTPUT:
        return f"{_OUTPUT} cannot be written: {reason_of(error)}. Write it to another place."
    if is_of_network(error):
        return (
            f"A host on the network was not reached ({network_reason(error)}). Check the network "
            "and the proxy settings."
        )
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{reason_of(error)}."


def _complain(sentence: str) -> None:
    """Print an error in one line: names of files may hold what acts on terminals."""
    from tinkersmith.errors import one_line

    with contextlib.suppress(OSError, ValueError):  # nobody can be told
        print(f"Error: {one_line(sentence, len(sentence))}", file=sys.stderr)


def _open_closed_streams() -> None:
    """Give a program that was started without one of its three streams an empty one.

    Without it, the next file that is opened would take the stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


@contextlib.contextmanager
def _named_output() -> Generator[list[OSError], None, None]:
    """Within the block, a character that the output lacks is replaced, and its errors are named.

    Yields the list of the errors so far.
    """
    errors: list[OSError] = []
    streams = [stream for stream in _streams() if "write" not in vars(stream)]
    for stream in streams:
        if stream is sys.stdout:  # standard error does that already
            stream.reconfigure(errors="replace")
        for name in ("write", "flush"):
            setattr(stream, name, _naming(getattr(stream, name), errors))
    try:
        yield errors
    finally:
        for stream in streams:
            del stream.write, stream.flush


def _streams() -> list[Any]:
    """Standard output and standard error, unless a test or a program has put others there."""
    both: list[object] = [sys.stdout, sys.stderr]
    return [stream for stream in both if isinstance(stream, io.TextIOWrapper)]


def _naming(act: Callable[..., Any], errors: list[OSError]) -> Callable[..., Any]:
    """`act`, whose errors say that they are those of the output, and are noted."""

    def call(*arguments: Any) -> Any:
        try:
            return act(*arguments)
        except OSError as error:
            error.filename = _OUTPUT
            errors.append(error)
            raise

    return call


def _flushed() -> bool:
    """Whether all output could be written. What could not is said, but for a reader that has gone.

    Python ends without a complaint of its own afterwards.
    """
    flushed = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                flushed = False
                _complain(_sentence(error))
    return flushed
