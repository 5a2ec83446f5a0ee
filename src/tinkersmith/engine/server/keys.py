"""The engine's one key: given by its owner, or made here."""

import secrets
import stat
from pathlib import Path

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.log import log

KEY_VARIABLE = "TINKERSMITH_ENGINE_KEY"
SHORTEST_BEYOND_LOOPBACK = 32  # characters


def choose_key(in_environment: str, file: Path | None, *, loopback: bool) -> tuple[str, bool]:
    """The key, and whether it was made here because none is given.

    Raises:
        Refused: two are given, or the given one is not a key or too short.
    """
    if file is not None and in_environment:
        raise Refused(f"--key-file and {KEY_VARIABLE} both give a key; give one of them.")
    if file is None and not in_environment:
        return f"tml-{secrets.token_hex(24)}", True
    key, where = (in_environment, KEY_VARIABLE) if file is None else (_read(file), str(file))
    if not key.startswith("tml-") or len(key) < 5:
        raise Refused(f"the key in {where} must begin with tml-: the SDK accepts no other.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise Refused(f"the key in {where} must consist of ASCII characters without spaces.")
    if not loopback and len(key) < SHORTEST_BEYOND_LOOPBACK:
        raise Refused(
            f"the key in {where} has {len(key)} characters; beyond loopback it needs at least "
            f"{SHORTEST_BEYOND_LOOPBACK}. Give a longer one, or none: the engine then makes one."
        )
    return key, False


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("other users may read the key in %s: chmod 600 %s", file, file)
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise Refused(f"--key-file {file} cannot be read: {reason}.") from None
