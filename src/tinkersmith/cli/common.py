"""Command-line options that several commands share."""

from collections.abc import Sequence
from pathlib import Path

from tinkersmith.settings import Settings, load_settings


def user_settings(config: str, overrides: Sequence[str]) -> Settings:
    """Load settings from `config`, or from ./config.py if it exists, and apply NAME=VALUE."""
    path = Path(config or "config.py")
    return load_settings(path if config or path.is_file() else None, overrides)
