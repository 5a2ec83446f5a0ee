"""Folder of a checkpoint <-> its manifest.json: the sha256 and size of every file, and its facts.

The engine writes it and checks it before it loads; a client that has downloaded a checkpoint can
check its files too. This module does not know what the facts mean.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from tinkersmith.files import write_atomically

MANIFEST = "manifest.json"
HAS_MANIFEST = "tinkersmith_manifest"  # in the metadata of weights to which a manifest belongs
LABELS = "labels.json"  # what may change after the checkpoint was written: not in the manifest
_FORMAT = 1
_SEAL = "sha256"
_ALWAYS_READ = 1 << 20  # bytes: smaller files are hashed even where only their size was asked for


class DamagedFile(Exception):
    """A file that is not as it was saved. The text says in which way; `file` is its name."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(reason)
        self.file = file


class ForeignFile(DamagedFile):
    """A file that somebody has put among those of a checkpoint."""


def write_manifest(folder: Path, facts: Mapping[str, object]) -> dict[str, Any]:
    """Write manifest.json over all files of `folder`, and return its content.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = sorted(file.name for file in folder.iterdir() if _counts(file.name))
    files = {
        name: {"sha256": _sha256(folder / name), "size": (folder / name).stat().st_size}
        for name in names
    }
    content: dict[str, Any] = {"format": _FORMAT, "files": files, **facts}
    return write_sealed(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of the folder's manifest.json; None: it has none.

    Raises:
        DamagedFile: it is not as it was written.
        OSError: it cannot be read.
    """
    return read_sealed(folder / MANIFEST)


def write_sealed(file: Path, content: Mapping[str, object]) -> dict[str, Any]:
    """Write a JSON object with a checksum of itself, and return it."""
    sealed = {**content, _SEAL: _seal(content)}
    write_atomically(file, _text(sealed))
    return sealed


def read_sealed(file: Path) -> dict[str, Any] | None:
    """A JSON object that `write_sealed` wrote; None: there is no such file.

    Raises:
        DamagedFile: it is not as it was written.
        OSError: it cannot be read.
    """
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    if not text:
        raise DamagedFile(file.name, "it is empty")
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedFile(file.name, "it is not JSON") from None
    if not isinstance(content, dict):
        raise DamagedFile(file.name, "it is not a JSON object")
    content = cast(dict[str, Any], content)
    number = content.get("format")
    if isinstance(number, int) and number > _FORMAT:
        raise DamagedFile(
            file.name,
            f"its format is {number}, which only a newer version of tinkersmith can read",
        )
    seal = content.pop(_SEAL, None)
    if seal != _seal(content):
        raise DamagedFile(file.name, "its content is not the one that was saved")
    content[_SEAL] = seal
    if text != _text(content).encode():
        raise DamagedFile(file.name, "its bytes are not those that were saved")
    return content


def check_files(
    folder: Path,
    manifest: Mapping[str, Any],
    read: Collection[str] | None = None,
    *,
    only: Collection[str] | None = None,
) -> None:
    """Check that the files are those of the manifest, by size and sha256.

    Args:
        read: large files to compare by sha256 too, not by size alone; None: all of them.
        only: files to look at, such as those of a download; None: all, and no others may be there.

    Raises:
        DamagedFile: the first file that is not as it was saved.
        OSError: a file cannot be read.
    """
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, saved in files.items():
        if only is None or name in only:
            check_file(folder, name, saved, hashed=read is None or name in read)
    if only is None:
        present = {file.name for file in folder.iterdir() if _counts(file.name)}
        for name in sorted(present - files.keys()):
            raise ForeignFile(name, "it was not saved with the checkpoint")


def check_file(folder: Path, name: str, saved: Mapping[str, Any], *, hashed: bool = True) -> None:
    """Check one file against its entry in the manifest; see `check_files`."""
    file = folder / name
    if not file.is_file():
        raise DamagedFile(name, "the file is gone")
    size = file.stat().st_size
    if size == 0 and saved["size"]:
        raise DamagedFile(name, f"it is empty; {saved['size']:,} bytes were saved")
    if size != saved["size"]:
        raise DamagedFile(name, f"it has {size:,} bytes; {saved['size']:,} were saved")
    if (hashed or size < _ALWAYS_READ) and _sha256(file) != saved["sha256"]:
        raise DamagedFile(name, "its sha256 is not the one that was saved")


def _counts(name: str) -> bool:
    """Whether a file belongs to the checkpoint: hidden ones are of the file manager or ours."""
    return not name.startswith(".") and name not in (MANIFEST, LABELS)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _seal(content: Mapping[str, object]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _text(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2) + "\n"
