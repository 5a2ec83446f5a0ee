"""`tinkersmith init`: a folder with everything that a project starts from."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.entry_point import COMMANDS
from tinkersmith.command_line import command_line, python_command
from tinkersmith.errors import UserError

STARTER = Path(__file__).parents[1] / "starter"
STARTER_FILES = (
    "config.py",
    "data/word_problems.json",
    "split_dataset.py",
    "train_with_config.py",
    "tinker_finetune.py",
    "evaluate_model.py",
    "export_model.py",
    "serve_model.py",
)


def init_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith init`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["init"])
    parser.add_argument(
        "folder",
        nargs="?",
        default=".",
        metavar="FOLDER",
        help="made if it does not exist (default: the current folder)",
    )
    folder = Path(parser.parse_args(argv).folder)
    make_project(folder)
    print(f"Wrote {', '.join(STARTER_FILES)} to {folder.resolve()}. Go on with:")
    print("\n".join(f"  {line}" for line in next_commands(folder)))
    return 0


def make_project(folder: Path) -> None:
    """Write the starter files into `folder`: all of them, or none if one is there already.

    Raises:
        UserError: a file exists, or the folder cannot be written.
    """
    present = [name for name in STARTER_FILES if os.path.lexists(folder / name)]
    if present:
        raise UserError(
            f"{folder.resolve()} already has {', '.join(present)}; nothing was written. Move "
            f"{'it' if len(present) == 1 else 'them'} away, or name another folder: "
            f"{command_line('init', 'my-project')}"
        )
    made: list[Path] = []
    try:
        for name in STARTER_FILES:
            file = folder / name
            _make_folder(file.parent, made)
            with file.open("xb") as target:  # never over a file that appeared meanwhile
                made.append(file)
                target.write((STARTER / name).read_bytes())
    except BaseException as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"{error.filename or folder} cannot be written: {error.strerror}. Nothing was "
                "left behind; name another folder, or free some space."
            ) from None
        raise


def next_commands(folder: Path) -> list[str]:
    """What to type next, from the current folder on."""
    python = shlex.quote(python_command(folder))
    enter = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    return [
        *enter,
        f"{python} split_dataset.py",
        f"{python} train_with_config.py",
        f"{python} evaluate_model.py --compare-base",
        f"{python} export_model.py",
    ]


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make `folder` and its parents, and add those that are new to `made`."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, made)
    folder.mkdir()
    made.append(folder)
