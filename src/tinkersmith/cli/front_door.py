"""The commands' names, and how a command ends: a user's mistake becomes one sentence."""

import sys
from collections.abc import Callable

COMMANDS = {
    "train": "fine-tune a LoRA with the settings of config.py",
    "split": "merge data files and split them into a training and a test set",
    "stats": "length statistics of data files",
    "evaluate": "score a trained model on a test set",
    "export": "write a trained model as a PEFT folder or a merged model",
    "engine": "serve the Tinker API on this machine",
}


def run_front_door(act: Callable[[], int | None]) -> int:
    """Call `act`; a user's mistake becomes one sentence on stderr and exit code 1."""
    from tinkersmith.errors import UserError

    try:
        return act() or 0
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"Error: {place}{error.strerror or error}.", file=sys.stderr)
        return 1
