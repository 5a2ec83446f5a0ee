"""Tensors of idle clients, spilled to disk while nobody uses them, for one engine process."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed engines then stay
    fcntl = None

_LOCK = "owner.lock"
_NEWBORN = 60.0  # seconds in which a folder may not have its lock yet


class SpillFolder:
    """The tensors of one engine, in a folder below `root`; folders of dead engines are removed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        self.folder = Path(tempfile.mkdtemp(dir=root))
        # Held until this process ends, however it ends: it shows other engines that this one lives.
        self._lock = (self.folder / _LOCK).open("w")
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def put(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write a client's tensors.

        Raises:
            OSError, SafetensorError: the disk is full; nothing is written then.
        """
        file = self._file(name)
        temporary = file.with_suffix(".tmp")
        try:
            # No fsync: nobody needs these files after a crash of the machine.
            save_file(tensors, temporary)
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def has(self, name: str) -> bool:
        return self._file(name).exists()

    def take(self, name: str) -> dict[str, torch.Tensor]:
        """Read a client's tensors and remove their file."""
        tensors = load_file(self._file(name))
        self.drop(name)
        return tensors

    def drop(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace(':', '_')}.safetensors"


def _sweep(root: Path) -> None:
    for mark in root.glob(f"*/{_LOCK}"):  # a folder without it is none of ours
        try:
            if fcntl is None or time.time() - mark.parent.stat().st_mtime < _NEWBORN:
                continue
            with mark.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
        except OSError:
            continue  # its engine lives, or another engine was faster
