"""Folders and settings, as every command finds them.

A script of a project works on the files beside it; the command `tinkersmith` on those of the
current folder.
"""

from collections.abc import Sequence
from pathlib import Path

from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import load_with_origins


def user_settings(config: str, overrides: Sequence[str], folder: Path | str = ".") -> Settings:
    """Load the settings of `config`, or of config.py in `folder` if it exists, with NAME=VALUE.

    Without a settings file, names of files start from `folder`.

    Raises:
        UserError: `config` does not exist, or a setting is wrong.
    """
    return settings_with_origins(config, overrides, folder)[0]


def settings_with_origins(
    config: str, overrides: Sequence[str], folder: Path | str = "."
) -> tuple[Settings, dict[str, str]]:
    """Like `user_settings`, with the place that each field which is not a default comes from."""
    path = Path(config or Path(folder) / "config.py")
    if config or path.is_file():
        return load_with_origins(path, overrides)
    return load_with_origins(None, overrides, folder)
