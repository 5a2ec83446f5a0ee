"""Which base models are offered, and the folder of each. Knows names and files, no torch."""

import asyncio
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.log import log
from tinkersmith.errors import reason_of
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import check_weights, context_in, text_config
from tinkersmith.peft_format import ADAPTER_CONFIG

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_AS_SERVED = re.compile(r"(.+):peft:\d+")  # how the cloud names a model with its longest context
_HUB_TIMEOUT = 10.0  # seconds
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def plain_name(name: str) -> str:
    """A base model's name without what the cloud may add to it: NAME:peft:N is NAME."""
    served = _AS_SERVED.fullmatch(name)
    return served[1] if served else name


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter in PEFT's format that is offered for sampling, by a name of its own."""

    folder: Path
    base_model: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The base models of this engine, by name. Any model of the Hub can be requested as well."""

    folders: dict[str, Path]  # grows by the models of the Hub that were requested
    adapters: "dict[str, AdapterFolder]" = field(default_factory=dict[str, "AdapterFolder"])
    # What models accept that have been loaded. They are written on the engine thread.
    contexts: dict[str, int] = field(default_factory=dict[str, int])

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
                "max_context_length": self.context(name),
                "trainable": True,
                "sampleable": True,
            }
            for name in self.folders
        ]

    def context(self, name: str) -> int | None:
        """The most tokens of a sequence; None: config.json does not say, and it is not loaded.

        Raises:
            Refused: the model is not on this machine.
        """
        return self.contexts.get(name) or context_length(self.folder(name))

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
            kind = type(error).__name__
            answered = any(base.__name__ == "HfHubHTTPError" for base in type(error).__mro__)
            trouble = (
                f"the Hub does not provide it ({kind}). Name its folder instead."
                if answered
                else f"the Hub cannot be reached ({kind}). Name its folder, or start the engine "
                "with HF_ENDPOINT set to a mirror."
            )
            raise Refused(
                f"{self.not_offered(name)} It is not in the local Hugging Face cache either, and "
                f"{trouble}"
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
        check_base_folder(folder)
        folders[name if equals else entry] = folder.resolve()
    return Catalogue(folders)


def add_adapters(catalogue: Catalogue, adapters: list[str], bases: list[str]) -> None:
    """Offer adapters, each NAME=FOLDER; `bases` are NAME=BASE for those whose config is wrong.

    Raises:
        Refused: a folder is no adapter, or its base model is not offered.
    """
    named = dict(_two(entry, "--adapter-base", "NAME=BASE") for entry in bases)
    for entry in adapters:
        name, folder = _two(entry, "--adapter", "NAME=FOLDER")
        if name in catalogue.folders or name in catalogue.adapters:
            raise Refused(f"two models have the name {name!r}; give --adapter another one.")
        file = Path(folder) / ADAPTER_CONFIG
        try:
            trained_on: object = read_json_object(file).get("base_model_name_or_path")
        except OSError as error:
            raise Refused(f"{file} cannot be read: {reason_of(error)}.") from None
        except ValueError as error:
            raise Refused(f"{file} is damaged: {error}. Export the adapter again.") from None
        base = _offered(catalogue, named.pop(name, str(trained_on or "")))
        if base is None:
            raise Refused(
                f"{folder} was trained on {trained_on}, which is not offered here; offer it with "
                "--base-model, or name what it is called here: --adapter-base NAME=BASE."
            )
        catalogue.adapters[name] = AdapterFolder(Path(folder).resolve(), base)
    for name in named:
        raise Refused(f"--adapter-base names {name!r}, and no --adapter has that name.")


def _two(entry: str, option: str, form: str) -> tuple[str, str]:
    first, _, second = entry.partition("=")
    if not first or not second:
        raise Refused(f"{option} is {entry!r}; it must be {form}.")
    return first, second


def _offered(catalogue: Catalogue, base: str) -> str | None:
    """The name by which a base model is offered that is known by this name or folder."""
    if base in catalogue.folders:
        return base
    folder = Path(base).resolve() if base else None
    return next((name for name, place in catalogue.folders.items() if place == folder), None)


def _snapshot(name: str, **options: object) -> Path:
    """The folder of a Hub model in the local cache, where it is downloaded to if need be."""
    hub: Any = import_module("huggingface_hub")  # slow to import, and not fully annotated
    return Path(hub.snapshot_download(name, **options))


def check_base_folder(folder: Path) -> None:
    """Check what can be seen without loading: config.json, index, and headers of the weights.

    Raises:
        Refused: the folder is no model, or a damaged one; the sentence names the file.
    """
    config = model_config(folder)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise Refused(
            f"{folder / 'config.json'} has no model_type, so it does not describe a model; name "
            "another folder, or copy the model again."
        )
    try:
        tensors = check_weights(folder)
    except OSError as error:
        raise Refused(f"{error.filename or folder} cannot be read: {reason_of(error)}.") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    for part in (config, text_config(config)):
        layers: object = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > tensors:  # building them could take all memory
            raise Refused(
                f"{folder / 'config.json'} says {layers:,} layers, and there are only {tensors:,} "
                "tensors; copy the model again."
            )


def model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder.

    Raises:
        Refused: there is none, or a damaged one.
    """
    file = folder / "config.json"
    try:
        return read_json_object(file)
    except FileNotFoundError:
        raise Refused(f"{folder} is not a model folder: it has no config.json.") from None
    except OSError as error:
        raise Refused(f"{file} cannot be read: {reason_of(error)}.") from None
    except ValueError as error:
        raise Refused(f"{file} is damaged: {error}. Copy the model again.") from None


def context_length(folder: Path) -> int | None:
    """The most tokens of a sequence by config.json; None if it does not say, or has been damaged.

    A model accepts as many when it is loaded.
    """
    try:
        config = model_config(folder)
    except Refused:  # using the model says so
        return None
    return context_in(config)
