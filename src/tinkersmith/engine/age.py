"""Encrypted downloads, where pyrage is installed. Format: https://age-encryption.org/v1."""

from importlib import import_module

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


def encrypt(data: bytes, recipients: list[str]) -> bytes:
    pyrage = import_module("pyrage")
    return pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(text) for text in recipients])
