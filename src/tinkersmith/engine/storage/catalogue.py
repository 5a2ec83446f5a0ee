"""Which base models are offered, and the folder of each. Knows names and files, no torch."""

import asyncio
import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.log import log

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT = 10.0  # seconds
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The base models of this engine, by name. Any model of the Hub can be requested as well."""

    folders: dict[str, Path]  # grows by the models of the Hub that were requested

    async def fetcher(self, name: str) -> Callable[[], object] | None:
        """What must run, in another thread, before the model can be loaded.

        None: the model is on this machine.

        Raises:
            Refused: there is no such model; the sentence lists what is offered.
        """
        if name in self.folders:
            return None
        if not _HUB_NAME.fullmatch(name):
            raise Refused(self.not_offered(name))
        if await asyncio.to_thread(self._from_cache, name):
            return None
        await asyncio.to_thread(self._check_hub, name)
        return lambda: self._download(name)

    def folder(self, name: str) -> Path:
        """The folder of a model.

        Raises:
            Refused: the model is not on this machine (see `fetcher`).
        """
        if name not in self.folders and not self._from_cache(name):
            raise Refused(self.not_offered(name))
        return self.folders[name]

    def not_offered(self, name: str) -> str:
        """A sentence that lists what is offered, the most similar names first."""
        near = difflib.get_close_matches(name, sorted(self.folders), n=20, cutoff=0.0)
        return f"base model {name!r} is not offered here; offered: {', '.join(near)}."

    def to_json(self) -> list[dict[str, object]]:
        """The SDK's `supported_models`."""
        return [
            {
                "model_name": name,
                "max_context_length": _context_length(folder),
                "trainable": True,
                "sampleable": True,
            }
            for name, folder in self.folders.items()
        ]

    def _from_cache(self, name: str) -> bool:
        """Whether the Hugging Face cache holds the model. If so, register its folder."""
        if not _HUB_NAME.fullmatch(name):
            return False
        try:
            folder = _snapshot(name, local_files_only=True)
        except Exception:
            return False
        if not any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
            return False
        self.folders[name] = folder
        return True

    def _check_hub(self, name: str) -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().model_info(name, timeout=_HUB_TIMEOUT)
        except Exception as error:
            raise Refused(
                f"{self.not_offered(name)} It is not in the local Hugging Face cache either, and "
                f"the Hub does not provide it ({type(error).__name__}). Name its folder instead."
            ) from None

    def _download(self, name: str) -> None:
        log.info("downloading %s", name)
        try:
            _snapshot(name, allow_patterns=_MODEL_FILES, etag_timeout=_HUB_TIMEOUT)
        except Exception as error:
            raise Refused(
                f"{name} could not be downloaded ({type(error).__name__}: {error})."
            ) from None
        if not self._from_cache(name):
            raise Refused(f"{name} has no safetensors weights, the only format that is loaded.")


def make_catalogue(base_models: list[str]) -> Catalogue:
    """A catalogue of the bundled models and of `base_models`, each FOLDER or NAME=FOLDER.

    Raises:
        Refused: a folder is not a model folder.
    """
    folders = {name: folder for name, folder in BUNDLED_MODELS.items() if folder.is_dir()}
    for entry in base_models:
        name, equals, named_folder = entry.partition("=")
        folder = Path(named_folder if equals else entry)
        if not (folder / "config.json").is_file():
            raise Refused(f"{folder} is not a model folder: it has no config.json.")
        folders[name if equals else entry] = folder.resolve()
    return Catalogue(folders)


def _snapshot(name: str, **options: object) -> Path:
    """The folder of a Hub model in the local cache, where it is downloaded to if need be."""
    hub: Any = import_module("huggingface_hub")  # slow to import, and not fully annotated
    return Path(hub.snapshot_download(name, **options))


def _context_length(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config).get("max_position_embeddings")
