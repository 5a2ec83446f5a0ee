"""Checkpoint on a server -> the files of its LoRA; base model name -> the folder of its files."""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tinkersmith.errors import UserError
from tinkersmith.merging import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_base
from tinkersmith.service import LOOPBACK, Service, local_model_folder
from tinkersmith.trained_model import TrainedModel

if TYPE_CHECKING:
    import tinker

_TEMPORARY = 3600  # seconds that the server keeps the copy made for the download; its least
_WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]
_OTHER_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def training_client(service: Service, model: TrainedModel) -> "tinker.TrainingClient":
    pending = service.client.create_training_client_from_state(
        model.state_path, user_metadata={"created_by": "tinkersmith export"}
    )
    try:
        return service.wait(pending, f"loading {model.state_path}")
    except UserError as error:
        if model.run is not None:
            raise
        raise UserError(
            f"{error} Only saved states can be exported: sampler weights need a state of the same "
            "name beside them."
        ) from None


def download_adapter(service: Service, client: "tinker.TrainingClient", folder: Path) -> None:
    """A temporary copy in the server's exchange format, fetched file by file, then deleted."""
    name = f"export-{dt.datetime.now():%Y%m%d-%H%M%S}"
    pending = client.save_weights_external(name, ttl_seconds=_TEMPORARY)
    copy = service.wait(pending, "preparing the download").path
    try:
        signed = service.wait(service.rest.get_external_weights_urls(copy), "asking for the files")
        missing = {ADAPTER_CONFIG, ADAPTER_WEIGHTS} - signed.urls.keys()
        if missing:
            raise UserError(
                f"The server offers {', '.join(sorted(signed.urls)) or 'no files'} for download, "
                f"but no {sorted(missing)[0]}; this export needs a LoRA in PEFT format."
            )
        unknown = signed.urls.keys() - {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
        if unknown:
            raise UserError(f"The server offers a file that is unknown here: {sorted(unknown)[0]}.")
        for file_name, url in sorted(signed.urls.items()):
            _fetch(url, folder / file_name)
    finally:
        # Where this fails, the server deletes the copy itself within the hour.
        service.rest.delete_checkpoint_from_tinker_path(copy)


def _fetch(url: str, file: Path) -> None:
    import http.client
    import urllib.error
    import urllib.request

    loopback = urlsplit(url).hostname in LOOPBACK
    proxies = [urllib.request.ProxyHandler({})] if loopback else []
    opener = urllib.request.build_opener(*proxies)
    try:
        with opener.open(url, timeout=60) as response, _progress(file.name) as advance:
            expected = int(response.headers.get("Content-Length") or 0)
            try:
                with file.open("wb") as target:
                    while block := response.read(1 << 20):
                        target.write(block)
                        advance(len(block), expected)
            except TimeoutError:
                raise
            except OSError as error:
                if isinstance(error, urllib.error.URLError | ConnectionError):
                    raise
                raise _not_written(file.parent.parent, error) from None
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise UserError(
            f"{file.name} could not be downloaded ({error}). Check the connection; export again."
        ) from None
    if expected and file.stat().st_size != expected:
        raise UserError(
            f"{file.name} came with {file.stat().st_size:,} of {expected:,} bytes. Export again."
        )


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for large files on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda count, total: bar.update(task, advance=count, total=total or None)


def base_folder(service: Service, named: str | Path | None, *, weights: bool) -> Path:
    """The base model's files: as named, bundled, local, in the hub's cache, or on the hub."""
    if named:
        folder = Path(named).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a model folder: it has no config.json.")
        return folder.resolve()
    name = service.base_model
    if (found := local_model_folder(name)) is not None:
        return found
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if read_base(cached).shapes or not weights:
            return cached
    except Exception:  # not in the cache, or only a part of it
        pass
    patterns = [*_OTHER_FILES, *(_WEIGHT_FILES if weights else _WEIGHT_FILES[1:])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=10))
    except Exception as error:
        raise UserError(
            f"The base model {name} is needed, but is not in the local Hugging Face cache and "
            f"could not be downloaded ({type(error).__name__}). Name its folder with --base-folder."
        ) from None


