"""Encrypted downloads, where pyrage is installed. Format: https://age-encryption.org/v1."""

import tempfile
from importlib import import_module
from pathlib import Path
from typing import IO

from tinkersmith.engine.errors import Refused


def check_recipients(recipients: list[str]) -> None:
    """Raises: Refused: an encrypted download for these is not possible."""
    if not recipients:
        return
    try:
        pyrage = import_module("pyrage")
    except ImportError:
        raise Refused(
            "an encrypted download needs the package pyrage on the engine's side: "
            "pip install pyrage, or ask for it without encryption."
        ) from None
    for recipient in recipients:
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except Exception as error:
            raise Refused(f"{recipient!r} is not an age recipient: {error}.") from None


def encrypted(file: Path, recipients: list[str]) -> IO[bytes]:
    """The file for these recipients, on disk but under no name: gone when the reader closes it."""
    pyrage = import_module("pyrage")
    target = tempfile.TemporaryFile(dir=file.parent)  # noqa: SIM115 (/tmp may be memory)
    with file.open("rb") as source:
        keys = [pyrage.x25519.Recipient.from_str(text) for text in recipients]
        pyrage.encrypt_io(source, target, keys)
    target.seek(0)
    return target
