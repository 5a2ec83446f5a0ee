"""Checks of models and kernels that passed -> files, so that a later start need not run them again.

An entry counts only for the same engine, versions, model, weights and processor. One that is
damaged, or belongs to something else, is ignored: the check runs again.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from tinkersmith.engine.kernels.native.build import processor_features
from tinkersmith.engine.log import log
from tinkersmith.files import write_json

_ENGINE = Path(__file__).resolve().parents[1]
_SOURCES = (".py", ".cpp", ".h")
_VERSIONS = ("torch", "transformers", "numpy", "safetensors")
# Libraries choose their instructions by these.
_ENVIRONMENT = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")
_WHOLE = 64 * 2**20  # bytes of a weights file, up to which all of them are read
_ENDS = 2**20  # bytes at both ends of a larger one
_MOST_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class RememberedChecks:
    """The checks of one model as it is loaded on this machine."""

    folder: Path
    facts: Mapping[str, str]  # all that a result depends on

    def __call__(self, name: str, check: Callable[[], float]) -> float:
        """The check's result: from a file, or computed now and written to one.

        A check that raises has not passed, and is not remembered.
        """
        file = self.folder / f"{_digest([name, dict(self.facts)])[:32]}.json"
        value = self._read(file, name)
        if value is None:
            value = check()
            self._write(file, name, value)
        return value

    def _read(self, file: Path, name: str) -> float | None:
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or not as it was written
            return None
        value = entry.get("value") if isinstance(entry, dict) else None
        if not isinstance(value, int | float) or entry != self._entry(name, value):
            return None
        return float(value)

    def _write(self, file: Path, name: str, value: float) -> None:
        if not math.isfinite(value):
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(file, self._entry(name, value))
            entries = sorted(self.folder.glob("*.json"), key=lambda entry: entry.stat().st_mtime)
            for old in entries[:-_MOST_ENTRIES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            log.info("%s cannot be written to (%s): checks run at every start", self.folder, reason)

    def _entry(self, name: str, value: float) -> dict[str, object]:
        content: dict[str, object] = {"check": name, "facts": dict(self.facts), "value": value}
        return content | {"digest": _digest(content)}


def facts_of_model(model_folder: Path, dtype: str, device: str) -> dict[str, str]:
    """All that the checks of a model depend on, each as a short string."""
    place = torch.device(device)
    environment = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)
    }
    return {
        "engine": _engine_sources(),
        "versions": " ".join(
            [f"python {platform.python_version()}", *(f"{n} {version(n)}" for n in _VERSIONS)]
        ),
        "model": _model_digest(model_folder),
        "dtype": dtype,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "processor": _digest([processor_features(), environment]),
    }


@lru_cache
def _engine_sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(_ENGINE.rglob("*")):
        if file.suffix in _SOURCES:
            digest.update(f"{file.relative_to(_ENGINE)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _model_digest(folder: Path) -> str:
    """A digest of configuration and weights. Large files count by their ends, size and time."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]):
        if not file.is_file():  # a pipe would be waited for
            continue
        facts = file.stat()
        digest.update(f"{file.name} {facts.st_size}\0".encode())
        with file.open("rb") as content:
            if facts.st_size <= _WHOLE:
                digest.update(content.read())
                continue
            digest.update(f"{facts.st_mtime_ns}\0".encode())
            digest.update(content.read(_ENDS))  # the names and places of all tensors
            content.seek(-_ENDS, os.SEEK_END)
            digest.update(content.read())
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
