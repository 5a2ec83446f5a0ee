"""The engine's folder is its user's alone: folders have mode 0700, files 0600."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tinkersmith.engine.log import log

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# How the names of our files and folders begin.
_OURS = ("engine", "checkpoints", "idle", "status-", ".")


def keep_new_files_private() -> None:
    """From now on, what this process makes has no permissions for others."""
    os.umask(_OTHERS)


def tighten(folder: Path) -> None:
    """Take the permissions of others from the engine's folder, and log what was changed.

    A folder that holds files of others than engines stays as it is: it may be a home or a project.
    Only what belongs to the engine in it is tightened.
    """
    entries = list(folder.iterdir())
    ours = [entry for entry in entries if entry.name.startswith(_OURS)]
    if len(ours) == len(entries):
        wide = list(_wide(folder))
    else:
        ours = [entry for entry in ours if not entry.name.startswith(".")]
        wide = [path for entry in ours for path in _wide(entry)]
        if folder.stat().st_mode & _OTHERS:
            log.warning(
                "%s holds other files, so its own permissions are left as they are; what the "
                "engine writes in it is private",
                folder,
            )
    failed: list[Path] = []
    for path in wide:
        try:
            path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~_OTHERS)
        except FileNotFoundError:
            continue  # another engine has deleted it meanwhile
        except OSError:
            failed.append(path)
    if changed := len(wide) - len(failed):
        log.info(
            "%s was open to other users: took their permissions away (files and folders: %d)",
            folder,
            changed,
        )
    if failed:
        log.warning(
            "%s is open to other users and cannot be changed; its owner can: chmod -R go= %s",
            failed[0],
            failed[0],
        )


def _wide(path: Path) -> Iterator[Path]:
    """Files and folders at and below `path` with permissions for others.

    It looks into folders that are wide themselves only: nobody else can reach below the others.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or not mode & _OTHERS:
            return
        if stat.S_ISDIR(mode):
            for entry in path.iterdir():
                yield from _wide(entry)
    except FileNotFoundError:
        return
    yield path
