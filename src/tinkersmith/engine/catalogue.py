"""Which base models there are, and in which folder each lies. Knows names and files, no torch."""

import difflib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused

log = logging.getLogger("tinkersmith.engine")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    folders: dict[str, Path]  # the models offered by name; any hub name may be asked for besides

    def check(self, name: str) -> None:
        """Raises: Refused: no model can have this name; the sentence lists what is offered."""
        if name not in self.folders and not _HUB_NAME.fullmatch(name):
            raise Refused(self.not_offered(name))

    def folder(self, name: str) -> Path:
        """The model's folder; a hub model comes from the local cache, else it is downloaded.

        Raises:
            Refused: it is not to be had.
        """
        return self.folders.get(name) or self._from_hub(name)

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

    def _from_hub(self, name: str) -> Path:
        from huggingface_hub import snapshot_download

        try:
            found = Path(snapshot_download(name, local_files_only=True))
            if any(found.glob("*.safetensors")):
                return found
        except Exception:
            log.info("%s is not in the local cache; trying to download it", name)
        try:
            return Path(snapshot_download(name, allow_patterns=_MODEL_FILES, etag_timeout=5))
        except Exception as error:
            raise Refused(
                f"{self.not_offered(name)} It is not in the local Hugging Face cache either, and "
                f"could not be downloaded ({type(error).__name__}). Give its folder instead."
            ) from None


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
