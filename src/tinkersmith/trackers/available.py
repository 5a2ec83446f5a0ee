"""TRACKERS -> whether each can be used here, before anything is trained. Imports no tracker."""

import netrc
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from tinkersmith.errors import UserError

_NOT_LOGGED = "so nothing would be logged. Remove it, or remove"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose library or key is missing.

    Raises:
        UserError: the sentence says what to install or to set.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        listed = ", ".join(f'"{name}"' for name in missing)
        needs = "needs a library that is" if len(missing) == 1 else "need libraries that are"
        raise UserError(
            f"TRACKERS names {listed}, which {needs} not installed. Install with: "
            f"pip install 'tinkersmith[{','.join(missing)}]'"
        )
    for name in names:
        if (check := _CHECKS.get(name)) is not None:
            check()


def _check_wandb() -> None:
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        raise UserError(f'WANDB_MODE is "disabled", {_NOT_LOGGED} "wandb" from TRACKERS.')
    if mode in ("offline", "dryrun"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    has_key = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if not has_key and not _has_login(_netrc_file(), host):
        raise UserError(
            f'TRACKERS names "wandb", and there is no key for {host}. Set WANDB_API_KEY, log in '
            "with: wandb login, or set WANDB_MODE=offline, which writes files alone."
        )


def _check_swanlab() -> None:
    mode = os.environ.get("SWANLAB_MODE", "").lower()
    if mode == "disabled":
        raise UserError(f'SWANLAB_MODE is "disabled", {_NOT_LOGGED} "swanlab" from TRACKERS.')
    if mode == "local" and find_spec("swanboard") is None:
        raise UserError(
            'SWANLAB_MODE is "local", which needs a library that is not installed. Install with: '
            "pip install 'swanlab[dashboard]'"
        )
    if mode in ("offline", "local"):
        return
    folder = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR")
    file = (Path(folder) if folder else Path.home() / ".swanlab") / ".netrc"
    if not os.environ.get("SWANLAB_API_KEY") and not _has_login(file):
        raise UserError(
            'TRACKERS names "swanlab", and there is no key for it. Set SWANLAB_API_KEY, log in '
            "with: swanlab login, or set SWANLAB_MODE=offline, which writes files alone."
        )


def _netrc_file() -> Path:
    return Path(os.environ.get("NETRC") or Path.home() / ".netrc")


def _has_login(file: Path, host: str | None = None) -> bool:
    """Whether a netrc file has a login for a host, or for any where `host` is None."""
    with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        hosts = netrc.netrc(file).hosts
        return bool(hosts) if host is None else host in hosts
    return False


_CHECKS: dict[str, Callable[[], None]] = {"wandb": _check_wandb, "swanlab": _check_swanlab}
