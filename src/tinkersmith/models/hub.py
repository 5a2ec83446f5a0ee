"""A model's name -> files of it from a hub, with little patience and a true sentence.

The hub's own libraries wait for minutes where a network swallows what is sent. Therefore they work
in a thread of their own, and what has brought nothing for 8 seconds is given up. A command that
needs several things from a hub waits once: one that did not answer is not asked again at once.
"""

import errno
import http
import http.client
import importlib.util
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import (
    UserError,
    error_chain,
    error_kinds,
    is_of_network,
    network_reason,
    one_line,
    without_password,
)
from tinkersmith.models.known import hub_name, known_model
from tinkersmith.models.line_up import LLAMA_TOKENIZER

PATIENCE = 8.0  # seconds without a byte, for all hubs together
_SHARE = 0.6  # of it for the first hub, where a second one can be asked
_POLL = 0.1  # seconds
_ASKED_AGAIN_AFTER = 60.0  # seconds since a hub did not answer
TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# Of a large model, these are large as well, and no tokenizer needs them.
_NO_TOKENIZER_FILES = ("*.safetensors.index.json", "*.bin.index.json", "onnx/*", "original/*")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json")


class _Unreached(Exception):
    """A hub did not answer; the text says why, without an end."""


# By the name of a hub: when it last did not answer, and why.
_unreached: dict[str, tuple[float, str]] = {}


class HubRefusal(Exception):
    """A hub answered, and does not give the files; the text is a sentence."""


class NotShown(HubRefusal):
    """A hub has no such repository, or does not show it to this user."""


def tokenizer_repository(name: str) -> str:
    """The repository that has the tokenizer of a model: mostly the model's own."""
    model, name = known_model(name), hub_name(name)
    if name.startswith("meta-llama/Llama-3"):
        return LLAMA_TOKENIZER  # Llama's own is gated
    return model.name if model is not None else name


def cached_tokenizer_folder(name: str) -> Path | None:
    """The folder of a hub model in the local Hugging Face cache, if its tokenizer is there.

    Raises:
        UserError: this cannot be the name of a model on a hub.
    """
    from huggingface_hub import try_to_load_from_cache

    refuse_impossible_name(name)
    for repository in dict.fromkeys((tokenizer_repository(name), hub_name(name))):
        for file in _TOKENIZER_NAMES:
            place = try_to_load_from_cache(repository, file)
            if isinstance(place, str):
                return Path(place).parent
    return None


def refuse_impossible_name(name: str) -> None:
    """Check that a name has the form of a model's name on a hub.

    Raises:
        UserError: it has not.
    """
    if not _NAME.fullmatch(hub_name(name)):
        raise UserError(
            f'BASE_MODEL "{name}" is not a model folder, and it cannot be the name of a model '
            "on a hub. Name a folder in Hugging Face format, or organisation/model."
        )


def tokenizer_from_hub(name: str) -> Path:
    """The folder with a model's tokenizer files, downloaded where they are not in the cache.

    Raises:
        UserError: no hub gives them; the sentence says why, and what to set.
    """
    if (folder := cached_tokenizer_folder(name)) is not None:
        return folder
    return _downloaded(
        tokenizer_repository(name),
        TOKENIZER_FILES,
        _NO_TOKENIZER_FILES,
        f"The tokenizer of {hub_name(name)} is not on this machine",
        'Set TOKENIZER = "FOLDER", a folder with its tokenizer.json',
    )


def model_files_from_hub(name: str, patterns: Sequence[str], advice: str) -> Path:
    """The folder of a hub model with the files of these patterns, downloaded if need be.

    Args:
        advice: what the user can do instead, as the beginning of a sentence.

    Raises:
        UserError: no hub gives them.
    """
    refuse_impossible_name(name)
    about = f"The base model {hub_name(name)} is needed, and is not in the local cache of the hub"
    return _downloaded(hub_name(name), patterns, (), about, advice)


def check_hub_has(name: str) -> None:
    """Ask the hub for a model that our own engine would download, before it is started.

    Raises:
        UserError: it is not in the local cache, and the hub does not answer or has no such model.
    """
    from huggingface_hub import try_to_load_from_cache

    refuse_impossible_name(name)
    repository = hub_name(name)
    if isinstance(try_to_load_from_cache(repository, "config.json"), str):
        return
    try:
        reason = hub_unreached("models", repository)
    except NotShown as error:
        reason = f"The hub at {shown_endpoint()}: {error}"
    if reason is not None:
        raise UserError(
            f"BASE_MODEL {name} is not on this machine. {reason} Name a folder in Hugging Face "
            f"format, or the bundled {' or '.join(sorted(BUNDLED_MODELS))}; or set "
            "HF_ENDPOINT to a mirror that you can reach, such as "
            "https://hf-mirror.com."
        )


def hub_unreached(kind: str, repository: str) -> str | None:
    """Why the hub is of no use now, as a sentence; None if it is, or if it must not be asked.

    Args:
        kind: "models" or "datasets".

    Raises:
        NotShown: it answers that it has no such repository, or does not show it.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return None
    token = get_token()

    def ask() -> Path:
        _probe(f"{endpoint()}/api/{kind}/{repository}", token)
        return Path()

    hub = f"The hub at {shown_endpoint()}"
    try:
        _within(hub, ask, Path(os.devnull), PATIENCE)
    except _Unreached as error:
        return f"{hub} does not answer ({error})."
    except NotShown:
        raise
    except HubRefusal as error:
        return f"{hub}: {error}"
    return None


def _downloaded(
    repository: str, patterns: Sequence[str], without: Sequence[str], about: str, advice: str
) -> Path:
    second = _has_modelscope()
    begun, reasons = time.monotonic(), list[str]()
    hubs: list[tuple[str, Callable[[], Path], Path]] = [
        (
            f"The hub at {shown_endpoint()}",
            lambda: _from_hugging_face(repository, patterns, without),
            _cache_of(repository),
        )
    ]
    if second:
        hubs.append(
            (
                "ModelScope",
                lambda: _from_modelscope(repository, patterns, without),
                Path(os.environ.get("MODELSCOPE_CACHE", "~/.cache/modelscope")).expanduser(),
            )
        )
    for place, (hub, fetch, cache) in enumerate(hubs):
        patience = PATIENCE * _SHARE if place == 0 and second else PATIENCE
        left = patience if place == 0 else max(begun + PATIENCE - time.monotonic(), 1.0)
        try:
            return _within(hub, fetch, cache, left)
        except _Unreached as error:
            reasons.append(f"{hub} does not answer ({error}).")
        except HubRefusal as error:
            reasons.append(f"{hub}: {error}")
    more = "" if second else ", or for ModelScope: pip install 'tinkersmith[modelscope]'"
    raise UserError(
        f"{about}. {' '.join(reasons)} {advice}; or set HF_ENDPOINT to a mirror that you can "
        f"reach, such as https://hf-mirror.com{more}."
    )


def _has_modelscope() -> bool:
    return importlib.util.find_spec("modelscope") is not None


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or Hugging Face's own."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"


def shown_endpoint() -> str:
    """The hub's address as messages show it."""
    return one_line(without_password(endpoint()))


def endpoint_fault() -> str:
    """What is wrong with HF_ENDPOINT, as a sentence; "" if nothing is."""
    scheme, _, rest = endpoint().partition("://")
    host = rest.partition("/")[0]
    if scheme in ("http", "https") and host and "@" not in host:
        return ""
    return (
        "HF_ENDPOINT is no address of a hub. It must begin with https:// or http://, and have no "
        "password."
    )


def _within(hub: str, fetch: Callable[[], Path], cache: Path, patience: float) -> Path:
    """What `fetch` returns, as long as files in `cache` grow or `patience` is not spent.

    Args:
        hub: its name. One that did not answer within the last minute is not asked.

    Raises:
        _Unreached: nothing came.
        HubRefusal: the hub gave an answer, and not the files.
    """
    since, reason = _unreached.get(hub, (0.0, ""))
    if reason and time.monotonic() - since < _ASKED_AGAIN_AFTER:
        raise _Unreached(reason)
    try:
        return _waited_for(fetch, cache, patience)
    except _Unreached as error:
        _unreached[hub] = time.monotonic(), str(error)
        raise


def _waited_for(fetch: Callable[[], Path], cache: Path, patience: float) -> Path:
    results: list[Path] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(fetch())
        except BaseException as error:  # raised again by whoever waits
            failures.append(error)

    # A daemon: a library that waits for a dead network must not keep the program alive.
    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    size, deadline = _bytes_in(cache), time.monotonic() + patience
    next_look = time.monotonic() + 1.0
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(_POLL)
        if time.monotonic() > next_look and (now := _bytes_in(cache)) != size:
            size, deadline = now, time.monotonic() + patience
            next_look = time.monotonic() + 1.0
    if results:
        return results[0]
    if failures:
        raise failures[0]
    raise _Unreached(f"nothing arrived for {patience:.0f} s")


def _bytes_in(folder: Path) -> int:
    """The size of the files in a folder, for whether a download goes on."""
    size = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            size += path.lstat().st_size
        except OSError:  # moved to its place meanwhile
            continue
    return size


def _cache_of(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _from_hugging_face(repository: str, patterns: Sequence[str], without: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    hub: Any = huggingface_hub
    disable_progress_bars()
    offline = bool(hub.constants.HF_HUB_OFFLINE)
    try:
        if not offline:
            _probe(f"{endpoint()}/api/models/{repository}", hub.get_token())
        return Path(
            hub.snapshot_download(
                repository,
                allow_patterns=list(patterns),
                ignore_patterns=list(without),
                endpoint=endpoint(),
                local_files_only=offline,
            )
        )
    except (_Unreached, HubRefusal):
        raise
    except Exception as error:  # those of the library and of what it uses
        raise _told(error, repository, offline, bool(hub.get_token())) from None


def _probe(url: str, token: str | None) -> None:
    """Ask for the repository once: the library would try again for minutes.

    Raises:
        _Unreached: the hub does not answer.
        HubRefusal: it answers, and refuses.
    """
    if fault := endpoint_fault():
        raise HubRefusal(fault)
    headers = {"User-Agent": "tinkersmith"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(url, headers=headers)
        # As the library asks: through the proxies of the environment, as it is now.
        through = urllib.request.build_opener()
        with through.open(request, timeout=2 * PATIENCE):  # `_within` ends it earlier
            return
    except urllib.error.HTTPError as error:
        raise _refused("/".join(url.split("/")[-2:]), error.code, bool(token)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _Unreached(_network(error)) from None


def _refused(repository: str, status: int, has_token: bool) -> Exception:
    """What an HTTP status of a hub, or of a proxy before it, means."""
    try:
        answer = f"HTTP {status}, {http.HTTPStatus(status).phrase}"
    except ValueError:
        answer = f"HTTP {status}"
    if status in (401, 403, 404, 410):
        return NotShown(_hidden(repository, status, has_token))
    if status == 407:
        return HubRefusal(
            f"a proxy wants a name and a password ({answer}). Put them into HTTPS_PROXY: "
            "http://NAME:PASSWORD@HOST:PORT."
        )
    if status == 429:
        more = "" if has_token else ", or set HF_TOKEN: accounts may ask more often"
        return HubRefusal(f"it was asked too often ({answer}). Wait some minutes{more}.")
    if status == 451:
        return HubRefusal(f"it does not give {repository} to this network ({answer}).")
    if status in (502, 503, 504):
        return _Unreached(answer)
    whose = "a fault of the hub; try again later" if status >= 500 else "it refuses the question"
    return HubRefusal(f"{whose} ({answer}).")


def _network(error: BaseException) -> str:
    """Why a hub was not reached, in a few words, with the proxy that stands between."""
    reason = getattr(error, "reason", error)  # urllib wraps what it met
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = (
            f"its certificate is not trusted: {reason.verify_message}; if a proxy of your network "
            "reads along, set SSL_CERT_FILE to its certificate"
        )
    elif isinstance(reason, ssl.SSLError):
        text = "it does not speak HTTPS; check the address"
    else:
        text = network_reason(error)
    scheme, _, rest = endpoint().partition("://")
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(rest.partition("/")[0]):
        text += f"; asked through the proxy {without_password(proxy)}"
    return text


def _hidden(repository: str, status: int, has_token: bool) -> str:
    """The sentence about a repository that a hub does not show to this user."""
    if has_token:
        return (
            f"{repository} does not exist there, or your HF_TOKEN may not read it (HTTP {status}). "
            f"Correct the name, or ask for access at {shown_endpoint()}/{repository}."
        )
    return (
        f"{repository} does not exist there, or is not public (HTTP {status}). Correct the name; "
        f"or ask for access at {shown_endpoint()}/{repository} and set HF_TOKEN to a token of your "
        "account."
    )


def _told(error: Exception, repository: str, offline: bool, has_token: bool) -> Exception:
    """What an error of the hub's library means."""
    chain, kinds = list(error_chain(error)), error_kinds(error)
    if offline or "OfflineModeIsEnabled" in kinds:
        return HubRefusal("HF_HUB_OFFLINE forbids to ask it; unset that to download.")
    if "GatedRepoError" in kinds:
        return HubRefusal(
            f"{repository} is gated. Accept its licence at {shown_endpoint()}/{repository}, and "
            "set HF_TOKEN to a token of your account."
        )
    missing = {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}
    if kinds & missing and "LocalEntryNotFoundError" not in kinds:
        return HubRefusal(_hidden(repository, 404, has_token))
    statuses = [getattr(getattr(link, "response", None), "status_code", None) for link in chain]
    for status in statuses:
        if isinstance(status, int) and status >= 400:
            return _refused(repository, status, has_token)
    if kinds & {"JSONDecodeError", "UnicodeDecodeError"}:
        return HubRefusal(
            "it answers with a page that is no answer of a hub. Check the address, and whether "
            "your network wants a login first."
        )
    for link in chain:
        if isinstance(link, OSError) and link.errno in _DISK:
            return HubRefusal(
                f"its files cannot be stored in {_cache_of(repository).parent} "
                f"({os.strerror(link.errno)}). Free some space, or set HF_HOME to another folder."
            )
    if kinds & _NETWORK_KINDS or any(isinstance(e, OSError) and is_of_network(e) for e in chain):
        return _Unreached(_network(chain[-1]))
    what = one_line(" ".join(str(error).split()), 200).rstrip(".")
    return HubRefusal(f"its answer cannot be used ({type(error).__name__}: {what}).")


# Of httpx, of requests, and of the hub's library.
_NETWORK_KINDS = {"TransportError", "ConnectionError", "Timeout", "LocalEntryNotFoundError"}

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def _from_modelscope(repository: str, patterns: Sequence[str], without: Sequence[str]) -> Path:
    from importlib import import_module

    try:
        download: Any = import_module("modelscope.hub.snapshot_download").snapshot_download
        return Path(
            cast(
                "str",
                download(repository, allow_patterns=list(patterns), ignore_patterns=list(without)),
            )
        )
    except Exception as error:  # those of the library and of what it uses
        kinds = error_kinds(error)
        if kinds & {"ConnectionError", "Timeout", "TimeoutError", "ConnectTimeout"}:
            raise _Unreached(network_reason(error)) from None
        what = one_line(" ".join(str(error).split()), 200).rstrip(".") or type(error).__name__
        raise HubRefusal(f"{repository} cannot be had there: {what}.") from None
