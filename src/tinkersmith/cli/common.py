"""Folders and settings, as every command finds them.

A script of a project works on the files beside it; the command `tinkersmith` on those of the
current folder.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinkersmith.errors import UserError

if TYPE_CHECKING:
    from tinkersmith.settings.fields import Settings


def user_settings(config: str, overrides: Sequence[str], folder: Path | str = ".") -> "Settings":
    """Load the settings of `config`, or of config.py in `folder` if it exists, with NAME=VALUE.

    Without a settings file, names of files start from `folder`.

    Raises:
        UserError: `config` does not exist, or a setting is wrong.
    """
    return settings_with_origins(config, overrides, folder)[0]


def settings_with_origins(
    config: str, overrides: Sequence[str], folder: Path | str = "."
) -> "tuple[Settings, dict[str, str]]":
    """Like `user_settings`, with the place that each field which is not a default comes from."""
    from tinkersmith.settings.reading import load_with_origins

    path = settings_file(config, folder)
    if config or path.is_file():
        return load_with_origins(path, overrides)
    return load_with_origins(None, overrides, folder)


def settings_file(config: str, folder: Path | str = ".") -> Path:
    """The settings file that is read, if it exists."""
    return Path(config or Path(folder) / "config.py")


def refuse_unread_file(config: str, folder: Path | str = ".") -> None:
    """Refuse to use defaults where a settings file lies that must be named with --config.

    Raises:
        UserError: there is one, no config.py, and `config` is empty.
    """
    from tinkersmith.settings.reading import has_settings

    folder = Path(folder)
    if config or (folder / "config.py").is_file():
        return
    for name in ("config.yaml", "config.yml", "config.toml", "config.json"):
        if (folder / name).is_file() and has_settings(folder / name):
            raise UserError(
                f"There is no config.py, and {folder / name} has settings that are not read unless "
                f"you name it. Add: {shlex.join(['--config', str(folder / name)])}"
            )


_READING = ("COLUMNS", "ENCODING")


def reading_settings(
    config: str,
    overrides: Sequence[str],
    folder: Path | str = ".",
    takes: Sequence[str] = _READING,
) -> "Settings":
    """Like `user_settings`, for a command that only reads data.

    Args:
        takes: the settings that it uses.

    Raises:
        UserError: see `user_settings`; or another setting is given, which would have no effect.
    """
    from tinkersmith.settings.fields import FIELDS

    for override in overrides:
        name = override.partition("=")[0].strip()
        if name.upper() not in takes and name.upper() in map(str.upper, FIELDS):
            raise UserError(
                f"--set {name} has no effect on this command. It takes "
                f"{', '.join(takes[:-1])} and {takes[-1]}."
            )
    return user_settings(config, overrides, folder)


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """The options --config and --set."""
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE",
        help="settings file (default: config.py, if there is one)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting"
    )


def add_checkpoint_option(parser: argparse.ArgumentParser, default: str) -> None:
    """The option --checkpoint, which chooses among the newest run's."""
    parser.add_argument(
        "--checkpoint",
        default=default,
        metavar="NAME",
        help="last, best, or a name such as step-000400 (default: the best by BEST_BY, or the last "
        "where nothing was measured)",
    )
