"""The one key of a server of ours: given by its owner, or made here; and how a request sends it."""

import hmac
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinkersmith.errors import UserError

if TYPE_CHECKING:
    from starlette.types import Scope

SHORTEST_BEYOND_LOOPBACK = 32  # characters


def choose_key(
    variable: str,
    in_environment: str,
    file: Path | None,
    *,
    loopback: bool,
    warn: Callable[[str], None],
    server: str,
    prefix: str = "",
) -> tuple[str, bool]:
    """The key, and whether it was made here because none is given.

    Args:
        variable: the name of the environment's variable that `in_environment` comes from.
        server: what the sentences call the program.
        prefix: what every key of it begins with.

    Raises:
        UserError: two are given, or the given one is not a key or too short.
    """
    if file is not None and in_environment:
        raise UserError(f"--key-file and {variable} both give a key; give one of them.")
    if file is None and not in_environment:
        return f"{prefix}{secrets.token_hex(24)}", True
    key, where = (in_environment, variable) if file is None else (_read(file, warn), str(file))
    if prefix and (not key.startswith(prefix) or len(key) == len(prefix)):
        raise UserError(f"the key in {where} must begin with {prefix}: the SDK accepts no other.")
    if not key:
        raise UserError(f"the key in {where} is empty.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the key in {where} must consist of ASCII characters without spaces.")
    if not loopback and len(key) < SHORTEST_BEYOND_LOOPBACK:
        raise UserError(
            f"the key in {where} has {len(key)} characters; beyond loopback it needs at least "
            f"{SHORTEST_BEYOND_LOOPBACK}. Give a longer one, or none: the {server} then makes "
            "one."
        )
    return key, False


def sent_keys(scope: "Scope") -> list[bytes]:
    """The keys that a request carries: in X-API-Key and, as a bearer token, in Authorization."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, bearer = headers.get(b"authorization", b"").strip().partition(b" ")
    sent = headers.get(b"x-api-key", b"")
    return [sent, bearer.strip()] if scheme.lower() == b"bearer" else [sent]


def carries_key(scope: "Scope", key: str) -> bool:
    """Whether a request carries this key."""
    return any(hmac.compare_digest(sent, key.encode()) for sent in sent_keys(scope))


def _read(file: Path, warn: Callable[[str], None]) -> str:
    try:
        if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            warn(f"other users may read the key in {file}: chmod 600 {file}")
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"--key-file {file} cannot be read: {reason}.") from None
