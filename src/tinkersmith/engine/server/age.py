"""Downloads encrypted with age (https://age-encryption.org/v1), if pyrage is installed."""

import tempfile
from importlib import import_module
from pathlib import Path
from typing import IO

from tinkersmith.engine.errors import Refused


def check_recipients(recipients: list[str]) -> None:
    """Check that a download can be encrypted for these recipients (age public keys).

    Raises:
        Refused: pyrage is not installed, or a recipient is not valid.
    """
    if not recipients:
        return
    try:
        pyrage = import_module("pyrage")
    except ImportError:
        raise Refused(
            "an encrypted download needs the package pyrage on the engine's side: "
            "pip install pyrage, or request it without encryption."
        ) from None
    for recipient in recipients:
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except Exception as error:
            raise Refused(f"{recipient!r} is not an age recipient: {error}.") from None


def encrypted(file: Path, recipients: list[str]) -> IO[bytes]:
    """The file encrypted for these recipients, as an unnamed file that is deleted when closed."""
    pyrage = import_module("pyrage")
    target = tempfile.TemporaryFile(dir=file.parent)  # noqa: SIM115 (/tmp may be memory)
    with file.open("rb") as source:
        keys = [pyrage.x25519.Recipient.from_str(recipient) for recipient in recipients]
        pyrage.encrypt_io(source, target, keys)
    target.seek(0)
    return target
