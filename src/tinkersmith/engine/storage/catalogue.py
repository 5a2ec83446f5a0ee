"""Which base models there are, and in which folder each lies. Knows names and files, no torch."""

import asyncio
import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.log import log

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PATIENCE = 10.0  # seconds for an answer of the hub
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    folders: dict[str, Path]  # the models offered by name; any hub name may be asked for besides

    async def fetcher(self, name: str) -> Callable[[], object] | None:
        """What must run, aside, before the model can be loaded; None: nothing, it is here.

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
        """The folder of a model that is here (see `fetcher`).

        Raises:
            Refused: it is not.
        """
        if name not in self.folders and not self._from_cache(name):
            raise Refused(self.not_offered(name))
        return self.folders[name]

    def not_offered(self, name: str) -> str:
        near = difflib.get_close_matches(name, sorted(self.folders), n=20, cutoff=0.0)
        return f"base model {name!r} is not offered here; offered: {', '.join(near)}."

    def to_json(self) -> list[dict[str, object]]:
        """As the SDK's `supported_models`."""
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
        """Whether the Hugging Face cache has the model; it is entered then."""
        from huggingface_hub import snapshot_download

        if not _HUB_NAME.fullmatch(name):
            return False
        try:
            found = Path(snapshot_download(name, local_files_only=True))
        except Exception:
            return False
        if not any(found.glob("*.safetensors")) or not (found / "config.json").is_file():
            return False
        self.folders[name] = found
        return True

    def _check_hub(self, name: str) -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().model_info(name, timeout=_HUB_PATIENCE)
        except Exception as error:
            raise Refused(
                f"{self.not_offered(name)} It is not in the local Hugging Face cache either, and "
                f"the hub does not give it ({type(error).__name__}). Give its folder instead."
            ) from None

    def _download(self, name: str) -> None:
        from huggingface_hub import snapshot_download

        log.info("downloading %s", name)
        try:
            snapshot_download(name, allow_patterns=_MODEL_FILES, etag_timeout=_HUB_PATIENCE)
        except Exception as error:
            raise Refused(
                f"{name} could not be downloaded ({type(error).__name__}: {error})."
            ) from None
        if not self._from_cache(name):
            raise Refused(f"{name} has no safetensors weights; no others are loaded.")


def make_catalogue(base_models: list[str]) -> Catalogue:
    """The bundled models and `base_models`, each a folder or NAME=FOLDER.

    Raises:
        Refused: a folder is no model folder.
    """
    folders = {name: folder for name, folder in BUNDLED_MODELS.items() if folder.is_dir()}
    for entry in base_models:
        name, equals, place = entry.partition("=")
        folder = Path(place if equals else entry)
        if not (folder / "config.json").is_file():
            raise Refused(f"{folder} is not a model folder: it has no config.json.")
        folders[name if equals else entry] = folder.resolve()
    return Catalogue(folders)


def _context_length(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config).get("max_position_embeddings")
