"""An exported folder -> a repository on a model hub: Hugging Face's or ModelScope's.

What is sent was verified before. A new repository is private unless the user wants it public; one
that is there keeps its visibility.
"""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinkersmith.errors import (
    UserError,
    error_chain,
    error_kinds,
    is_of_network,
    network_reason,
    one_line,
)
from tinkersmith.models.hub import endpoint, endpoint_fault, shown_endpoint
from tinkersmith.models.names import local_model_folder

ANSWER_WITHIN = 10.0  # seconds: how long a hub may take to say who the token belongs to
SILENT_FOR = 120.0  # seconds: how long nothing may move while files are sent
_TARGET = re.compile(r"(hf|ms):([\w-][\w.-]*/[\w-][\w.-]*)")
_NAMES = {"hf": "Hugging Face", "ms": "ModelScope"}


@dataclass(frozen=True, slots=True)
class HubTarget:
    """A repository on a hub."""

    hub: str  # "hf" or "ms"
    repository: str  # organisation/name

    def __str__(self) -> str:
        return f"{self.hub}:{self.repository}"


def hub_target(text: str) -> HubTarget:
    """The repository that "hf:org/name" or "ms:org/name" names.

    Raises:
        UserError: the text has another form.
    """
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"--push {one_line(text)!r} names no repository. Write hf:ORGANISATION/NAME for "
            "Hugging Face or ms:ORGANISATION/NAME for ModelScope."
        )
    return HubTarget(match[1], match[2])


def check_access(target: HubTarget) -> None:
    """Ask the hub who the token belongs to, before anything is exported.

    Raises:
        UserError: there is no token, the hub does not accept it, or it does not answer.
    """
    if target.hub == "ms":
        api = _modelscope_api()
        _answered(lambda: api.whoami(), target)
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("--push needs a network, and HF_HUB_OFFLINE forbids it. Unset that.")
    if fault := endpoint_fault():
        raise UserError(f"{_place(target)}: {fault}")
    tokens = f"{shown_endpoint()}/settings/tokens"
    token = get_token()
    if not token:
        raise UserError(
            f"--push hf: needs a token that may write. Make one at {tokens}, and set HF_TOKEN or "
            "run: hf auth login"
        )
    if not (token.isascii() and token.isprintable()):
        raise UserError(
            "HF_TOKEN has characters that no token has. Copy the token again, with nothing around "
            "it."
        )
    if _may_only_read(_answered(lambda: _hf_api().whoami(), target)):
        raise UserError(
            f"The token may only read, so that nothing can be sent to {target}. Make one that may "
            f"write at {tokens}, and set HF_TOKEN."
        )


def push_folder(
    target: HubTarget,
    folder: Path,
    card: str,
    *,
    public: bool = False,
) -> str:
    """Send an exported folder with `card` as its README.md; returns the repository's address.

    Raises:
        UserError: the hub refuses it or is not reached. The export itself stays as it is.
    """
    try:
        if target.hub == "ms":
            return _push_to_modelscope(target, folder, card, public)
        return _push_to_hugging_face(target, folder, card, public)
    except UserError:
        raise
    except Exception as error:  # those of the libraries and of what they use
        more = f" The export stays in {folder}; the same command with --force sends it again."
        raise _refused(target, error, more) from None


def _push_to_hugging_face(target: HubTarget, folder: Path, card: str, public: bool) -> str:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    hub: Any = huggingface_hub
    disable_progress_bars()
    hub.utils.logging.set_verbosity_error()  # it tells each attempt of an upload
    hub.get_session().timeout = SILENT_FOR  # by default it waits for ever
    api = _hf_api()
    api.create_repo(target.repository, private=not public, exist_ok=True)
    operations: list[Any] = [
        hub.CommitOperationAdd("README.md", card.encode("utf-8")),
        *(
            hub.CommitOperationAdd(file.relative_to(folder).as_posix(), file)
            for file in _files(folder)
        ),
    ]
    api.create_commit(
        target.repository, operations, commit_message="Upload an export of Tinkersmith"
    )
    return f"{shown_endpoint()}/{target.repository}"


def _may_only_read(account: Any) -> bool:
    """Whether the hub says that a token has no right to write; those of a finer kind may have."""
    try:
        return account["auth"]["accessToken"]["role"] == "read"
    except (KeyError, TypeError):
        return False


def _push_to_modelscope(target: HubTarget, folder: Path, card: str, public: bool) -> str:
    api = _modelscope_api()
    if not api.repo_exists(target.repository, "model"):
        api.create_repo(target.repository, "model", visibility="public" if public else "private")
    message = "Upload an export of Tinkersmith"
    api.upload_folder(
        target.repository, "model", folder, commit_message=message, ignore_patterns=["README.md"]
    )
    content = card.encode("utf-8")
    api.upload_file(target.repository, "model", content, "README.md", commit_message=message)
    return f"https://modelscope.cn/models/{target.repository}"


def _modelscope_api() -> Any:
    """ModelScope's client, with the token of MODELSCOPE_API_TOKEN.

    Raises:
        UserError: modelscope is not installed, or there is no token.
    """
    if find_spec("modelscope_hub") is None:
        raise UserError("--push ms: needs modelscope. Install it: pip install modelscope")
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    if not token:
        raise UserError(
            "--push ms: needs a token. Make one at https://modelscope.cn/my/myaccesstoken, and set "
            "MODELSCOPE_API_TOKEN to it."
        )
    module: Any = import_module("modelscope_hub.api")
    return module.HubApi(token=token)


def _hf_api() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=endpoint())


def _files(folder: Path) -> list[Path]:
    return [
        file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "README.md"
    ]


def refuse_private_base(target: HubTarget, base_model: str) -> None:
    """Refuse an adapter whose base model is a folder of this machine: nobody else could load it.

    Raises:
        UserError: it is one.
    """
    if local_model_folder(base_model):
        raise UserError(
            f"An adapter is of no use in {target}: its base model, {base_model}, is a folder on "
            "this machine, so that nobody else can load it. Send the merged model: --merged"
        )


# ---- errors


def _answered(ask: Callable[[], object], target: HubTarget) -> object:
    """A hub's answer, which is waited for no longer than `ANSWER_WITHIN`.

    Raises:
        UserError: it refuses, or does not answer.
    """
    answers: list[object] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            failures.append(error)

    # A daemon: a library that waits for a dead network must not keep the program alive.
    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    thread.join(ANSWER_WITHIN)
    if thread.is_alive():
        raise UserError(
            f"{_place(target)} does not answer (nothing arrived for {ANSWER_WITHIN:.0f} s), so "
            f"that nothing can be sent to {target}. Check the network."
        )
    if failures:
        if _status(failures[0]) == 404:
            raise UserError(
                f"{_place(target)} does not say whose the token is (HTTP 404), so that nothing can "
                f"be sent to {target}. {_CHECK_ADDRESS}"
            )
        raise _refused(target, failures[0], "")
    return answers[0]


_CHECK_ADDRESS = "Check HF_ENDPOINT, and whether your network wants a login first."
# Of httpx, of requests, and of the hub's libraries.
_NETWORK_KINDS = {"TransportError", "ConnectionError", "Timeout"}
_HTTP_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")  # the words of Xet's library


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about; None if there was no answer."""
    for link in error_chain(error):
        status: Any = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        if told := _HTTP_STATUS.search(str(link)):
            return int(told[1])
    return None


def _refused(target: HubTarget, error: BaseException, more: str) -> UserError:
    """The sentence about a hub that did not take what was sent."""
    chain, kinds = list(error_chain(error)), error_kinds(error)
    place, status = _place(target), _status(error)
    if status is not None and status >= 400:
        return UserError(f"{_refusal(target, place, status, _words(chain))}{more}")
    if "TooManyRedirects" in kinds:
        what = f"{place} leads from one address to the next without an end."
        return UserError(f"{what} {_CHECK_ADDRESS}{more}")
    if kinds & {"JSONDecodeError", "UnicodeDecodeError", "KeyError", "TypeError"}:
        return UserError(
            f"{place} answers with something that is no answer of a hub, and did not take "
            f"{target}. {_CHECK_ADDRESS}{more}"
        )
    network = any(isinstance(link, OSError) and is_of_network(link) for link in chain)
    if kinds & _NETWORK_KINDS or network:
        return UserError(
            f"{place} is not reached ({network_reason(chain[-1])}), so that nothing can be sent to "
            f"{target}. Check the network.{more}"
        )
    what = one_line(" ".join(str(error).split()), 200).rstrip(".") or type(error).__name__
    return UserError(f"{place} did not take {target}: {what}.{more}")


def _refusal(target: HubTarget, place: str, status: int, words: str) -> str:
    """What a status of HTTP means for an upload, and what to do."""
    told = f"(HTTP {status}: {words})" if words else f"(HTTP {status})"
    if status == 401:
        variable = "HF_TOKEN" if target.hub == "hf" else "MODELSCOPE_API_TOKEN"
        return (
            f"{place} does not accept the token (HTTP 401). Make a new one that may write, and set "
            f"{variable}."
        )
    if status in (403, 404):
        owner = target.repository.partition("/")[0]
        return (
            f"The token may not write to {target} {told}. Ask {owner} for the right to, or name a "
            "repository of your own."
        )
    if status in (409, 412):
        return f"{target} was changed by somebody else at the same time {told}. Send it again."
    if status == 413:
        return f"{target} does not take files of this size {told}. Send a smaller export."
    if status == 429:
        return f"{place} takes no more requests for now {told}. Wait some minutes."
    if status >= 500:
        return f"{place} failed {told}. Try again later."
    return f"{place} did not take {target} {told}."


def _words(chain: list[BaseException]) -> str:
    """What the hub itself says of its refusal; "" if nothing."""
    for link in chain:
        words = getattr(link, "server_message", None)
        if isinstance(words, str) and words.strip():
            return one_line(" ".join(words.split()), 120).rstrip(".")
    return ""


def _place(target: HubTarget) -> str:
    return f"The hub at {shown_endpoint()}" if target.hub == "hf" else _NAMES[target.hub]
