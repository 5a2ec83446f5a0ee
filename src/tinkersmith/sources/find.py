"""The names of data files -> the files."""

import os
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.errors import UserError, unreadable


def find_files(files: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files where they exist (as given, else in data/); the missing names.

    Raises:
        UserError: no file exists, or one is named twice.
    """
    paths: list[Path] = []
    missing: list[str] = []
    for name in files:
        path = next((place for place in _candidates(name) if _exists(place)), None)
        if path is None:
            missing.append(name)
            continue
        try:
            again = any(path.samefile(other) for other in paths)
        except OSError as error:  # it has just gone
            raise unreadable(path, error) from None
        if again:
            raise UserError(f"{path} is named twice. Name each file once.")
        paths.append(path)
    if not missing and not paths:
        raise UserError("No data file is named. Name at least one.")
    if not paths:
        raise UserError(f"{does_not_exist(missing)}. Put a file there, or correct the name.")
    return paths, missing


def does_not_exist(files: Sequence[str]) -> str:
    """The beginning of the sentence about missing data files, whatever follows from it."""
    verb = "does" if len(files) == 1 else "do"
    return f"{', '.join(files)} {verb} not exist (looked in {_places()})"


def _candidates(name: str) -> list[Path]:
    return [Path(name), Path("data") / name]


def _places() -> str:
    return f"{Path.cwd()}, {Path('data').absolute()}"


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; unlike `Path.exists`, alike in all versions of Python.

    Raises:
        UserError: the operating system cannot tell.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return True
