"""The commands' names, and how a command ends: a user's mistake becomes one sentence."""

import contextlib
import io
import os
import sys
from collections.abc import Callable

COMMANDS = {
    "init": "Make a project folder: settings, sample data and scripts.",
    "train": "Fine-tune a LoRA with the settings of config.py.",
    "split": "Merge data files and split them into a training and a test set.",
    "convert": "Write data files of any kind as one JSON Lines file.",
    "settings": "Show all settings with their values and where these come from.",
    "check": "Show how long samples are, and what may be wrong with them.",
    "stats": "Show only how long samples are.",
    "evaluate": "Score a trained model on a test set.",
    "export": "Write a trained model as a PEFT folder or a merged model.",
    "runs": "List the runs with their sizes, or delete what is no longer needed.",
    "engine": "Serve the Tinker API on this machine.",
}


def run_entry_point(act: Callable[[], int | None]) -> int:
    """Call `act` and return the exit code; a user's mistake becomes one sentence on stderr."""
    from tinkersmith.errors import UserError

    # A console that lacks a character shows another one; the work goes on.
    output: object = sys.stdout
    if isinstance(output, io.TextIOWrapper):
        output.reconfigure(errors="replace")
    try:
        return act() or 0
    except UserError as error:
        print(f"Error: {_shown(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"Error: {_shown(place)}{error.strerror or error}.", file=sys.stderr)
        return 1
    finally:
        _leave_unwritable_output()


def _shown(sentence: str) -> str:
    """A sentence in one line: names of files may hold what breaks lines or acts on terminals."""
    from tinkersmith.errors import one_line

    return one_line(sentence, len(sentence))


def _leave_unwritable_output() -> None:
    """Let Python end without a complaint about output that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
