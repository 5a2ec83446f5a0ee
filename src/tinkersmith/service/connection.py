"""Settings -> a connection that cannot hang: Tinker's cloud, a server at a URL, or our own engine.

The SDK waits silently for minutes when a server is gone. Therefore the server is checked before the
SDK connects and while it works, and every failure becomes one sentence.
"""

import concurrent.futures
import difflib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.models import local_model_folder, resolve_base_model
from tinkersmith.progress import Progress, watched
from tinkersmith.service.embedded import start_engine
from tinkersmith.service.probe import Probe
from tinkersmith.settings import Settings

if TYPE_CHECKING:
    import tinker

    from tinkersmith.text.tokenizer import TextTokenizer

# The training loop reads no log-probability of a position with weight 0, so that our own engine
# need not compute them. Other servers store this as a note.
TRAINING_METADATA = {"tinkersmith.logprobs": "weighted"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
START_REACH = 5.0  # seconds for the first answer
SLICE = 0.2  # seconds between two checks of the server while waiting


class ServerGone(UserError):
    """The server stopped answering during the work."""


@dataclass
class Service:
    """One connection. Make it with `open_service`."""

    client: "tinker.ServiceClient"
    rest: "tinker.RestClient"
    kind: str  # "embedded" | "cloud" | "url"
    base_model: str  # as the server knows it
    max_contexts: dict[str, int | None]  # in tokens, of the models that the server offers
    progress: Progress  # says what takes long
    probe: Probe
    check: Callable[[], None] = lambda: None  # called while waiting; raises to end the wait
    key: str = field(default="", repr=False)
    _tokenizer: "TextTokenizer | None" = None

    @property
    def max_context(self) -> int | None:
        """The longest sequence of the base model, in tokens; None if the server does not say."""
        return self.max_contexts.get(self.base_model)

    def wait(self, pending: Any, doing: str) -> Any:
        """The result of an SDK future; `doing` completes "while ...".

        Raises:
            ServerGone: the server stopped answering.
            UserError: the server or the SDK refused the request.
        """
        future = pending.future() if hasattr(pending, "future") else pending
        with self.progress.doing(doing):
            while True:
                done, _ = concurrent.futures.wait([future], timeout=SLICE)
                if done:
                    return self._result(future, doing)
                self.check()
                if (trouble := self.probe.trouble()) is not None:
                    raise ServerGone(f"{trouble} This happened while {doing}.")

    def ask(self, call: Callable[[], Any], doing: str) -> Any:
        """The result of an SDK call that may block before it returns its future.

        Raises:
            UserError: as `wait`.
        """
        started: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                started.set_result(call())
            except BaseException as error:  # raised again by whoever waits
                started.set_exception(error)

        # A daemon: a call that hangs on a dead server must not keep the program alive.
        threading.Thread(target=run, daemon=True).start()
        pending = self.wait(started, doing)
        return self.wait(pending, doing) if hasattr(pending, "future") else pending

    def create_training_client(self, settings: Settings) -> "tinker.TrainingClient":
        """A new LoRA on the base model."""
        return self.ask(
            lambda: self.client.create_lora_training_client(
                base_model=self.base_model,
                rank=settings.lora_rank,
                seed=settings.seed,
                user_metadata=TRAINING_METADATA,
            ),
            f"creating a LoRA on {self.base_model}",
        )

    def create_sampling_client(self, model_path: str | None) -> "tinker.SamplingClient":
        """A client that samples from a checkpoint, or from the untouched base model."""
        base_model = None if model_path else self.base_model
        return self.ask(
            lambda: self.client.create_sampling_client(model_path, base_model),
            f"opening {model_path or self.base_model}",
        )

    def tokenizer(self, training_client: Any = None) -> "TextTokenizer":
        """The base model's tokenizer: from its folder, or else the one that the server names."""
        from tinkersmith.text.tokenizer import load_tokenizer, wrap_tokenizer

        if self._tokenizer is None:
            folder = local_model_folder(self.base_model)
            if folder is not None:
                self._tokenizer = load_tokenizer(folder)
            else:
                client = training_client or self.create_sampling_client(None)
                self._tokenizer = wrap_tokenizer(client.get_tokenizer())
        return self._tokenizer

    def _result(self, future: concurrent.futures.Future[Any], doing: str) -> Any:
        import tinker
        from tinker.lib.retryable_exception import RetryableException  # pyright: ignore[reportMissingTypeStubs]

        try:
            return future.result()
        except tinker.RequestFailedError as error:
            reason = str(error).split(" for self.request_id")[0].removeprefix("Request failed: ")
            raise UserError(f"The server refused {doing}: {reason}") from None
        except tinker.AuthenticationError:
            raise UserError(_wrong_key()) from None
        except tinker.APIStatusError as error:
            raise UserError(f"The server refused {doing}: {self._detail(error)}") from None
        except tinker.APIConnectionError as error:
            trouble = self.probe.trouble() or f"The server cannot be reached ({error})."
            raise ServerGone(f"{trouble} This happened while {doing}.") from None
        except tinker.TinkerError as error:
            raise UserError(f"The tinker SDK failed while {doing}: {error}") from None
        except RetryableException:
            raise ServerGone(
                f"The server lost a request; was it restarted? This happened while {doing}."
            ) from None
        except ValueError as error:  # how the SDK reports a 4xx to a poll
            if not str(error).startswith("Error retrieving result: "):
                raise
            reason = str(error).removeprefix("Error retrieving result: ").split(" for self.")[0]
            raise ServerGone(f"{reason}. This happened while {doing}.") from None

    def _detail(self, error: Any) -> str:
        content: Any = error.body
        body = cast(dict[str, Any], content if isinstance(content, dict) else {})
        detail = str(body.get("detail") or error)
        offered = sorted(self.max_contexts)
        if "base" in detail.lower() and "offered" not in detail and offered:
            near = difflib.get_close_matches(self.base_model, offered, n=len(offered), cutoff=0.0)
            detail += f" It offers, nearest first: {', '.join(near)}."
        return detail


@contextmanager
def open_service(
    settings: Settings,
    *,
    base_model: str | None = None,
    progress: Progress | None = None,
    allow_changed_base: bool = False,
) -> Generator[Service, None, None]:
    """Connect as BACKEND and the environment say, and close the connection after the block.

    Args:
        allow_changed_base: let our own engine load checkpoints of another base model.
        progress: says what takes long; without one, lines on standard error do.

    Raises:
        UserError: no key, no such server, or an engine that does not start.
    """
    with ExitStack() as stack:
        spoken = progress or stack.enter_context(watched(partial(print, file=sys.stderr)))
        yield stack.enter_context(_opened(settings, base_model, spoken, allow_changed_base))


@contextmanager
def _opened(
    settings: Settings, base_model: str | None, progress: Progress, allow_changed_base: bool
) -> Generator[Service, None, None]:
    name, _ = resolve_base_model(base_model or settings.base_model)
    folder = local_model_folder(name)
    if folder is not None and name not in BUNDLED_MODELS:
        name = str(folder)
    kind, url, key = _where(settings)
    engine = None
    if kind == "embedded":
        base_models = [] if name in BUNDLED_MODELS or not folder else [name]
        options = ["--allow-changed-base"] if allow_changed_base else []
        engine = start_engine(Path(settings.output_dir), base_models, options)
    try:
        # Both processes import for seconds, side by side; the engine has more to import.
        importing = threading.Thread(target=_import_sdk, daemon=True)
        importing.start()
        if engine is not None:
            with progress.doing("starting the engine"):
                engine.wait_until_ready()
            url, key = engine.url, engine.key
        _take_loopback_out_of_proxies()
        probe = Probe(url, engine)
        with progress.doing("loading the tinker SDK"):
            importing.join()
        with progress.doing("connecting to the server"):
            service = _connect(kind, url, key, name, probe, progress)
            service.key = key
        finished = "errored"
        try:
            yield service
            finished = "success"
        finally:
            _close(service, finished)
            probe.stop()
    finally:
        if engine is not None:
            engine.stop()


# ---- which server, and is it there


def _where(settings: Settings) -> tuple[str, str, str]:
    """(kind, url, key) from BACKEND and the environment; url and key are "" where not known yet."""
    url = os.environ.get("TINKER_BASE_URL", "").strip()
    key = os.environ.get("TINKER_API_KEY", "").strip()
    backend = settings.backend
    if backend == "local" or (backend == "auto" and not url and not key):
        return "embedded", "", ""
    if not key:
        raise UserError(
            'BACKEND is "tinker", but there is no TINKER_API_KEY. Set it with: export '
            'TINKER_API_KEY="<your key>" - or set BACKEND = "local" to train on this machine.'
            if not url
            else "TINKER_BASE_URL is set, but no TINKER_API_KEY. Set the key of that server."
        )
    if not key.startswith(("tml-", "eyJ")):
        raise UserError("TINKER_API_KEY is not a Tinker key: those begin with tml-. Copy it again.")
    if url:
        return "url", url.rstrip("/"), key
    return "cloud", "", key


def _connect(
    kind: str, url: str, key: str, base_model: str, probe: Probe, progress: Progress
) -> Service:
    import tinker

    if kind == "cloud":
        from tinker.lib.base_url import resolve_base_url  # pyright: ignore[reportMissingTypeStubs]

        probe.url = resolve_base_url()
    if kind != "embedded" and (trouble := probe.reach(START_REACH)) is not None:
        raise UserError(trouble.sentence)
    if kind == "embedded":
        os.environ["TINKER_TELEMETRY"] = "0"  # nothing leaves the machine
    address: dict[str, Any] = {"base_url": url} if url else {}
    if kind != "cloud":  # the SDK survives a lost network, and so does work in the cloud
        probe.start()
    client = tinker.ServiceClient(api_key=key, **address)
    service = Service(client, None, kind, base_model, {}, progress, probe)  # type: ignore[arg-type]
    service.rest = service.ask(lambda: tinker.RestClient(api_key=key, **address), "connecting")
    found = service.ask(service.rest.get_server_capabilities, "asking which models it offers")
    service.max_contexts = {
        model.model_name: model.max_context_length
        for model in found.supported_models
        if model.model_name
    }
    return service


def _close(service: Service, status: str) -> None:
    """End the session without waiting long for a server that may be gone."""
    if service.probe.trouble() is not None:
        return
    with suppress(Exception):
        service.client.close(status).future().result(timeout=3)  # type: ignore[arg-type]


def _take_loopback_out_of_proxies() -> None:
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def _import_sdk() -> None:
    with suppress(ImportError):  # the importing thread's failure shows at the real import
        importlib.import_module("tinker")
    # Heartbeat warnings of a server that is gone: `wait` says it better.
    logging.getLogger("tinker").setLevel(logging.ERROR)


def _wrong_key() -> str:
    return (
        "The server does not accept the API key. Check TINKER_API_KEY"
        f"{' and TINKER_BASE_URL' if os.environ.get('TINKER_BASE_URL') else ''}."
    )
