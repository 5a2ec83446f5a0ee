"""Checkpoint on a server -> the files of its LoRA; base model's name -> the folder of its files."""

import datetime as dt
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import read_base
from tinkersmith.fingerprint import WEIGHTS_INDEX
from tinkersmith.guards.proxies import is_on_this_machine, opener
from tinkersmith.manifest import MANIFEST, DamagedFile, check_files, read_manifest
from tinkersmith.models.hub import model_files_from_hub
from tinkersmith.models.known import hub_name
from tinkersmith.models.names import local_model_folder
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tinkersmith.progress import Progress
from tinkersmith.runs.trained_model import ModelReference
from tinkersmith.service.connection import Service

if TYPE_CHECKING:
    import tinker

LARGEST_LORA = 64 * 2**30  # bytes of a download whose size the server has not told
LARGEST_JSON = 16 * 2**20  # bytes
_SLACK = 2**20  # bytes by which a file may be larger than the server has told
_LIFETIME = 3600  # seconds that the server keeps the copy made for the download; its least
_WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]
# What tells the layers of a model: its configuration, and the names of its tensors.
_NAMES_LAYERS = (("config.json",), (WEIGHTS_INDEX, "model.safetensors"))
_OTHER_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def open_state(service: Service, model: ModelReference) -> "tinker.TrainingClient":
    """A training client on the saved state. The SDK exports from such clients only.

    Raises:
        UserError: the server has no such state.
    """
    _check_state(model)
    try:
        return service.ask(
            lambda: service.client.create_training_client_from_state(
                model.state_path,
                user_metadata={**service.labels, "created_by": "tinkersmith export"},
            ),
            f"loading {model.state_path}",
        )
    except UserError as error:
        if model.run is not None:
            raise
        raise UserError(
            f"{error} Only a saved state can be exported: sampler weights need a state of the same "
            "name."
        ) from None


def _check_state(model: ModelReference) -> None:
    """Refuse a state that was deleted to save space, and name those that are left."""
    saved = model.run.checkpoints() if model.run is not None else []
    gone = [checkpoint for checkpoint in saved if checkpoint.state_deleted]
    for checkpoint in gone:
        if checkpoint.state_path == model.state_path:
            states = [other.state_path for other in saved if not other.state_deleted]
            left = ", ".join(states) or "none"
            raise UserError(
                f"The state of {checkpoint.name} was deleted to save space (KEEP_LAST); its "
                f"sampler weights can be evaluated, but not exported. These are left: {left}."
            )


def download_adapter(service: Service, client: "tinker.TrainingClient", folder: Path) -> None:
    """Download the LoRA: the server makes a temporary copy for it, which is deleted afterwards.

    Raises:
        UserError: the server offers something else, or the connection broke.
        OSError: a file cannot be written.
    """
    name = f"export-{dt.datetime.now():%Y%m%d-%H%M%S}"
    pending = client.save_weights_external(name, ttl_seconds=_LIFETIME)
    saved = service.wait(pending, "preparing the download")
    copy, size = saved.path, getattr(saved, "size_bytes", None)  # older SDKs do not pass it on
    try:
        signed = service.ask(
            lambda: service.rest.get_external_weights_urls(copy), "asking for the files"
        )
        wanted = {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
        if signed.urls.keys() - {MANIFEST} != wanted:
            raise UserError(
                f"The server offers the files {', '.join(sorted(signed.urls))}, but a LoRA in PEFT "
                f"format is {', '.join(sorted(wanted))}. It cannot be exported."
            )
        for file_name, url in sorted(signed.urls.items()):
            _fetch(service, url, folder / file_name, _limit(file_name, size))
        _check_against_manifest(folder, wanted)
    finally:
        with suppress(UserError):  # the server deletes the copy itself within the hour
            service.delete_checkpoint(copy)


def _check_against_manifest(folder: Path, names: set[str]) -> None:
    """Compare what was received with the manifest, which our engine sends and the cloud does not.

    Raises:
        UserError: a file is not the one that the server saved.
    """
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            check_files(folder, manifest, only=names)
    except DamagedFile as damage:
        raise UserError(
            f"{damage.file} arrived damaged: {damage}. Run the export again; if it fails again, "
            "export an earlier checkpoint."
        ) from None
    # It describes the copy on the server, not the exported folder.
    (folder / MANIFEST).unlink(missing_ok=True)


def base_folder(service: Service, named: str | Path | None, *, weights: bool) -> Path:
    """The base model's folder for a service; see `model_folder`.

    Raises:
        UserError: it cannot be downloaded.
    """
    return model_folder(service.base_model, service.tokenizer_setting, named, weights=weights)


def model_folder(
    name: str,
    tokenizer_setting: str,
    named: str | Path | None,
    *,
    weights: bool,
    small_files_only: bool = False,
) -> Path:
    """A model's folder: `named`, bundled, local, in the hub's cache, or downloaded.

    Without `weights`, its config and tokenizer are enough.

    Args:
        name: the model's name or folder.
        tokenizer_setting: the value of TOKENIZER, whose folder may tell the layers, too.
        small_files_only: the weights are downloaded later.

    Raises:
        UserError: it cannot be downloaded.
    """
    if named:
        return Path(named).expanduser().resolve()
    if (folder := local_model_folder(name)) is not None:
        return folder
    if tokenizer_setting and not weights:
        own = Path(tokenizer_setting).expanduser()
        if all(any((own / name).is_file() for name in names) for names in _NAMES_LAYERS):
            return own.resolve()
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    try:
        cached = Path(snapshot_download(hub_name(name), local_files_only=True))
        if read_base(cached).shapes or not weights or small_files_only:
            return cached
    except Exception:  # not in the cache, or only a part of it is
        pass
    advice = "Name its folder with --base-folder"
    if not weights:
        advice += f" (for an adapter, its config.json, {WEIGHTS_INDEX} and tokenizer are enough)"
    if not weights or small_files_only:
        folder = model_files_from_hub(name, [*_OTHER_FILES, WEIGHTS_INDEX], advice)
        # A model in one file has no index: the file itself tells its layers.
        if small_files_only or (folder / WEIGHTS_INDEX).is_file():
            return folder
    return model_files_from_hub(name, [*_OTHER_FILES, *_WEIGHT_FILES], advice)


def _limit(file_name: str, announced: int | None) -> int:
    """How many bytes the file may have, if the server says that the whole has `announced`."""
    if file_name.endswith(".json"):
        return LARGEST_JSON
    return min(announced + _SLACK, LARGEST_LORA) if announced else LARGEST_LORA


def _fetch(service: Service, url: str, file: Path, limit: int = LARGEST_LORA) -> None:
    """Download a file, from its beginning again where the connection breaks.

    Raises:
        UserError: the server refuses it, SERVER_PATIENCE has passed, the address is not one to
            download from, or the file has more than `limit` bytes.
        OSError: the file cannot be written.
    """
    begun, attempt = time.monotonic(), 0
    while True:
        try:
            return _fetch_once(url, file, service.progress, limit)
        except _Broken as error:
            if not error.passes or time.monotonic() - begun >= service.patience:
                raise UserError(
                    f"{file.name} could not be downloaded ({error}). Check the connection and run "
                    "the export again."
                ) from None
        service.pause(attempt, f"downloading {file.name}")
        attempt += 1


def _fetch_once(url: str, file: Path, progress: Progress, limit: int) -> None:
    loopback = _check_address(url, file.name, from_loopback=True)
    opened = opener(url, _CheckedRedirects(file.name, loopback))
    size = expected = 0
    with file.open("wb") as target:
        response = _unbroken(lambda: opened.open(url, timeout=60))
        with response, progress.doing(f"downloading {file.name}") as task:
            length = response.headers.get("Content-Length") or ""
            expected = int(length) if length.isascii() and length.isdigit() else 0
            _check_size(expected, limit, file.name)
            while block := _unbroken(lambda: response.read(1 << 20)):
                size += len(block)
                _check_size(size, limit, file.name)
                target.write(block)
                state = f"{file.name}: {size / 1e6:,.1f} of {expected / 1e6:,.1f} MB"
                progress.reached(task, state, size / max(expected, 1))
    if expected and size != expected:
        raise _Broken(f"only {size:,} of {expected:,} bytes arrived", passes=True)


def _check_size(size: int, limit: int, name: str) -> None:
    if size > limit:
        raise UserError(
            f"{name} is larger than the {limit:,} bytes that the server announced or that are "
            "allowed, so its download was stopped. Check that the server is the one you mean."
        )


def _check_address(url: str, name: str, *, from_loopback: bool) -> bool:
    """Whether the address is on loopback. Over the network only HTTPS will do.

    Raises:
        UserError: it is of another scheme, or plain HTTP to another machine, or leads from another
            machine to this one.
    """
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError:
        scheme = ""
    loopback = is_on_this_machine(url)
    if scheme == "http" and not loopback:
        raise UserError(
            f"The server offers {name} over plain HTTP ({url[:100]}), where others could read or "
            "exchange it. Give that server a certificate, or run the export on its own machine."
        )
    if scheme not in ("http", "https") or (loopback and not from_loopback):
        raise UserError(
            f"The server offers {name} at {url[:100]!r}, which is not an https address of a server."
            " Check that the server is the one you mean."
        )
    return loopback


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that could have been named at first."""

    def __init__(self, name: str, loopback: bool) -> None:
        self.name = name
        self.loopback = loopback

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        target = urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        _check_address(target, self.name, from_loopback=self.loopback)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Broken(Exception):
    """A failure of the connection, as opposed to a full disk, which is an OSError as well."""

    def __init__(self, reason: str, *, passes: bool) -> None:
        super().__init__(reason)
        self.passes = passes  # another attempt may succeed


def _unbroken(receive: Callable[[], Any]) -> Any:
    try:
        return receive()
    except urllib.error.HTTPError as error:
        passes = error.code in (408, 425, 429) or error.code >= 500
        raise _Broken(str(error), passes=passes) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__, passes=True) from None
