"""The folder of an export: its name, whether it may be replaced, why it was not written."""

import errno
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from tinkersmith.errors import (
    UserError,
    is_of_network,
    network_reason,
    one_line,
    reason_of,
    unreadable,
)
from tinkersmith.peft_format import ADAPTER_CONFIG
from tinkersmith.runs.trained_model import ModelReference

EXPORTS = "exported"  # the folder that gets one folder per export


def export_folder(model: ModelReference, merged: bool, exports: str | Path) -> Path:
    """The folder for an export of `model` where the user names none."""
    return Path(exports) / f"{model.name}-{'merged' if merged else 'adapter'}"


def check_export_folder(folder: Path, force: bool) -> None:
    """Refuse early, before a download costs time.

    Raises:
        UserError: the folder exists and may not be replaced, or it cannot be written.
    """
    if folder.is_symlink() and (force or not folder.exists()):
        raise UserError(
            f"{folder} is a link to {one_line(os.readlink(folder))}, and links are not replaced. "
            "Name the folder itself, or remove the link."
        )
    if folder.exists() and not force:
        raise UserError(
            f"{folder} exists already. Name another folder, or replace it with --force."
        )
    if folder.exists() and not _is_export(folder):
        raise UserError(
            f"{folder} exists and does not look like an export; even --force does not "
            "replace it. Name another folder."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{folder} cannot be written: a part of its path is a file, not a folder. Name another "
            "folder with --out."
        ) from None
    except OSError as error:
        raise not_written(folder, error) from None


def _is_export(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise unreadable(folder, error) from None
    return not names or (
        "prompt_template.json" in names
        and bool({"config.json", ADAPTER_CONFIG, "Modelfile"} & names)
    )


@contextmanager
def interruption_told(folder: Path, say: Callable[[str], None]) -> Generator[None, None, None]:
    """Say what became of `folder` if the user interrupts the block."""
    before = _identity(folder)
    try:
        yield
    except KeyboardInterrupt:
        if _identity(folder) == before:
            say(f"Interrupted. {folder} was not written, and nothing was left behind.")
        else:
            say(f"Interrupted. {folder} is complete, but was not verified.")
        raise


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one of the same name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def not_written(folder: Path, error: OSError) -> UserError:
    """The sentence about an export that could not be written."""
    if is_of_network(error):
        return UserError(
            f"A host on the network was not reached ({network_reason(error)}), so that {folder} "
            "was not written. Check the network and the proxy settings."
        )
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Free some space, or name another folder" if full else "Name another folder"
    return UserError(
        f"{folder} cannot be written: {reason_of(error)}. Nothing was left behind. {advice} with "
        "--out."
    )
